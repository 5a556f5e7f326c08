//! What a `rustc` says about itself.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::BPF_TARGET;

/// A Rust compiler on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rustc {
    /// Path of the executable.
    pub path: PathBuf,
    /// Triple of the machine it runs on.
    pub host: String,
    /// Its release, for instance `1.96.0` or `1.97.0-nightly`.
    pub release: String,
    /// Major version of its LLVM.
    pub llvm: u32,
    /// Root of its libraries.
    pub sysroot: PathBuf,
}

impl Rustc {
    /// Asks the compiler at `path`.
    ///
    /// # Errors
    /// If it does not start, fails, or does not answer as rustc does.
    pub fn query(path: &Path) -> anyhow::Result<Self> {
        let verbose = ask(path, &["-vV"])?;
        let (host, release, llvm) = parse_verbose(&verbose)
            .with_context(|| format!("{} -vV does not answer as rustc does", path.display()))?;
        let sysroot = PathBuf::from(ask(path, &["--print", "sysroot"])?.trim_end());
        Ok(Self {
            path: path.to_owned(),
            host,
            release,
            llvm,
            sysroot,
        })
    }

    /// Whether its release is at least `minimum` (`MAJOR.MINOR[.PATCH]`).
    pub fn at_least(&self, minimum: &str) -> bool {
        version(&self.release) >= version(minimum)
    }

    /// Where a core library compiled for BPF would be.
    pub fn prebuilt_core_dir(&self) -> PathBuf {
        self.sysroot
            .join("lib/rustlib")
            .join(BPF_TARGET)
            .join("lib")
    }

    /// Whether it has a core library compiled for BPF.
    pub fn has_prebuilt_core(&self) -> bool {
        let Ok(entries) = self.prebuilt_core_dir().read_dir() else {
            return false;
        };
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libcore-") && name.ends_with(".rlib")
        })
    }

    /// Whether it has the sources of its libraries (`rust-src`).
    pub fn has_library_sources(&self) -> bool {
        self.sysroot
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .is_file()
    }
}

impl fmt::Display for Rustc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}, LLVM {})",
            self.path.display(),
            self.release,
            self.llvm
        )
    }
}

fn ask(rustc: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(rustc)
        .args(arguments)
        // An outer cargo points this at the libraries of its own toolchain.
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .with_context(|| format!("{} does not start", rustc.display()))?;
    if !output.status.success() {
        bail!(
            "{} {} failed ({}): {}",
            rustc.display(),
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} answers", rustc.display()))
}

/// Host, release and LLVM major version from the answer to `rustc -vV`.
fn parse_verbose(answer: &str) -> Option<(String, String, u32)> {
    let field = |name: &str| {
        answer
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .map(str::trim)
    };
    let llvm = field("LLVM version")?.split('.').next()?.parse().ok()?;
    Some((
        field("host")?.to_owned(),
        field("release")?.to_owned(),
        llvm,
    ))
}

/// The numbers of a release; what follows a `-` is not part of them.
fn version(release: &str) -> [u32; 3] {
    let mut numbers = [0; 3];
    let plain = release.split('-').next().unwrap_or_default();
    for (number, part) in numbers.iter_mut().zip(plain.split('.')) {
        *number = part.parse().unwrap_or(0);
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\n\
        binary: rustc\ncommit-date: 2026-05-25\nhost: x86_64-unknown-linux-gnu\n\
        release: 1.96.0\nLLVM version: 22.1.8\n";

    fn release(release: &str) -> Rustc {
        Rustc {
            path: "/usr/bin/rustc".into(),
            host: "x86_64-unknown-linux-gnu".into(),
            release: release.into(),
            llvm: 22,
            sysroot: "/usr".into(),
        }
    }

    #[test]
    fn verbose_answer_is_read() {
        let expected = (
            "x86_64-unknown-linux-gnu".to_owned(),
            "1.96.0".to_owned(),
            22,
        );
        assert_eq!(parse_verbose(DEBIAN), Some(expected));
    }

    #[test]
    fn an_answer_without_llvm_is_refused() {
        let gcc = DEBIAN.replace("LLVM version", "GCC version");
        assert_eq!(parse_verbose(&gcc), None);
        assert_eq!(parse_verbose(""), None);
    }

    #[test]
    fn releases_compare_by_number() {
        assert!(release("1.95.0").at_least("1.95"));
        assert!(release("1.100.0").at_least("1.95"));
        assert!(release("1.97.0-nightly").at_least("1.95"));
        assert!(!release("1.85.0").at_least("1.95"));
        assert!(!release("1.94.9").at_least("1.95"));
    }
}
