//! Installs missing packages.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use nix::unistd::geteuid;

use super::{
    Session,
    packages::{self, CONFLICTING, Package},
    services::{NoServices, POLICY},
};
use crate::{report, supervise};

/// Present where systemd runs the machine.
const SYSTEMD: &str = "/run/systemd/system";

/// Installs those of `all` that are missing.
pub(super) fn install(session: &Session<'_>, all: &[Package]) -> anyhow::Result<String> {
    let query = dpkg_query(all)?;
    let installed = packages::installed(&query);
    let bpf = all.iter().any(|package| package.bpf);
    let conflict = packages::conflict(&installed).filter(|_| bpf);
    if let Some(conflict) = conflict {
        note(
            session,
            &format!(
                "the package {conflict} is installed, beside which rustc-web cannot be: left as it \
                 is, the eBPF programs take what is there"
            ),
        );
    }
    let wanted = all
        .iter()
        .filter(|package| !(package.bpf && conflict.is_some()));
    let missing = packages::missing(wanted, &installed);
    if missing.is_empty() {
        return Ok("already there".to_owned());
    }
    if !session.prints_only() && !geteuid().is_root() {
        bail!(
            "packages are missing and only root can install them: apt-get update && {}",
            supervise::line(&apt_get_install(&first_names(&missing)))
        );
    }

    if let Err(error) = session.run(apt_get().arg("update")) {
        if error.is::<supervise::Stopped>() {
            return Err(error);
        }
        // An unreachable source of something else is no reason not to try.
        report::progress(format_args!("warning: {error:#}"));
    }
    let policy = apt_cache_policy(&missing)?;
    let candidates = packages::candidates(&policy);
    let (available, unavailable): (Vec<&Package>, Vec<&Package>) =
        missing.into_iter().partition(|package| {
            // Without lists yet, as before the first update, nothing is known about any package.
            !package.bpf || session.prints_only() || candidates.contains(package.names[0])
        });
    for package in unavailable {
        note(
            session,
            &format!(
                "apt has no {} ({}), so the eBPF programs take what is there",
                package.names[0], package.reason
            ),
        );
    }
    if available.is_empty() {
        return Ok("nothing to install".to_owned());
    }
    let names: Vec<&str> = available
        .iter()
        .map(|package| packages::choose(package, &candidates))
        .collect();
    install_quietly(session, &names)?;
    disable_services(session, &available)?;
    Ok(session.outcome("installed").to_owned())
}

/// Installs packages without starting their services.
fn install_quietly(session: &Session<'_>, names: &[&str]) -> anyhow::Result<()> {
    let policy = Path::new(POLICY);
    if session.prints_only() {
        let foreign = policy.exists();
        if !foreign {
            report::result(format_args!(
                r"printf '#!/bin/sh\nexit 101\n' > {POLICY} && chmod 755 {POLICY}"
            ));
        }
        session.run(&mut apt_get_install(names))?;
        if !foreign {
            report::result(format_args!("rm {POLICY}"));
        }
        return Ok(());
    }
    let _held = NoServices::hold(policy)?;
    session.run(&mut apt_get_install(names))
}

/// Keeps the services of packages that were just installed from starting with the machine.
fn disable_services(session: &Session<'_>, installed: &[&Package]) -> anyhow::Result<()> {
    let services: Vec<&str> = installed
        .iter()
        .filter_map(|package| package.service)
        .collect();
    if services.is_empty() || !Path::new(SYSTEMD).exists() {
        return Ok(());
    }
    session.run(
        Command::new("systemctl")
            .args(["disable", "--quiet"])
            .args(services),
    )
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["--quiet=1", "-oDPkg::Lock::Timeout=300"])
        .stdin(Stdio::null());
    command
}

fn apt_get_install(names: &[&str]) -> Command {
    let mut command = apt_get();
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .arg("-oDpkg::Use-Pty=0")
        // Nothing of the machine's owner goes for our sake: apt rather fails.
        .args(["install", "--yes", "--no-install-recommends", "--no-remove"])
        .args(names);
    command
}

fn first_names(packages: &[&Package]) -> Vec<&'static str> {
    packages.iter().map(|package| package.names[0]).collect()
}

fn dpkg_query(packages: &[Package]) -> anyhow::Result<String> {
    let names = packages
        .iter()
        .flat_map(|package| package.names)
        .chain(CONFLICTING);
    let mut command = Command::new("dpkg-query");
    command
        .args(["--show", r"--showformat=${Package} ${db:Status-Status}\n"])
        .args(names);
    // It fails when it does not know one of the packages, and tells about the others all the same.
    let output = command.output().context("dpkg-query does not start")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn apt_cache_policy(packages: &[&Package]) -> anyhow::Result<String> {
    let names = packages.iter().flat_map(|package| package.names);
    let output = Command::new("apt-cache")
        .arg("policy")
        .args(names)
        .env("LC_ALL", "C")
        .output()
        .context("apt-cache does not start")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn note(session: &Session<'_>, text: &str) {
    if session.prints_only() {
        report::result(format_args!("# {text}"));
    } else {
        report::progress(text);
    }
}
