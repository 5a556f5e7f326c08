//! Programs as files: what is taken out of them, and what they need.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

/// A program without its debug information, of which there is more than of the program.
pub(crate) fn stripped(program: &Path, scratch: &Path) -> anyhow::Result<Vec<u8>> {
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
    let content = fs::read(scratch).with_context(|| format!("reading {}", scratch.display()))?;
    fs::remove_file(scratch).with_context(|| format!("removing {}", scratch.display()))?;
    Ok(content)
}

/// The libraries that a program is linked to, the loader included.
pub(crate) fn libraries(program: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
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
