//! The checkout, and the cargo that works in it.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

/// The workspace this program belongs to.
#[derive(Debug)]
pub(crate) struct Project {
    /// Root of the checkout.
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target_dir: PathBuf,
    cargo: OsString,
}

impl Project {
    /// The workspace whose cargo started this program, else the one it was compiled in.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let package =
            env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&package).join("..");
        let root = root
            .canonicalize()
            .with_context(|| format!("no {}", root.display()))?;
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let target_dir = underpass_ebpf_builder::target_dir(&cargo, &root)?;
        Ok(Self {
            root,
            target_dir,
            cargo,
        })
    }

    /// A cargo command in this workspace.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.cargo);
        command.arg(subcommand).current_dir(&self.root);
        // Cargo sets these for the program it runs; the next cargo is not to take them for the
        // user's, or it would build everything again.
        for name in [
            "CARGO_MANIFEST_DIR",
            "CARGO_MANIFEST_PATH",
            "LD_LIBRARY_PATH",
        ] {
            command.env_remove(name);
        }
        for (name, _) in env::vars_os() {
            if name
                .to_str()
                .is_some_and(|name| name.starts_with("CARGO_PKG_"))
            {
                command.env_remove(name);
            }
        }
        command
    }

    /// The agent's binary, as a build leaves it.
    pub(crate) fn binary(&self, release: bool) -> PathBuf {
        self.target_dir
            .join(if release { "release" } else { "debug" })
            .join("underpass")
    }
}
