//! `soak MINUTES`: mixed load on one agent for a long time, and what it holds meanwhile.
//!
//! Prints a line a minute and a verdict. What may not grow is compared between the second and the
//! last quarter of the run, by medians: the first quarter is for caches and the allocator to warm
//! up, and a median does not see the moment at which a sample was taken.

#![expect(clippy::print_stdout, reason = "it is there to be read")]

use std::fs;
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::load::{Counts, Load};
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::gateway::Gateway;
use underpass_tests::servers::identity::Identities;
use underpass_tests::usage::{number_after, processor_time, resident};
use underpass_tests::{Must as _, World};

/// About ninety connections a second, and forty that stay open: together with the servers less
/// than half a processor.
const LOAD: [&str; 6] = [
    "short=16:320",
    "half=4:200",
    "reset=4:200",
    "slow=2:4000",
    "long=20:30000",
    "idle=20:60000",
];

const PORTS: [u16; 2] = [9001, 9002];

const INTERVAL: Duration = Duration::from_secs(2);

/// What growth of a median is none.
///
/// Memory: two mebibytes, which is what the allocator's arenas differ by from one moment to the
/// next under a load that comes and goes. In an hour at ninety connections a second, a connection
/// that leaves thirteen bytes behind is beyond it.
const TOLERANCE_MEMORY: f64 = 2048.0;
/// Descriptors: each connection has two, and about ten of the short ones are there at a time or
/// not. A descriptor lost in one of eight thousand connections is beyond it after an hour.
const TOLERANCE_FILES: f64 = 20.0;
/// Entries: those of connections between `connect` and `accept`, and of clients that were gone
/// before; the latter for two sweeps.
const TOLERANCE_ENTRIES: f64 = 8.0;

/// One look at the agent.
#[derive(Clone, Debug)]
struct Sample {
    at: Duration,
    /// Resident memory in KiB.
    memory: f64,
    files: f64,
    entries: f64,
    tunnels: f64,
    /// Processor time of the agent and of the whole world since the start.
    agent_cpu: f64,
    world_cpu: f64,
}

/// What of a sample is looked at.
type Pick = fn(&Sample) -> f64;

