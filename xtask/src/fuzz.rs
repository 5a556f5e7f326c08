//! `cargo xtask fuzz`
//!
//! What `cargo fuzz` would do, with the tools that are there anyway: libFuzzer comes as source with
//! the crate libfuzzer-sys, and the stable compiler has its instruments.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use underpass_ebpf_builder::rustc::Rustc;

use crate::{
    project::Project,
    report,
    supervise::{self, Supervisor},
};

/// Coverage that libFuzzer steers by, and memory errors that safe code must not have either: some
/// parsers below ours are not safe code.
const RUSTFLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Zsanitizer=address",
];

/// The longest input, in bytes; a little more than the largest file of the corpora.
const MAX_LENGTH: u32 = 4096;

/// An input that takes longer is a finding, in seconds: the checks take milliseconds.
const TIMEOUT: u32 = 10;

/// More memory than this is a finding, in MiB: the fuzzer itself takes a good part of it.
const MEMORY: u32 = 2048;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How long each target runs
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    time: u32,

    /// Afterwards add to the committed corpora what reaches code that they do not
    #[arg(long)]
    merge: bool,

    /// What to fuzz [default: everything]
    #[arg(value_name = "TARGET")]
    targets: Vec<Target>,
}

/// The fuzz targets, by the names of their files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Target {
    /// First bytes that may be a ClientHello
    ClientHello,
    /// First bytes that may be the head of an HTTP request
    HttpHead,
    /// What a proxy answers to CONNECT
    ConnectAnswer,
    /// What a name server answers a workload
    DnsAnswer,
    /// What a workload asks a name server
    DnsQuery,
    /// Requests and answers of HTTP/1.1
    HttpMessages,
    /// What a proxy sends on an HTTP/2 connection
    #[value(name = "http2_proxy")]
    Http2Proxy,
    /// Policy documents
    Policy,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::ClientHello => "client_hello",
            Self::HttpHead => "http_head",
            Self::ConnectAnswer => "connect_answer",
            Self::DnsAnswer => "dns_answer",
            Self::DnsQuery => "dns_query",
            Self::HttpMessages => "http_messages",
            Self::Http2Proxy => "http2_proxy",
            Self::Policy => "policy",
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let project = Project::find()?;
    let supervisor = Supervisor::new()?;
    let mut targets = arguments.targets.clone();
    if targets.is_empty() {
        targets = Target::value_variants().to_vec();
    }
    let binaries = build(&project, &supervisor, &targets)?;
    let mut findings = 0;
    for target in targets {
        let places = Places::new(&project, &binaries, target)?;
        findings += usize::from(!fuzz(&places, &supervisor, arguments.time)?);
        if arguments.merge {
            merge(&places, &supervisor)?;
        }
    }
    match findings {
        0 => {
            report::result("nothing found");
            Ok(())
        }
        1 => bail!("one target failed"),
        findings => bail!("{findings} targets failed"),
    }
}

/// Whether the targets compile, without the fuzzer and its instruments.
pub(crate) fn check(project: &Project, supervisor: &Supervisor) -> anyhow::Result<()> {
    let manifest = manifest(project);
    supervisor.check(
        project
            .cargo("fmt")
            .arg("--manifest-path")
            .arg(&manifest)
            .arg("--check"),
    )?;
    supervisor.check(
        project
            .cargo("clippy")
            .args(["--locked", "--no-default-features"])
            .arg("--manifest-path")
            .arg(&manifest)
            .arg("--target-dir")
            .arg(&project.target_dir)
            .args(["--", "-D", "warnings"]),
    )
}

fn manifest(project: &Project) -> PathBuf {
    project.root.join("agent/fuzz/Cargo.toml")
}

/// Builds the targets, and returns the directory in which they are.
fn build(
    project: &Project,
    supervisor: &Supervisor,
    targets: &[Target],
) -> anyhow::Result<PathBuf> {
    let host = Rustc::query("rustc".as_ref())?.host;
    let target_dir = project.target_dir.join("fuzz/build");
    let mut command = project.cargo("build");
    command
        .args(["--locked", "--release"])
        .arg("--manifest-path")
        .arg(manifest(project))
        .arg("--target-dir")
        .arg(&target_dir)
        // Naming it keeps the flags away from build scripts and macros.
        .args(["--target", &host])
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", RUSTFLAGS.join(" "))
        // Sanitizers are there in the stable compiler, only not promised.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("AYA_BUILD_SKIP", "1");
    for target in targets {
        command.args(["--bin", target.name()]);
    }
    supervisor.check(&command)?;
    Ok(target_dir.join(host).join("release"))
}

