//! What the emulated machine runs: the init script, the agent as users get it, and the libraries
//! they need.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
};

use anyhow::Context as _;

use super::cpio::Archive;
use crate::program;

/// The files of an image.
#[derive(Debug)]
pub(super) struct Contents<'a> {
    /// The first process.
    pub(super) init: &'a Path,
    /// Needs no library.
    pub(super) busybox: &'a Path,
    pub(super) agent: &'a Path,
    pub(super) guest: &'a Path,
}

/// Writes an initial RAM disk. It is not compressed: that would take longer than it saves.
pub(super) fn write(path: &Path, contents: &Contents<'_>) -> anyhow::Result<()> {
    let scratch = path.with_extension("stripped");
    let mut programs: Vec<(String, Vec<u8>)> = vec![
        ("init".into(), read(contents.init)?),
        ("bin/busybox".into(), read(contents.busybox)?),
        (
            "bin/underpass".into(),
            program::stripped(contents.agent, &scratch)?,
        ),
        (
            "bin/guest".into(),
            program::stripped(contents.guest, &scratch)?,
        ),
    ];
    let mut libraries = program::libraries(contents.agent)?;
    libraries.extend(program::libraries(contents.guest)?);
    for library in &libraries {
        let name = library.to_string_lossy();
        programs.push((name.trim_start_matches('/').to_owned(), read(library)?));
    }
    let mut directories: BTreeSet<String> = ["bin", "dev", "etc", "proc", "sys", "tmp"]
        .map(str::to_owned)
        .into();
    for (name, _) in &programs {
        let parents = Path::new(name).ancestors().skip(1);
        directories.extend(parents.map(|parent| parent.to_string_lossy().into_owned()));
    }
    directories.remove("");

    let failed = || format!("writing {}", path.display());
    let file = File::create(path).with_context(failed)?;
    let mut archive = Archive::new(BufWriter::new(file));
    // In order, so that parents come first.
    for directory in &directories {
        archive.directory(directory).with_context(failed)?;
    }
    for (name, content) in &programs {
        archive.program(name, content).with_context(failed)?;
    }
    archive
        .finish()
        .and_then(|mut file| file.flush())
        .with_context(failed)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}
