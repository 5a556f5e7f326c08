//! Gets programs of Debian's that are not to be installed: one has another package in its place, of
//! the other the release has an older version. Tests take those that are unpacked here.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use underpass_ebpf_builder::linker;

use super::{Session, system, word};
use crate::{
    debian::{Installed, Room},
    report,
    supervise::{self, Supervisor},
};

/// A program that tests need for something that the installed one may not be able to do.
#[derive(Debug)]
struct Program {
    /// The package that has it, and the directory where that is unpacked.
    package: &'static str,
    /// Where it is in there.
    path: &'static str,
    /// Asked this, ...
    question: &'static [&'static str],
    /// ... it says that, if it can do what it is for.
    answer: &'static str,
    /// Whether it is in the backports of the release; else it is in the release itself.
    is_backport: bool,
}

const PROGRAMS: [Program; 2] = [
    // Beside `squid`, which has GnuTLS and lets nobody in by certificates.
    Program {
        package: "squid-openssl",
        path: "usr/sbin/squid",
        question: &["-v"],
        answer: "--with-openssl",
        is_backport: false,
    },
    // That of Debian 12 is older than HTTP/2 to proxies.
    Program {
        package: "curl",
        path: "usr/bin/curl",
        question: &["--help", "all"],
        answer: "--proxy-http2",
        is_backport: true,
    },
];

pub(super) fn install(session: &Session<'_>) -> anyhow::Result<String> {
    let tools = linker::tools_dir(&session.project.target_dir);
    let missing: Vec<&Program> = PROGRAMS
        .iter()
        .filter(|program| !program.is_there(&tools))
        .collect();
    if missing.is_empty() {
        return Ok("already there".to_owned());
    }
    let Some(supervisor) = session.supervisor else {
        for program in missing {
            report::result(program.same_as(&tools));
        }
        return Ok(session.outcome("unpacked").to_owned());
    };
    fs::create_dir_all(&tools).with_context(|| format!("making {}", tools.display()))?;
    let sources = Sources {
        machine: Room::of_machine(&tools.join("machine.apt"), supervisor)?,
        tools: &tools,
        supervisor,
    };
    sources.machine.update_reachable()?;
    let mut failed = Vec::new();
    for program in missing {
        report::progress(format_args!("+ {}", program.same_as(&tools)));
        match sources.get(program) {
            Err(error) if error.is::<supervise::Stopped>() => return Err(error),
            Err(error) => {
                report::progress(format_args!("warning: {error:#}"));
                failed.push(program.package);
            }
            Ok(()) => {}
        }
    }
    sources.machine.leave()?;
    if failed.is_empty() {
        return Ok("unpacked".to_owned());
    }
    let failed = failed.join(" and ");
    Ok(format!("not unpacked: tests with {failed} will fail"))
}

/// Where packages are from.
struct Sources<'a> {
    machine: Room<'a>,
    tools: &'a Path,
    supervisor: &'a Supervisor,
}

impl Sources<'_> {
    fn get(&self, program: &Program) -> anyhow::Result<()> {
        let package = program.package;
        let root = self.tools.join(package);
        if root.exists() {
            fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
        }
        if !program.is_backport {
            let archives = self.machine.download(package)?;
            return self.machine.unpack(&archives, &root);
        }
        let archive = self.machine.archive()?;
        let directory = self.tools.join(format!("{package}.apt"));
        let suite = backports();
        let here = Installed::Here;
        let room = Room::of_suite(&directory, self.supervisor, &archive, &suite, here)?;
        room.update()
            .with_context(|| format!("reading Debian's {suite}"))?;
        let archives = room.download_with_needs(&[package])?;
        room.unpack(&archives, &root)?;
        room.leave()
    }
}

/// What newer versions for this release are in.
fn backports() -> String {
    format!("{}-backports", system::codename().unwrap_or_default())
}

impl Program {
    /// Whether the installed one will do, or it has been unpacked.
    fn is_there(&self, tools: &Path) -> bool {
        let name = Path::new(self.path).file_name().unwrap_or_default();
        let installed = system::find(Path::new(name));
        let root = tools.join(self.package);
        installed.is_some_and(|program| self.will_do(&program, None))
            || self.will_do(&root.join(self.path), Some(&root))
    }

    fn will_do(&self, program: &Path, root: Option<&Path>) -> bool {
        let mut command = Command::new(program);
        command.args(self.question).stdin(Stdio::null());
        if let Some(root) = root {
            command.env("LD_LIBRARY_PATH", libraries(root));
        }
        let output = command.output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(self.answer))
    }

    /// The commands that get and unpack it.
    fn same_as(&self, tools: &Path) -> String {
        let package = self.package;
        let release = match self.is_backport {
            true => format!(" --target-release {}", backports()),
            false => String::new(),
        };
        let root = word(&tools.join(package));
        format!("apt-get{release} download {package} && dpkg-deb --extract {package}_*.deb {root}")
    }
}

/// Where an unpacked package has its libraries.
fn libraries(root: &Path) -> PathBuf {
    root.join(format!("usr/lib/{}-linux-gnu", env::consts::ARCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_known_by_what_it_says() {
        let echo = |answer| Program {
            package: "none",
            path: "usr/bin/echo",
            question: &["one", "two"],
            answer,
            is_backport: false,
        };
        let nowhere = Path::new("/nonexistent");
        assert!(echo("one two").is_there(nowhere));
        assert!(!echo("three").is_there(nowhere));
    }
}