/// The files of a target.
#[derive(Debug)]
struct Places {
    name: &'static str,
    binary: PathBuf,
    /// In the repository; only a merge writes to it.
    committed: PathBuf,
    /// What runs have found worth keeping.
    scratch: PathBuf,
    artifacts: PathBuf,
    log: PathBuf,
}

impl Places {
    fn new(project: &Project, binaries: &Path, target: Target) -> anyhow::Result<Self> {
        let name = target.name();
        let fuzz = project.target_dir.join("fuzz");
        let places = Self {
            name,
            binary: binaries.join(name),
            committed: project.root.join("agent/fuzz/corpus").join(name),
            scratch: fuzz.join("corpus").join(name),
            artifacts: fuzz.join("artifacts").join(name),
            log: fuzz.join(format!("{name}.log")),
        };
        for directory in [&places.scratch, &places.artifacts] {
            fs::create_dir_all(directory)
                .with_context(|| format!("making {}", directory.display()))?;
        }
        Ok(places)
    }

    /// The target with options of libFuzzer, everything it says going to the log.
    fn command(&self, options: &[String]) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"log=$1; shift; exec "$@" 2>"$log""#, "sh"])
            .arg(&self.log)
            .arg(&self.binary)
            .args(options)
            .env(
                "ASAN_OPTIONS",
                "detect_leaks=0:detect_odr_violation=0:quarantine_size_mb=64",
            );
        command
    }
}

/// Whether a target ran for its time and found nothing.
fn fuzz(places: &Places, supervisor: &Supervisor, seconds: u32) -> anyhow::Result<bool> {
    let name = places.name;
    report::progress(format_args!(
        "[{name}] for {seconds} s, log in {}",
        places.log.display()
    ));
    let mut command = places.command(&[
        format!("-max_total_time={seconds}"),
        format!("-max_len={MAX_LENGTH}"),
        format!("-timeout={TIMEOUT}"),
        format!("-rss_limit_mb={MEMORY}"),
        format!("-artifact_prefix={}/", places.artifacts.display()),
        "-print_final_stats=1".to_owned(),
    ]);
    // New finds go to the first directory.
    command.arg(&places.scratch).arg(&places.committed);
    let status = supervisor.run(&command)?;
    let log = read_log(places)?;
    let figures = Figures::read(&log);
    if status.success() {
        report::result(format_args!("{name}: {figures}, nothing found"));
        return Ok(true);
    }
    let Some(artifact) = artifact(&log) else {
        bail!("{name} ended with {status}, see {}", places.log.display());
    };
    report::result(format_args!("{name}: {figures}, FAILED: {}", cause(&log)));
    report::result(format_args!("  input: {artifact}"));
    let mut again = Command::new(&places.binary);
    again.arg(artifact);
    report::result(format_args!("  again: {}", supervise::line(&again)));
    Ok(false)
}

/// Adds to the committed corpus the fewest inputs that reach what it does not.
fn merge(places: &Places, supervisor: &Supervisor) -> anyhow::Result<()> {
    let count = || fs::read_dir(&places.committed).map(Iterator::count);
    let before = count()?;
    let mut command = places.command(&[
        "-set_cover_merge=1".to_owned(),
        // How often code runs is not worth a file.
        "-use_counters=0".to_owned(),
        format!("-max_len={MAX_LENGTH}"),
    ]);
    command.arg(&places.committed).arg(&places.scratch);
    supervisor.check(&command)?;
    report::result(format_args!(
        "{}: {} files added to {}",
        places.name,
        count()? - before,
        places.committed.display()
    ));
    Ok(())
}

/// Inputs are shown in the log, so it is not always text.
fn read_log(places: &Places) -> anyhow::Result<String> {
    let read = |path: &Path| -> io::Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
    };
    read(&places.log).with_context(|| format!("reading {}", places.log.display()))
}

