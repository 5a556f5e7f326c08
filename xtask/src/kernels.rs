//! `cargo xtask kernels`: the agent on other kernels than this machine's, in an emulator.
//!
//! The kernels are Debian's, the machine is QEMU without hardware acceleration and without a
//! network device. Nothing is installed and no root is needed: packages are unpacked below the
//! target directory, and stay there for later runs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::{
    build,
    project::Project,
    report::{self, Seconds},
    supervise::{Stopped, Supervisor},
};

mod console;
mod cpio;
mod image;
mod machine;
mod packages;

use console::Results;
use machine::Emulator;
use packages::Packages;

/// A kernel of the matrix.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    /// Major and minor version.
    version: &'static str,
    /// The release of Debian that has it.
    suite: &'static str,
}

/// The oldest that Underpass runs on, and those of Debian's releases since.
const KERNELS: [Kernel; 3] = [
    Kernel {
        version: "5.10",
        suite: "bullseye",
    },
    Kernel {
        version: "6.1",
        suite: "bookworm",
    },
    Kernel {
        version: "6.12",
        suite: "trixie",
    },
];

/// How often a kernel is started at most.
const BOOTS: u32 = 3;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Run only this kernel (may be given several times)
    #[arg(long, value_name = "VERSION", value_parser = KERNELS.map(|kernel| kernel.version))]
    only: Vec<String>,

    /// Run this agent instead of the release build
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let project = Project::find()?;
    let supervisor = Supervisor::new()?;
    let agent = match &arguments.agent {
        Some(agent) => agent.clone(),
        None => {
            build::agent(&project, &supervisor, true)?;
            project.binary(true)
        }
    };
    let wanted = |kernel: &Kernel| {
        arguments.only.is_empty() || arguments.only.iter().any(|only| only == kernel.version)
    };
    let kernels: Vec<Kernel> = KERNELS.into_iter().filter(wanted).collect();
    matrix(&project, &supervisor, &agent, &kernels)
}

/// Runs an agent that was built on every kernel; the stage of `cargo xtask test`.
pub(crate) fn all(project: &Project, supervisor: &Supervisor) -> anyhow::Result<()> {
    matrix(project, supervisor, &project.binary(true), &KERNELS)
}

/// Runs the agent on these kernels, and prints what came of it. A kernel that cannot be had is
/// left out, but not all of them.
fn matrix(
    project: &Project,
    supervisor: &Supervisor,
    agent: &Path,
    kernels: &[Kernel],
) -> anyhow::Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the kernels are for x86_64 machines only");
    }
    let mut client = project.cargo("build");
    client.args(["--locked", "--package", "underpass-tests", "--bin", "guest"]);
    supervisor.check(&client)?;

    let directory = project.target_dir.join("kernels");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let mut packages = Packages::new(&directory, supervisor);
    let tools = packages.tools().context("getting the emulator")?;
    let emulator = Emulator::of(&tools);
    let image = directory.join("image.cpio");
    image::write(
        &image,
        &image::Contents {
            init: &project.root.join("tests/guest/init"),
            busybox: &tools.join("usr/bin/busybox"),
            agent,
            guest: &project.target_dir.join("debug/guest"),
        },
    )?;

    let mut columns = Vec::new();
    for kernel in kernels {
        let start = Instant::now();
        let vmlinuz = match packages.kernel(kernel) {
            Err(error) if !error.is::<Stopped>() => {
                columns.push(Column::left_out(kernel, format!("{error:#}")));
                continue;
            }
            vmlinuz => vmlinuz?,
        };
        let console = directory.join(format!("console-{}.log", kernel.version));
        let results = boot(supervisor, &emulator, &vmlinuz, &image, &console)?;
        report::progress(format_args!(
            "kernel {}: {} ({}, console in {})",
            kernel.version,
            results.summary(),
            Seconds(start.elapsed()),
            console.display()
        ));
        columns.push(Column {
            version: kernel.version,
            outcome: Ok(results),
        });
    }
    report::result(table(&columns));
    verdict(&columns)
}

