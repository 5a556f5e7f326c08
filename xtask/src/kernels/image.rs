//! What the emulated machine runs: the init script, the agent as users get it, and the libraries
//! they need.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use super::cpio::Archive;

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
        ("bin/underpass".into(), stripped(contents.agent, &scratch)?),
        ("bin/guest".into(), stripped(contents.guest, &scratch)?),
    ];
    let mut libraries = libraries(contents.agent)?;
    libraries.extend(self::libraries(contents.guest)?);
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

/// A program without its debug information, of which there is more than of the program.
fn stripped(program: &Path, scratch: &Path) -> anyhow::Result<Vec<u8>> {
    let output = Command::new("strip")
        .args(["--strip-all", "-o"])
        .arg(scratch)
        .arg(program)
        .output()
        .context("strip does not start")?;
    if !output.status.success() {
        bail!(
            "strip {}: {}",
            program.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let content = read(scratch)?;
    fs::remove_file(scratch).with_context(|| format!("removing {}", scratch.display()))?;
    Ok(content)
}

/// The libraries that a program is linked to, the loader included.
fn libraries(program: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("ldd does not start")?;
    if !output.status.success() {
        bail!(
            "ldd {}: {}",
            program.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(paths(&String::from_utf8_lossy(&output.stdout)))
}

/// The paths in what `ldd` prints: `NAME => PATH (ADDRESS)`, and `PATH (ADDRESS)` for the loader.
fn paths(ldd: &str) -> BTreeSet<PathBuf> {
    ldd.split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_prints() {
        let ldd = "\tlinux-vdso.so.1 (0x00007f3fce8a6000)\n\
                   \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f3fcd21e000)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f3fce8a8000)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(paths(ldd), expected.map(PathBuf::from).into());
        assert!(paths("\tstatically linked\n").is_empty());
    }
}