/// What libFuzzer tells of a run, as far as it does.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figures<'a> {
    executions: Option<&'a str>,
    /// Edges of the control flow that were reached.
    coverage: Option<&'a str>,
    /// Edges by how often they were passed, and comparisons.
    features: Option<&'a str>,
    /// Inputs kept.
    corpus: Option<&'a str>,
}

impl<'a> Figures<'a> {
    fn read(log: &'a str) -> Self {
        let mut figures = Self::default();
        for line in log.lines() {
            let mut words = line.split_ascii_whitespace();
            let Some(first) = words.next() else { continue };
            if first == "stat::number_of_executed_units:" {
                figures.executions = words.next();
            } else if let Some(count) = first.strip_prefix('#') {
                // `#1024 pulse cov: 10 ft: 20 corp: 3/9b lim: 4 …`
                figures.executions = Some(count);
                while let Some(word) = words.next() {
                    match word {
                        "cov:" => figures.coverage = words.next(),
                        "ft:" => figures.features = words.next(),
                        "corp:" => {
                            figures.corpus = words.next().and_then(|word| word.split('/').next());
                        }
                        _ => {}
                    }
                }
            }
        }
        figures
    }
}

impl fmt::Display for Figures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            executions,
            coverage,
            features,
            corpus,
        } = self;
        let or_none = |count: &Option<&'_ str>| count.unwrap_or("?").to_owned();
        write!(
            f,
            "{} executions, coverage {} edges and {} features by {} inputs",
            or_none(executions),
            or_none(coverage),
            or_none(features),
            or_none(corpus)
        )
    }
}

/// The file that the input of a finding was written to.
fn artifact(log: &str) -> Option<&str> {
    log.lines().find_map(|line| {
        let (_, path) = line.split_once("Test unit written to ")?;
        Some(path)
    })
}

/// What went wrong, in a line: the panic, else what libFuzzer calls it.
fn cause(log: &str) -> String {
    let mut lines = log.lines();
    let Some(panic) = lines.find(|line| line.contains(" panicked at ")) else {
        let error = log.lines().find(|line| line.contains("ERROR: "));
        return error.unwrap_or("see the log").to_owned();
    };
    let (_, place) = panic.split_once(" panicked at ").unwrap_or_default();
    format!("{place} {}", lines.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "\
INFO: Seed: 1\n\
#2\tINITED cov: 9 ft: 9 corp: 1/1b exec/s: 0 rss: 40Mb\n\
#1024\tNEW    cov: 12 ft: 15 corp: 3/17b lim: 4 exec/s: 9 rss: 41Mb L: 4/4 MS: 1 InsertByte-\n";

    #[test]
    fn the_figures_of_a_run_are_read() {
        let end = "#2048\tDONE   cov: 12 ft: 16 corp: 4/20b lim: 8\nDone 2048 runs in 1 second(s)\n\
                   stat::number_of_executed_units: 2048\nstat::peak_rss_mb: 50\n";
        let log = format!("{RUN}{end}");
        assert_eq!(
            Figures::read(&log).to_string(),
            "2048 executions, coverage 12 edges and 16 features by 4 inputs"
        );
        assert_eq!(artifact(&log), None);
    }

    #[test]
    fn a_finding_is_read() {
        let end = "\nthread '<unnamed>' (7) panicked at checks/policy.rs:3:5:\nproblems are not sorted\n\
                   note: run with a backtrace\n==7== ERROR: libFuzzer: deadly signal\n\
                   artifact_prefix='/a/'; Test unit written to /a/crash-0123\nBase64: AA==\n";
        let log = format!("{RUN}{end}");
        assert_eq!(Figures::read(&log).executions, Some("1024"));
        assert_eq!(artifact(&log), Some("/a/crash-0123"));
        assert_eq!(cause(&log), "checks/policy.rs:3:5: problems are not sorted");
        let slow = "==7== ERROR: libFuzzer: timeout after 10 seconds\n";
        assert_eq!(cause(slow), slow.trim_end());
    }

    #[test]
    fn every_target_has_its_file_and_its_corpus() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/fuzz");
        for target in Target::value_variants() {
            let name = target.name();
            assert_eq!(target.to_possible_value().unwrap().get_name(), name);
            assert!(fuzz.join(format!("fuzz_targets/{name}.rs")).is_file());
            assert!(fuzz.join("corpus").join(name).is_dir());
        }
    }
}
