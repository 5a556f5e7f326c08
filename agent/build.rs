//! Compiles the eBPF programs into `OUT_DIR/underpass-ebpf.o`, for the agent to include.
//!
//! Where no toolchain can do that the file is empty: everything that does not capture can still be
//! built, checked and tested, and the agent refuses to start.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use underpass_ebpf_builder::{Object, Toolchain, target_dir};

/// Set to 1, leaves the eBPF programs out although there is a toolchain.
const SKIP: &str = "AYA_BUILD_SKIP";
/// Set where docs.rs builds documentation.
const DOCS_RS: &str = "DOCS_RS";

#[expect(clippy::print_stderr, reason = "cargo shows this when the build fails")]
fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?)
        .join("..")
        .canonicalize()?;
    let object = PathBuf::from(variable("OUT_DIR")?).join("underpass-ebpf.o");

    for input in [
        "Cargo.lock",
        "Cargo.toml",
        "ebpf/Cargo.toml",
        "ebpf/src",
        "ebpf/abi/Cargo.toml",
        "ebpf/abi/src",
    ] {
        directive("rerun-if-changed", root.join(input).display());
    }
    directive("rerun-if-env-changed", SKIP);
    directive("rerun-if-env-changed", DOCS_RS);

    if env::var_os(SKIP).is_some_and(|value| value == "1") {
        return leave_out(&object, &format!("{SKIP}=1"));
    }
    if env::var_os(DOCS_RS).is_some() {
        return leave_out(&object, "documentation only");
    }
    if variable("CARGO_CFG_TARGET_ENDIAN")? != "little" {
        bail!("the eBPF programs are for little-endian machines");
    }

    let target_dir = target_dir(variable("CARGO")?.as_ref(), &root)?;
    match Toolchain::find(&target_dir) {
        Ok(toolchain) => {
            for file in toolchain.files() {
                directive("rerun-if-changed", file.display());
            }
            let warnings = toolchain.build(&Object {
                workspace: &root,
                target_dir: &target_dir,
                arch: &variable("CARGO_CFG_TARGET_ARCH")?,
                path: &object,
            })?;
            for line in warnings.lines() {
                directive("warning", line);
            }
            Ok(())
        }
        Err(missing) => {
            // A file that is never there: cargo runs this again on every build, so that a toolchain
            // is noticed as soon as there is one.
            directive(
                "rerun-if-changed",
                object.with_file_name("awaiting-a-toolchain").display(),
            );
            leave_out(&object, &missing.to_string())
        }
    }
}

/// Writes an empty object, and says why.
fn leave_out(object: &Path, why: &str) -> anyhow::Result<()> {
    fs::write(object, []).with_context(|| format!("writing {}", object.display()))?;
    directive(
        "warning",
        "built without the eBPF programs: this agent cannot capture connections",
    );
    for line in why.lines() {
        directive("warning", line);
    }
    Ok(())
}

fn variable(name: &str) -> anyhow::Result<String> {
    env::var(name).with_context(|| format!("cargo sets no usable {name}"))
}

/// Says something to cargo.
fn directive(name: &str, value: impl std::fmt::Display) {
    println!("cargo:{name}={value}");
}
