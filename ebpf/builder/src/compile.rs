use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::{BPF_TARGET, Toolchain, toolchain::Core};

const PACKAGE: &str = "underpass-ebpf";

/// An eBPF object to be made.
#[derive(Debug, Clone, Copy)]
pub struct Object<'a> {
    /// Root of the workspace whose package `underpass-ebpf` is compiled.
    pub workspace: &'a Path,
    /// Cargo's target directory; the programs get a directory of their own in it, so that the
    /// inner cargo never waits for a lock of the outer one.
    pub target_dir: &'a Path,
    /// Architecture of the kernel the programs are for, as Rust names it (`x86_64`, `aarch64`).
    pub arch: &'a str,
    /// The file to be written.
    pub path: &'a Path,
}

impl Toolchain {
    /// Compiles the eBPF programs and writes the object file. Returns the compiler's warnings.
    ///
    /// # Errors
    /// If cargo does not start, the programs do not compile (the error carries the compiler's
    /// messages) or the object cannot be written.
    pub fn build(&self, object: &Object<'_>) -> anyhow::Result<String> {
        let directory = object.target_dir.join("ebpf");
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        // Cargo's own lock ends with cargo. Held until the object is copied, ours keeps a build of
        // another checkout that shares the target directory from putting its object there.
        let lock_path = directory.join(".lock");
        let lock = File::create(&lock_path)
            .and_then(|file| file.lock().map(|()| file))
            .with_context(|| format!("locking {}", lock_path.display()))?;

        let output = self
            .command(object, &directory)
            .output()
            .with_context(|| format!("{} does not start", self.cargo.display()))?;
        let messages = String::from_utf8_lossy(&output.stderr)
            .trim_end()
            .to_owned();
        if !output.status.success() {
            bail!("the eBPF programs do not compile with {self}:\n{messages}");
        }

        let built = directory.join(BPF_TARGET).join("release").join(PACKAGE);
        fs::copy(&built, object.path)
            .with_context(|| format!("copying {} to {}", built.display(), object.path.display()))?;
        drop(lock);
        Ok(messages)
    }

    fn command(&self, object: &Object<'_>, directory: &Path) -> Command {
        let mut command = Command::new(&self.cargo);
        for (name, _) in env::vars_os() {
            if !name.to_str().is_some_and(inherited) {
                command.env_remove(name);
            }
        }
        command
            .current_dir(object.workspace)
            .args(["build", "--quiet", "--locked", "--release"])
            .args([
                "--package",
                PACKAGE,
                "--bin",
                PACKAGE,
                "--target",
                BPF_TARGET,
            ])
            .arg("--target-dir")
            .arg(directory)
            .env("CARGO_ENCODED_RUSTFLAGS", self.rustflags(object))
            // As a variable rather than a flag, because flags enter the symbol names and this path
            // differs between machines.
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker)
            .env("CARGO_TERM_COLOR", "never")
            .env("RUSTC", &self.rustc.path)
            // aya-ebpf needs unstable features, whatever the channel of the compiler.
            .env("RUSTC_BOOTSTRAP", "1");
        if self.core == Core::FromSource {
            command.args(["-Z", "build-std=core"]);
        }
        command
    }

    /// The compiler's flags, in cargo's encoding.
    fn rustflags(&self, object: &Object<'_>) -> OsString {
        // The object carries file names in its debug information; without these it would depend on
        // where it was compiled.
        let cargo_home = env::var_os("CARGO_HOME").unwrap_or_else(|| {
            let home = env::var_os("HOME").unwrap_or_default();
            Path::new(&home).join(".cargo").into_os_string()
        });
        let sources = self.rustc.sysroot.join("lib/rustlib/src/rust");
        let remapped = [
            (object.workspace.as_os_str(), "/underpass"),
            (&cargo_home, "/cargo"),
            (sources.as_os_str(), "/rust"),
        ];

        let mut flags = OsString::new();
        flags.push(format!("--cfg=bpf_target_arch=\"{}\"", object.arch));
        flags.push("\x1f-Clink-arg=--btf\x1f-Cdebuginfo=2");
        for (from, to) in remapped {
            flags.push("\x1f--remap-path-prefix=");
            flags.push(from);
            flags.push("=");
            flags.push(to);
        }
        flags
    }
}

/// Whether the inner cargo may see this variable of the build script that starts it. What an outer
/// cargo, clippy or rustup sets for its own build must not reach it: it would compile the programs
/// with another compiler, other flags or another profile.
fn inherited(name: &str) -> bool {
    const KEPT: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_MAKEFLAGS",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
    ];
    const DROPPED: [&str; 9] = [
        "AYA_",
        "CARGO",
        "CLIPPY_",
        "DEP_",
        "LD_LIBRARY_PATH",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
    ];
    const BUILD_SCRIPT: [&str; 7] = [
        "DEBUG",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "TARGET",
    ];

    let begins_with = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    begins_with(&KEPT) || !(begins_with(&DROPPED) || BUILD_SCRIPT.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_outer_build_reaches_the_inner() {
        for name in [
            "AYA_BPF_TARGET_ARCH",
            "CARGO",
            "CARGO_BUILD_TARGET",
            "CARGO_CFG_TARGET_ARCH",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_INCREMENTAL",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_TARGET_DIR",
            "CLIPPY_ARGS",
            "LD_LIBRARY_PATH",
            "OUT_DIR",
            "RUSTC",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "TARGET",
        ] {
            assert!(!inherited(name), "{name}");
        }
    }

    #[test]
    fn the_way_to_the_registry_is_kept() {
        for name in [
            "CARGO_HOME",
            "CARGO_HTTP_CAINFO",
            "CARGO_MAKEFLAGS",
            "CARGO_NET_OFFLINE",
            "HOME",
            "HTTPS_PROXY",
            "PATH",
            "RUSTUP_HOME",
            "SSL_CERT_FILE",
        ] {
            assert!(inherited(name), "{name}");
        }
    }
}
