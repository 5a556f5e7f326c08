//! Faults of the node: nothing left of something, and clocks.

use std::fs;
use std::time::Duration;

use underpass_tests::process::Cmd;
use underpass_tests::{Must as _, World, wait_for};

use crate::stage::{Saw, Stage};

const SECONDS: Duration = Duration::from_secs(10);

/// The agent has next to no descriptors left while a crowd comes; then it has again.
pub(crate) fn no_descriptors(stage: &mut Stage) -> Saw {
    let pid = stage.agent().pid().to_string();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).must("read limits");
    let usual = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .and_then(|line| line.split_whitespace().nth(3))
        .expect("a limit of open files");
    let limit = |stage: &Stage, soft: &str| {
        let limit = format!("--nofile={soft}:");
        let prlimit = stage.world.host().command("prlimit");
        let prlimit = prlimit.args(["--pid", &pid, &limit]);
        prlimit.run(SECONDS).expect_success();
    };
    let open = stage.agent().open_files() + stage.agent().open_pipes();
    limit(stage, &(open + 3).to_string());
    let mut saw = stage.see("crowd", &["50"]);
    if saw.what == "all reset" {
        // How many find a descriptor is chance; that none waits is not.
        saw.what = "served or reset".to_owned();
    }
    limit(stage, usual);
    assert_eq!(stage.see("echo", &[]).what, "echoed", "{}", stage.tails());
    saw
}

/// More connections than the flow map holds come while the agent is held still.
pub(crate) fn flow_map_full(stage: &mut Stage) -> Saw {
    stage.agent().hold();
    let crowd = stage.fault("crowd", &["60"]).start();
    wait_for("all have connected", SECONDS, || {
        crowd.stdout().contains("up")
    });
    stage.agent().resume();
    let saw = stage.finish(crowd);
    assert_eq!(stage.see("echo", &[]).what, "echoed", "{}", stage.tails());
    saw
}

/// Starts the agent where every listener takes data that comes with a SYN, with a cookie or without.
pub(crate) fn fast_open(world: &World) -> Cmd {
    let script = "sysctl -w net.ipv4.tcp_fastopen=1543 && exec \"$@\"";
    world.host().command("sh").args(["-ec", script, "sh"])
}

/// `--log-file` of [`small_disk`].
pub(crate) const LOG: &str = "/run/small/log";

/// Starts the agent with a disk of one page for its log.
pub(crate) fn small_disk(world: &World) -> Cmd {
    let script = "mkdir /run/small && mount -t tmpfs -o size=4k tmpfs /run/small && exec \"$@\"";
    world.host().command("sh").args(["-ec", script, "sh"])
}

/// So many connections that the log of each of them cannot fit.
pub(crate) fn log_disk_full(stage: &mut Stage) -> Saw {
    let saw = stage.see("crowd", &["100"]);
    let stat = stage.world.host().command("stat");
    let stat = stat.args(["-f", "-c", "%f", "/run/small"]).run(SECONDS);
    assert_eq!(stat.expect_success().stdout, "0\n", "blocks are left");
    saw
}

/// Starts the agent with a log that nobody reads.
pub(crate) fn stuck_reader(world: &World) -> Cmd {
    let script = "mkfifo /run/pipe; sleep 1000 </run/pipe & exec \"$@\" 2>/run/pipe";
    world.host().command("sh").args(["-c", script, "sh"])
}

/// Starts the agent without a standard error.
pub(crate) fn no_stderr(world: &World) -> Cmd {
    let script = "exec \"$@\" 2>&-";
    world.host().command("sh").args(["-c", script, "sh"])
}

/// Starts the agent with clocks a hundred days ahead of everybody else's.
pub(crate) fn other_clocks(world: &World) -> Cmd {
    let ahead = (100 * 24 * 60 * 60).to_string();
    let unshare = world.host().command("unshare");
    unshare.args(["--time", "--monotonic", &ahead, "--boottime", &ahead])
}

/// A connection by an agent whose clocks are its own.
pub(crate) fn clocks_differ(stage: &mut Stage) -> Saw {
    let clock = |process: &str| fs::read_link(format!("/proc/{process}/ns/time")).must("a clock");
    let agent = stage.agent().pid().to_string();
    assert_ne!(clock(&agent), clock("self"), "the agent has our clocks");
    stage.see("echo", &[])
}
