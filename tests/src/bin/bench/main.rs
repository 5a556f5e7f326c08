//! `bench OUT KEY=VALUE…`: what the agent costs, beside its peers and a client that needs none.
//!
//! | key | meaning |
//! |---|---|
//! | `reps` | how often each measurement is made (5) |
//! | `seconds` | how long one takes (2) |
//! | `paths` | ways from the client to the target, separated by commas; all that there are |
//! | `modes` | what is measured, separated by commas; all that there is |
//!
//! Everything runs in one closed world: the client and the agent or its peer on one host, forward
//! proxies and the target on the other, all on the same processors. So what is compared are ratios
//! to `explicit`, a client that speaks CONNECT itself, within one run, of medians. Each round
//! measures every path once, so that whatever changes on the machine changes for all.
//!
//! The table goes to standard output; OUT gets `bench.json` and `bench.svg`.

#![expect(clippy::print_stdout, reason = "it is there to be read")]

mod measure;
mod paths;
mod picture;
mod table;

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;

use measure::{MODES, Measured, Mode, measure};
use paths::{PATHS, Path, Setting};

/// What is to be done.
struct Plan {
    out: PathBuf,
    reps: usize,
    time: Duration,
    paths: Vec<&'static Path>,
    modes: Vec<&'static Mode>,
}

fn main() -> anyhow::Result<()> {
    let plan = Plan::parse(std::env::args().skip(1))?;
    let setting = Setting::new();
    let began = Instant::now();
    let all = plan.reps * plan.paths.len();
    let mut measured: Vec<Measured> = Vec::new();
    for rep in 0..plan.reps {
        for path in &plan.paths {
            let peer = path.up(&setting);
            for mode in plan.modes.iter().filter(|mode| mode.suits(path)) {
                progress(&format!(
                    "{:>3.0} s, {} of {all}: {} {}",
                    began.elapsed().as_secs_f64(),
                    rep * plan.paths.len() + 1,
                    path.name,
                    mode.name
                ));
                measured.push(measure(&setting, path, peer.as_ref(), mode, plan.time)?);
            }
        }
    }
    progress("");
    table::print(&plan.paths, &plan.modes, &measured);
    fs::create_dir_all(&plan.out).with_context(|| format!("make {}", plan.out.display()))?;
    let json: Vec<_> = measured.iter().map(Measured::to_json).collect();
    let json = json!({ "reps": plan.reps, "seconds": plan.time.as_secs_f64(), "measured": json });
    fs::write(plan.out.join("bench.json"), json.to_string())?;
    fs::write(
        plan.out.join("bench.svg"),
        picture::draw(&plan.paths, &measured),
    )?;
    println!(
        "\n{} and bench.svg beside it",
        plan.out.join("bench.json").display()
    );
    let failures = measured
        .iter()
        .filter_map(|one| Some((one, one.error.as_ref()?)));
    let mut ours = 0;
    for (one, error) in failures {
        let (path, mode, failed) = (one.path, one.mode, one.failed);
        println!("{path} {mode}: {failed} failed, the first: {error}");
        // A peer has its own limits.
        ours += u64::from(path.starts_with("underpass")) * failed;
    }
    ensure!(ours == 0, "{ours} operations through the agent failed");
    Ok(())
}

impl Plan {
    fn parse(mut words: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut plan = Self {
            out: words.next().context("no directory for the results")?.into(),
            reps: 5,
            time: Duration::from_secs(2),
            paths: PATHS.iter().collect(),
            modes: MODES.iter().collect(),
        };
        for word in words {
            let (key, value) = word
                .split_once('=')
                .with_context(|| format!("not KEY=VALUE: {word}"))?;
            match key {
                "reps" => plan.reps = value.parse().context("reps")?,
                "seconds" => {
                    plan.time = Duration::try_from_secs_f64(value.parse().context("seconds")?)?;
                }
                "paths" => {
                    plan.paths
                        .retain(|path| value.split(',').any(|name| name == path.name));
                }
                "modes" => {
                    plan.modes
                        .retain(|mode| value.split(',').any(|name| name == mode.name));
                }
                _ => anyhow::bail!("no such key: {key}"),
            }
        }
        ensure!(
            !plan.paths.is_empty() && !plan.modes.is_empty() && plan.reps > 0,
            "nothing to measure; paths: {}; modes: {}",
            PATHS.map(|path| path.name).join(","),
            MODES.map(|mode| mode.name).join(",")
        );
        Ok(plan)
    }
}

/// A line that the next one takes the place of.
fn progress(text: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r\x1b[K{text}");
    } else if !text.is_empty() {
        let _ = writeln!(stderr, "{text}");
    }
}
