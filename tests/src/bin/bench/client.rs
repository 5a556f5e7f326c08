//! The client of all measurements: the program `pace`, and what it tells.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use underpass_tests::cgroup::Cgroup;
use underpass_tests::poll;
use underpass_tests::process::{Cmd, Running};

use super::paths::Setting;
use super::target::Target;

/// Besides the time that it measures: it opens what it keeps, and waits for what is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program of this crate.
pub(crate) fn program(name: &str) -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

/// Who asks, and by which way.
pub(crate) struct Client<'a> {
    pub(crate) setting: &'a Setting,
    pub(crate) cgroup: &'a Cgroup,
    /// The forward proxy that it asks itself.
    pub(crate) via: Option<SocketAddr>,
    /// The process whose processor time counts.
    pub(crate) watch: Option<u32>,
}

/// What it is to do; see `pace`.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    pub(crate) mode: &'static str,
    /// How much at a time.
    pub(crate) workers: usize,
    /// How many connections are opened before and kept; `None`: as the mode has it.
    pub(crate) kept: Option<usize>,
    pub(crate) time: Duration,
}

impl Client<'_> {
    /// Has it done.
    pub(crate) fn work(&self, work: Work) -> anyhow::Result<Told> {
        self.hold(work).map(|(told, _)| told)
    }

    /// The same, for a mode that keeps its connections: they end with the process.
    pub(crate) fn hold(&self, work: Work) -> anyhow::Result<(Told, Running)> {
        let running = self.command(work)?.start();
        let line = poll(work.time + PATIENCE, || {
            let out = running.stdout();
            out.split_once('\n').map(|(line, _)| line.to_owned())
        });
        let line = line.with_context(|| format!("{}\n{}", work.mode, running.tails()))?;
        Ok((Told::read(&line)?, running))
    }

    fn command(&self, work: Work) -> anyhow::Result<Cmd> {
        let mut command = self
            .setting
            .world
            .host()
            .command(program("pace")?)
            .in_cgroup(self.cgroup)
            .arg(work.mode)
            .arg(format!("to={}", Target::address(work.mode == "tls")))
            .arg(format!("workers={}", work.workers))
            .arg(format!("millis={}", work.time.as_millis()))
            .arg(format!("ca={}", self.setting.pki.ca().display()));
        if let Some(proxy) = self.via {
            command = command.arg(format!("via={proxy}"));
        }
        if let Some(kept) = work.kept {
            command = command.arg(format!("kept={kept}"));
        }
        if let Some(pid) = self.watch {
            command = command.arg(format!("watch={pid}"));
        }
        Ok(command)
    }
}

/// What came of it.
#[derive(Clone)]
pub(crate) struct Told {
    pub(crate) done: f64,
    pub(crate) failed: u64,
    /// Why the first one failed.
    pub(crate) error: Option<String>,
    pub(crate) bytes: f64,
    pub(crate) seconds: f64,
    /// Of one operation, in microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Of the process that was watched, in seconds.
    pub(crate) cpu: f64,
}

impl Told {
    fn read(line: &str) -> anyhow::Result<Self> {
        let read: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let number = |key: &str| read[key].as_f64().unwrap_or(f64::NAN);
        ensure!(number("done") > 0.0, "nothing done: {}", read["error"]);
        Ok(Self {
            done: number("done"),
            failed: read["failed"].as_u64().unwrap_or(1),
            error: read["error"].as_str().map(str::to_owned),
            bytes: number("bytes"),
            seconds: number("seconds"),
            p50: number("p50"),
            p99: number("p99"),
            cpu: number("cpu"),
        })
    }

    /// This, if nothing failed.
    pub(crate) fn flawless(self) -> anyhow::Result<Self> {
        let error = self.error.as_deref().unwrap_or_default();
        ensure!(
            self.failed == 0,
            "{} failed, the first: {error}",
            self.failed
        );
        Ok(self)
    }

    /// How many operations a second.
    pub(crate) fn rate(&self) -> f64 {
        self.done / self.seconds
    }

    /// Of the process that was watched, for one operation, in microseconds.
    pub(crate) fn cpu_each(&self) -> f64 {
        self.cpu * 1e6 / self.done
    }

    /// How many bytes came.
    pub(crate) fn gib(&self) -> f64 {
        self.bytes / (1u64 << 30) as f64
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "done": self.done, "failed": self.failed, "error": self.error, "bytes": self.bytes,
            "seconds": self.seconds, "p50_us": self.p50, "p99_us": self.p99,
            "cpu_seconds": self.cpu,
        })
    }
}
