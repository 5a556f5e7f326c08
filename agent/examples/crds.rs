//! Writes the CustomResourceDefinitions of policy into a directory: `cargo xtask crds`.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::Context as _;

#[path = "../tests/crds/files.rs"]
mod files;

fn main() -> anyhow::Result<()> {
    let directory = env::args_os().nth(1).context("give a directory")?;
    let directory = PathBuf::from(directory);
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    for (name, text) in files::files()? {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
