//! `bpf-linker`: which one fits a compiler, and the record of the one we built.

use std::{
    ffi::OsStr,
    fmt, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    str::FromStr,
};

use crate::Piece;

/// The release that `cargo xtask setup` builds.
pub const VERSION: &str = "0.13.0";

/// The LLVM versions that release can be built for.
pub const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Where the project keeps tools of its own, below cargo's target directory.
pub fn tools_dir(target_dir: &Path) -> PathBuf {
    target_dir.join("tools")
}

/// The `bpf-linker` inside a tools directory.
pub fn in_tools(tools: &Path) -> PathBuf {
    tools.join("bin/bpf-linker")
}

/// What a `bpf-linker` was built as; kept beside it, because it cannot be asked for its LLVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Its release.
    pub version: String,
    /// Major version of the LLVM it links with.
    pub llvm: u32,
}

impl Stamp {
    /// The stamp in `tools`, if there is a readable one.
    pub fn read(tools: &Path) -> Option<Self> {
        fs::read_to_string(Self::path(tools)).ok()?.parse().ok()
    }

    /// Writes the stamp into `tools`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, tools: &Path) -> io::Result<()> {
        fs::write(Self::path(tools), format!("{self}\n"))
    }

    /// Takes the stamp away, before the linker it describes is replaced.
    ///
    /// # Errors
    /// If the file is there and cannot be removed.
    pub fn remove(tools: &Path) -> io::Result<()> {
        match fs::remove_file(Self::path(tools)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Where the stamp of the linker in `tools` is.
    pub fn path(tools: &Path) -> PathBuf {
        tools.join("bpf-linker.stamp")
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} llvm-{}", self.version, self.llvm)
    }
}

impl FromStr for Stamp {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (version, llvm) = text
            .trim()
            .split_once(" llvm-")
            .ok_or("not `VERSION llvm-NN`")?;
        let llvm = llvm.parse().map_err(|_| "LLVM version is not a number")?;
        Ok(Self {
            version: version.to_owned(),
            llvm,
        })
    }
}

/// Whether the program starts: it does not once the LLVM library it was linked with has gone.
pub fn runs(linker: &Path) -> bool {
    Command::new(linker)
        .arg("--version")
        .env_remove("LD_LIBRARY_PATH")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The linker for a compiler with this LLVM: the one in `tools` if it fits, else the first that
/// runs in the directories of `path`.
pub(crate) fn find(tools: &Path, path: Option<&OsStr>, llvm: u32) -> Result<PathBuf, Piece> {
    let ours = in_tools(tools);
    let mut unfit = None;
    if ours.exists() {
        match Stamp::read(tools) {
            Some(stamp) if stamp.llvm < llvm => {
                unfit = Some(format!(
                    "was built for LLVM {}, older than {llvm}",
                    stamp.llvm
                ));
            }
            _ if runs(&ours) => return Ok(ours),
            _ => unfit = Some("does not run".to_owned()),
        }
    }
    for dir in path.into_iter().flat_map(std::env::split_paths) {
        let candidate = dir.join("bpf-linker");
        if candidate.is_file() && runs(&candidate) {
            return Ok(candidate);
        }
    }
    let what = match unfit {
        Some(why) => format!("{} {why}, and there is none on PATH", ours.display()),
        None => format!("no bpf-linker, neither {} nor on PATH", ours.display()),
    };
    Err(Piece::new(
        what,
        format!(
            "LLVM_PREFIX=/usr/lib/llvm-{llvm} cargo install bpf-linker@{VERSION} --locked \
             --no-default-features --features llvm-{llvm}"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamp_survives_writing_and_reading() {
        let tools = tempfile::tempdir().unwrap();
        assert_eq!(Stamp::read(tools.path()), None);
        Stamp::remove(tools.path()).unwrap();
        let stamp = Stamp {
            version: "0.13.0".into(),
            llvm: 22,
        };
        stamp.write(tools.path()).unwrap();
        assert_eq!(Stamp::read(tools.path()), Some(stamp));
        Stamp::remove(tools.path()).unwrap();
        assert_eq!(Stamp::read(tools.path()), None);
    }

    #[test]
    fn a_damaged_stamp_is_no_stamp() {
        for text in ["", "0.13.0", "0.13.0 llvm-", "0.13.0 llvm-new"] {
            assert!(text.parse::<Stamp>().is_err(), "{text:?}");
        }
    }
}