/// Boots until the kernel survives it. Software emulation is not perfect: with some versions of
/// QEMU kernels that rewrite their own code now and then panic or hang, mostly before the first
/// process. That says nothing about the agent; one that brings a kernel down does so every time.
/// A check that failed is never tried again.
fn boot(
    supervisor: &Supervisor,
    emulator: &Emulator<'_>,
    vmlinuz: &Path,
    image: &Path,
    console: &Path,
) -> anyhow::Result<Results> {
    let mut left = BOOTS;
    loop {
        emulator.boot(supervisor, vmlinuz, image, console)?;
        let text = fs::read(console).with_context(|| format!("reading {}", console.display()))?;
        let results = Results::parse(&String::from_utf8_lossy(&text));
        left -= 1;
        if results.judges_the_agent() || left == 0 {
            return Ok(results);
        }
        report::progress(format_args!(
            "the emulated machine broke down ({}), and is started again",
            results.summary()
        ));
    }
}

/// What came of one kernel.
#[derive(Debug)]
struct Column {
    version: &'static str,
    /// Or why it was left out.
    outcome: Result<Results, String>,
}

impl Column {
    fn left_out(kernel: &Kernel, why: String) -> Self {
        report::progress(format_args!(
            "WARNING: kernel {} is left out: {why}",
            kernel.version
        ));
        Self {
            version: kernel.version,
            outcome: Err(why),
        }
    }
}

/// A row per check, a column per kernel; below it what went wrong.
fn table(columns: &[Column]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for results in columns
        .iter()
        .filter_map(|column| column.outcome.as_ref().ok())
    {
        for name in results.names() {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let mut text = row("kernel", columns.iter().map(|column| column.version));
    let release = |column: &Column| match &column.outcome {
        Ok(results) => results.release().to_owned(),
        Err(_) => "left out".to_owned(),
    };
    text += &row("release", columns.iter().map(release));
    for name in names {
        let cell = |column: &Column| match &column.outcome {
            Ok(results) => results.cell(name),
            Err(_) => "-",
        };
        text += &row(name, columns.iter().map(cell));
    }
    for column in columns {
        let notes = match &column.outcome {
            Ok(results) => results.failures(),
            Err(why) => vec![why.clone()],
        };
        for note in notes {
            text += &format!("{}: {note}\n", column.version);
        }
    }
    text.trim_end().to_owned()
}

fn row(name: &str, cells: impl Iterator<Item = impl AsRef<str>>) -> String {
    let mut line = format!("{name:<18}");
    for cell in cells {
        line += &format!("{:<28}", cell.as_ref());
    }
    format!("{}\n", line.trim_end())
}

fn verdict(columns: &[Column]) -> anyhow::Result<()> {
    let mut ran = 0;
    for column in columns {
        if let Ok(results) = &column.outcome {
            if !results.passed() {
                bail!("kernel {}: {}", column.version, results.summary());
            }
            ran += 1;
        }
    }
    if ran == 0 {
        bail!("none of the kernels could be run");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "@kernel 5.10.0-1-cloud-amd64\n@check one: ok\n@check two: ok\n@end\n";
    const BAD: &str = "@kernel 6.1.0-1-cloud-amd64\n@check one: ok\n@check two: failed: no\n@end\n";

    fn column(version: &'static str, console: &str) -> Column {
        Column {
            version,
            outcome: Ok(Results::parse(console)),
        }
    }

    fn missing() -> Column {
        Column {
            version: "6.12",
            outcome: Err("gone".to_owned()),
        }
    }

    #[test]
    fn every_check_and_every_kernel_is_shown() {
        let table = table(&[column("5.10", GOOD), column("6.1", BAD), missing()]);
        let words: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(words[0], ["kernel", "5.10", "6.1", "6.12"]);
        assert_eq!(words[2], ["one", "ok", "ok", "-"]);
        assert_eq!(words[3], ["two", "ok", "FAILED", "-"]);
        assert_eq!(words[4], ["6.1:", "two:", "no"]);
        assert_eq!(words[5], ["6.12:", "gone"]);
    }

    #[test]
    fn one_kernel_must_run_and_none_may_fail() {
        assert!(verdict(&[column("5.10", GOOD), missing()]).is_ok());
        assert!(verdict(&[column("5.10", GOOD), column("6.1", BAD)]).is_err());
        assert!(verdict(&[missing()]).is_err());
        assert!(verdict(&[]).is_err());
    }
}
