use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{MINIMUM_RUST, Missing, Piece, Way, linker, rustc::Rustc};

/// The compiler the distribution installs. The name is given in full because rustup's `rustc`
/// usually comes first on PATH.
pub const DISTRIBUTION_RUSTC: &str = "/usr/bin/rustc";

/// A complete toolchain for the eBPF programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    pub(crate) rustc: Rustc,
    pub(crate) cargo: PathBuf,
    pub(crate) core: Core,
    pub(crate) linker: PathBuf,
}

/// Where the core library comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Core {
    /// Compiled by the distribution.
    Prebuilt,
    /// Compiled by cargo from `rust-src` (`-Z build-std`).
    FromSource,
}

impl Toolchain {
    /// Finds a toolchain: the distribution's if it is complete, else rustup's nightly.
    /// `target_dir` is cargo's target directory, below which the project keeps its own tools.
    ///
    /// # Errors
    /// If neither is complete: what each of them lacks.
    pub fn find(target_dir: &Path) -> Result<Self, Missing> {
        Search {
            distribution: DISTRIBUTION_RUSTC.into(),
            rustup: "rustup".into(),
            cargo: env::var_os("CARGO")
                .unwrap_or_else(|| "cargo".into())
                .into(),
            tools: linker::tools_dir(target_dir),
            path: env::var_os("PATH"),
        }
        .find()
    }

    /// The files this toolchain consists of: when one of them changes, the programs are to be
    /// compiled again.
    pub fn files(&self) -> [&Path; 2] {
        [&self.rustc.path, &self.linker]
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = match self.core {
            Core::Prebuilt => "its own core for BPF",
            Core::FromSource => "core compiled from rust-src",
        };
        write!(f, "{}, {core}, {}", self.rustc, self.linker.display())
    }
}

/// Where to look; tests look elsewhere than on the machine they run on.
struct Search {
    distribution: PathBuf,
    rustup: OsString,
    cargo: PathBuf,
    tools: PathBuf,
    path: Option<OsString>,
}

impl Search {
    fn find(&self) -> Result<Toolchain, Missing> {
        let distribution = match self.distribution() {
            Ok(toolchain) => return Ok(toolchain),
            Err(pieces) => Way {
                name: "the distribution's rustc",
                pieces,
            },
        };
        match self.nightly() {
            Ok(toolchain) => Ok(toolchain),
            Err(pieces) => {
                let nightly = Way {
                    name: "rustup's nightly",
                    pieces,
                };
                Err(Missing {
                    ways: vec![distribution, nightly],
                })
            }
        }
    }

    fn distribution(&self) -> Result<Toolchain, Vec<Piece>> {
        const PACKAGES: &str = "apt-get install rustc-web libstd-rust-web-dev-bpf";
        let path = &self.distribution;
        if !path.exists() {
            return Err(vec![Piece::new(format!("no {}", path.display()), PACKAGES)]);
        }
        let rustc =
            Rustc::query(path).map_err(|error| vec![Piece::new(format!("{error:#}"), PACKAGES)])?;
        let mut pieces = Vec::new();
        if !rustc.at_least(MINIMUM_RUST) {
            pieces.push(Piece::new(
                format!("{rustc} is older than {MINIMUM_RUST}"),
                format!("{PACKAGES}, with the distribution's security updates enabled"),
            ));
        }
        if !rustc.has_prebuilt_core() {
            let what = format!(
                "no core library for BPF in {}",
                rustc.prebuilt_core_dir().display()
            );
            pieces.push(Piece::new(what, PACKAGES));
        }
        self.complete(rustc, self.cargo.clone(), Core::Prebuilt, pieces)
    }

    fn nightly(&self) -> Result<Toolchain, Vec<Piece>> {
        const INSTALL: &str =
            "rustup toolchain install nightly --profile minimal --component rust-src";
        let answer = Command::new(&self.rustup)
            .args(["which", "--toolchain", "nightly", "rustc"])
            // Asking must not install anything.
            .env("RUSTUP_AUTO_INSTALL", "0")
            .output();
        let path = match answer {
            Ok(output) if output.status.success() => {
                PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end())
            }
            Ok(_) => return Err(vec![Piece::new("no nightly toolchain", INSTALL)]),
            Err(_) => {
                let how = format!("install it from https://rustup.rs, then {INSTALL}");
                return Err(vec![Piece::new("no rustup on PATH", how)]);
            }
        };
        let rustc =
            Rustc::query(&path).map_err(|error| vec![Piece::new(format!("{error:#}"), INSTALL)])?;
        let mut pieces = Vec::new();
        if !rustc.at_least(MINIMUM_RUST) {
            let what = format!("{rustc} is older than {MINIMUM_RUST}");
            pieces.push(Piece::new(what, "rustup update nightly"));
        }
        if !rustc.has_library_sources() {
            pieces.push(Piece::new(
                format!("{rustc} is without rust-src"),
                "rustup component add rust-src --toolchain nightly",
            ));
        }
        let cargo = path.with_file_name("cargo");
        if !cargo.exists() {
            pieces.push(Piece::new(format!("no {}", cargo.display()), INSTALL));
        }
        self.complete(rustc, cargo, Core::FromSource, pieces)
    }

    fn complete(
        &self,
        rustc: Rustc,
        cargo: PathBuf,
        core: Core,
        mut pieces: Vec<Piece>,
    ) -> Result<Toolchain, Vec<Piece>> {
        match linker::find(&self.tools, self.path.as_deref(), rustc.llvm) {
            Ok(linker) if pieces.is_empty() => Ok(Toolchain {
                rustc,
                cargo,
                core,
                linker,
            }),
            Ok(_) => Err(pieces),
            Err(piece) => {
                pieces.push(piece);
                Err(pieces)
            }
        }
    }
}

#[cfg(test)]
mod tests;
