//! `bench OUT KEY=VALUE…`: what the agent costs, beside its peers and a client that needs none.
//!
//! | key | meaning |
//! |---|---|
//! | `reps` | how often each measurement is made (5) |
//! | `seconds` | how long one takes (2) |
//! | `paths` | ways from the client to the target, separated by commas; all that there are |
//! | `modes` | what is measured, separated by commas; all that there is |
//!
//! Some modes are of the agent alone, and the same whatever paths are asked for: see [`study`].
//!
//! Everything runs in one closed world: the client and the agent or its peer on one host, forward
//! proxies and the target on the other, all on the same processors. So what is compared are ratios
//! to `explicit`, a client that speaks CONNECT itself, within one run, of medians. Each round
//! measures every path once, so that whatever changes on the machine changes for all.
//!
//! The table goes to standard output; OUT gets `bench.json` and `bench.svg`.

#![expect(clippy::print_stdout, reason = "it is there to be read")]

mod client;
mod connect;
mod growth;
mod measure;
mod paths;
mod picture;
mod programs;
mod slow;
mod study;
mod table;
mod target;

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use measure::{MODES, Measured, Mode, measure};
use paths::{PATHS, Path, Setting};
use study::{Rounds, STUDIES, Study};

/// What is to be done.
struct Plan {
    out: PathBuf,
    rounds: Rounds,
    paths: Vec<&'static Path>,
    modes: Vec<&'static Mode>,
    studies: Vec<&'static Study>,
}

fn main() -> anyhow::Result<()> {
    let plan = Plan::parse(std::env::args().skip(1))?;
    let setting = Setting::new();
    let measured = plan.measure(&setting)?;
    table::print(&plan.paths, &plan.modes, &measured);
    let mut failed = report_failures(&measured);
    let mut studies = serde_json::Map::new();
    for study in &plan.studies {
        let found = (study.run)(&setting, &plan.rounds).unwrap_or_else(|error| {
            // What others find is not to be lost for it.
            println!("\n{} failed: {error:#}", study.name);
            failed += 1;
            json!({ "error": format!("{error:#}") })
        });
        studies.insert(study.name.to_owned(), found);
    }
    progress("");
    plan.write(setting.congestion, &measured, &studies.into())?;
    ensure!(failed == 0, "{failed} operations through the agent failed");
    Ok(())
}

/// Prints what failed, and gives how much of it failed through the agent.
fn report_failures(measured: &[Measured]) -> u64 {
    let mut ours = 0;
    for one in measured {
        let (path, mode, failed) = (one.path, one.mode, one.told.failed);
        if let Some(error) = &one.told.error {
            println!("{path} {mode}: {failed} failed, the first: {error}");
            // A peer has its own limits.
            ours += u64::from(path.starts_with("underpass")) * failed;
        }
    }
    ours
}

impl Plan {
    fn parse(mut words: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut plan = Self {
            out: words.next().context("no directory for the results")?.into(),
            rounds: Rounds {
                reps: 5,
                time: Duration::from_secs(2),
            },
            paths: PATHS.iter().collect(),
            modes: MODES.iter().collect(),
            studies: STUDIES.iter().collect(),
        };
        for word in words {
            let (key, value) = word
                .split_once('=')
                .with_context(|| format!("not KEY=VALUE: {word}"))?;
            match key {
                "reps" => plan.rounds.reps = value.parse().context("reps")?,
                "seconds" => {
                    let seconds = value.parse().context("seconds")?;
                    plan.rounds.time = Duration::try_from_secs_f64(seconds)?;
                }
                "paths" => {
                    let mut asked = Asked::new(value);
                    plan.paths.retain(|path| asked.has(path.name));
                    asked.expect_all()?;
                }
                "modes" => {
                    let mut asked = Asked::new(value);
                    plan.modes.retain(|mode| asked.has(mode.name));
                    plan.studies.retain(|study| asked.has(study.name));
                    asked.expect_all()?;
                }
                _ => anyhow::bail!("no such key: {key}"),
            }
        }
        ensure!(plan.rounds.reps > 0, "nothing to measure in no repetition");
        Ok(plan)
    }

    /// Every path once in each round.
    fn measure(&self, setting: &Setting) -> anyhow::Result<Vec<Measured>> {
        let began = Instant::now();
        let mut measured = Vec::new();
        let paths = || self.paths.iter().filter(|_| !self.modes.is_empty());
        let rounds = (0..self.rounds.reps).flat_map(|_| paths());
        let all = self.rounds.reps * paths().count();
        for (number, path) in rounds.enumerate() {
            let peer = path.up(setting);
            for mode in self.modes.iter().filter(|mode| mode.suits(path)) {
                progress(&format!(
                    "{:>3.0} s, {} of {all}: {} {}",
                    began.elapsed().as_secs_f64(),
                    number + 1,
                    path.name,
                    mode.name
                ));
                let time = self.rounds.time;
                measured.push(measure(setting, path, peer.as_ref(), mode, time)?);
            }
        }
        progress("");
        Ok(measured)
    }

    fn write(
        &self,
        congestion: &str,
        measured: &[Measured],
        studies: &Value,
    ) -> anyhow::Result<()> {
        let out = &self.out;
        fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
        let json: Vec<_> = measured.iter().map(Measured::to_json).collect();
        let json = json!({
            "reps": self.rounds.reps, "seconds": self.rounds.time.as_secs_f64(),
            "congestion_control": congestion,
            "measured": json, "studies": studies,
        });
        let file = out.join("bench.json");
        fs::write(&file, json.to_string())?;
        let picture = picture::draw(&self.paths, measured);
        fs::write(out.join("bench.svg"), picture)?;
        println!("\n{} and bench.svg beside it", file.display());
        Ok(())
    }
}

/// Names that somebody asks for.
struct Asked<'a>(Vec<(&'a str, bool)>);

impl<'a> Asked<'a> {
    fn new(value: &'a str) -> Self {
        Self(value.split(',').map(|name| (name, false)).collect())
    }

    /// Whether this is asked for.
    fn has(&mut self, name: &str) -> bool {
        let found = self.0.iter_mut().find(|(asked, _)| *asked == name);
        found.map(|(_, there)| *there = true).is_some()
    }

    fn expect_all(&self) -> anyhow::Result<()> {
        let missing = self.0.iter().find(|(_, there)| !there);
        let paths = PATHS.map(|path| path.name).join(",");
        let modes = MODES.map(|mode| mode.name).join(",");
        let studies = STUDIES.map(|study| study.name).join(",");
        match missing {
            Some((name, _)) => {
                anyhow::bail!("no `{name}`; paths: {paths}; modes: {modes},{studies}")
            }
            None => Ok(()),
        }
    }
}

/// A line that the next one takes the place of.
pub(crate) fn progress(text: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r\x1b[K{text}");
    } else if !text.is_empty() {
        let _ = writeln!(stderr, "{text}");
    }
}