fn main() -> anyhow::Result<ExitCode> {
    let minutes: f64 = std::env::args()
        .nth(1)
        .context("how many minutes?")?
        .parse()
        .context("not a number of minutes")?;
    let length = Duration::from_secs_f64(minutes * 60.0);
    // Before there are threads, which inherit it: whoever interrupts this gets a verdict as well.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let signals = SignalFd::new(&signals)?;

    let world = World::new("soak");
    let _dns = Dns::start(&world);
    let identities = Identities::start(world.inet(), &PORTS);
    let _gateway = Gateway::start(&world);
    // The access log is written as always, but an hour of it need not be kept.
    // And several threads do it, however few processors there are.
    let options = ["--log-file", "/dev/null", "--threads", "2"];
    let agent = Agent::start_with(&world, &tunnel_policy(&[]), &options);
    let program = std::env::current_exe()?.with_file_name("load");
    let mut load = Load::start(&world, &program, INTERVAL, &identities.addresses(), &LOAD);

    println!("{minutes} minutes of: {}", LOAD.join(", "));
    println!("(KIND=THREADS:MILLISECONDS; see tests/src/bin/load.rs). Memory in KiB.\n");
    println!(
        "{:>6} {:>12} {:>6} {:>7} {:>8} {:>8} {:>8} {:>6} {:>8} {:>7} {:>9} {:>9}",
        "minute",
        "connections",
        "failed",
        "direct",
        "memory",
        "least",
        "most",
        "files",
        "entries",
        "tunnels",
        "agent CPU",
        "all CPU"
    );
    let start = Instant::now();
    let mut samples: Vec<Sample> = Vec::new();
    let mut counts = Counts::default();
    let mut minute = 0;
    let mut told = false;
    while !told && start.elapsed() < length {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let left = length.saturating_sub(start.elapsed()).min(INTERVAL);
        told = nix::poll::poll(&mut fds, PollTimeout::try_from(left)?)? > 0;
        samples.push(Sample::take(&world, &agent, start.elapsed()));
        counts = load.counts();
        // Read all the time: the kernel keeps only so many of them for us.
        let direct = world.direct_arrivals().len();
        let ended = told || start.elapsed() >= length;
        if ended || start.elapsed().as_secs() / 60 > minute {
            minute += 1;
            row(minute, &samples, &counts, direct);
        }
    }
    if told {
        println!("\nInterrupted.");
    }
    let elapsed = start.elapsed();
    let wrong = load.wrong();
    // Connections that end here end well, or are counted.
    counts = if wrong.is_empty() {
        load.finish().0
    } else {
        counts
    };
    println!("\nConnections: {counts}");
    let unbroken = [
        ("answers that were wrong", wrong.len()),
        (
            "deliveries to another server",
            identities.misdelivered().len(),
        ),
        ("connections that failed", counts.failed() as usize),
        ("connections past the tunnel", world.direct_arrivals().len()),
    ];
    let mut good = true;
    for (what, count) in unbroken {
        println!("{what}: {count}");
        good &= count == 0;
    }
    good &= flat(&samples, elapsed, counts.all("ok"));
    println!(
        "\n{}",
        if good {
            "FLAT, and nothing failed."
        } else {
            "NOT as it should be."
        }
    );
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Sample {
    fn take(world: &World, agent: &Agent, at: Duration) -> Self {
        let metrics = agent.metrics();
        let sum = |name| metrics.sum(name, &[]).unwrap_or(f64::NAN);
        Self {
            at,
            memory: resident(agent.pid()),
            files: agent.open_files() as f64,
            entries: sum("underpass_capture_map_entries"),
            tunnels: sum("underpass_tunnels_active"),
            agent_cpu: processor_time(agent.pid()),
            world_cpu: processor_time(std::process::id())
                + [world.workload(), world.services()]
                    .map(|cgroup| {
                        let stat = fs::read_to_string(cgroup.path().join("cpu.stat"));
                        number_after(&stat.must("read cpu.stat"), "usage_usec ") / 1e6
                    })
                    .iter()
                    .sum::<f64>(),
        }
    }
}

/// One line of the table: of the samples of the last minute.
fn row(minute: u64, samples: &[Sample], counts: &Counts, direct: usize) {
    let end = samples.last().map_or(Duration::ZERO, |sample| sample.at);
    let since = end.saturating_sub(Duration::from_secs(60));
    let last: Vec<&Sample> = samples.iter().filter(|sample| sample.at >= since).collect();
    let of = |pick: Pick| -> Vec<f64> { last.iter().map(|it| pick(it)).collect() };
    let memory = of(|it| it.memory);
    let share = |pick: Pick| {
        let (Some(first), Some(last)) = (last.first(), last.last()) else {
            return 0.0;
        };
        100.0 * (pick(last) - pick(first)) / (last.at - first.at).as_secs_f64().max(0.001)
    };
    println!(
        "{minute:>6} {:>12} {:>6} {direct:>7} {:>8.0} {:>8.0} {:>8.0} {:>6.0} {:>8.0} {:>7.0} {:>8.1}% {:>8.1}%",
        counts.all("ok"),
        counts.failed(),
        median(memory.clone()),
        memory.iter().copied().fold(f64::INFINITY, f64::min),
        memory.iter().copied().fold(0.0, f64::max),
        median(of(|it| it.files)),
        median(of(|it| it.entries)),
        median(of(|it| it.tunnels)),
        share(|it| it.agent_cpu),
        share(|it| it.world_cpu),
    );
}

/// Compares the second quarter with the last, and tells.
fn flat(samples: &[Sample], length: Duration, connections: u64) -> bool {
    let quarter = |from: u32| -> Vec<&Sample> {
        let range = length * from / 4..=length * (from + 1) / 4;
        samples
            .iter()
            .filter(|sample| range.contains(&sample.at))
            .collect()
    };
    let (second, last) = (quarter(1), quarter(3));
    println!(
        "\n{:<22} {:>14} {:>12} {:>10} {:>10}",
        "medians of", "second quarter", "last quarter", "growth", "allowed"
    );
    let mut good = true;
    let compared: [(&str, Pick, f64); 3] = [
        ("memory, KiB", |it| it.memory, TOLERANCE_MEMORY),
        ("descriptors", |it| it.files, TOLERANCE_FILES),
        ("map entries", |it| it.entries, TOLERANCE_ENTRIES),
    ];
    for (what, pick, allowed) in compared {
        let of = |samples: &[&Sample]| median(samples.iter().map(|it| pick(it)).collect());
        let (before, after) = (of(&second), of(&last));
        let growth = after - before;
        println!("{what:<22} {before:>14.0} {after:>12.0} {growth:>10.0} {allowed:>10.0}");
        // Also where there is no sample to compare.
        good &= growth <= allowed;
    }
    // From the middle of the one quarter to that of the other is half of the run.
    let between = connections as f64 / 2.0;
    println!(
        "A leak of {:.0} bytes of memory per connection would have been seen.",
        TOLERANCE_MEMORY * 1024.0 / between.max(1.0)
    );
    good
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
