//! When capture stops working, readiness, a metric and the log say so and say what.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use underpass_tests::agent::{Agent, READY, tunnel_policy};
use underpass_tests::http::{self, Answer};
use underpass_tests::{Must as _, World, poll, wait_for};

/// What readiness promises.
const PROMISED: Duration = Duration::from_secs(10);
/// For what nobody promised a time.
const LONG: Duration = Duration::from_secs(30);

/// As `enum bpf_attach_type` has them.
const INET4_CONNECT: &str = "10";
const INET4_GETPEERNAME: &str = "29";

#[test]
fn a_detached_program_is_named() {
    let world = World::new("detached");
    let mut agent = Agent::start(&world, &tunnel_policy(&[]));
    for check in CHECKS {
        assert_eq!(healthy(&agent, check), Some(1.0), "{check}");
    }

    // Canaries do not see this one.
    detach(&world, INET4_GETPEERNAME);
    let answer = wait_for_readiness(&world, PROMISED, |answer| answer.status != 200);
    assert!(
        answer
            .body
            .contains("programs: `getpeername4` not attached")
            && !answer.body.contains("connect4"),
        "{answer:?}"
    );
    assert_eq!(healthy(&agent, "programs"), Some(0.0));
    for check in CHECKS.into_iter().filter(|check| *check != "programs") {
        assert_eq!(healthy(&agent, check), Some(1.0), "{check}");
    }
    // Two rounds at least.
    sleep(Duration::from_secs(7));
    let failures = |agent: &mut Agent, check| events(agent, check, "readiness check failed").len();
    assert_eq!(failures(&mut agent, "programs"), 1, "one event per change");

    // This one they do.
    detach(&world, INET4_CONNECT);
    wait_for_readiness(&world, PROMISED, |answer| {
        answer
            .body
            .contains("programs: `connect4`, `getpeername4` not attached")
            && answer
                .body
                .contains("canary-ipv4: a canary connection was not captured")
    });
    assert_eq!(healthy(&agent, "canary-ipv4"), Some(0.0));
    assert_eq!(healthy(&agent, "canary-ipv6"), Some(1.0));
    wait_for("the event", PROMISED, || {
        failures(&mut agent, "canary-ipv4") == 1
    });
    assert_eq!(failures(&mut agent, "canary-ipv6"), 0);
}

#[test]
fn a_full_flow_map_is_named_until_there_is_room() {
    const CAPACITY: &str = "16";
    const MORE: &str = "17";
    let world = World::new("map-full");
    let mut agent = Agent::start_with(
        &world,
        &tunnel_policy(&[]),
        &["--max-connections", CAPACITY],
    );

    let workload = |program, args: &[&str]| {
        let python = world.host().python(program).args(args);
        python.in_cgroup(world.workload()).start()
    };
    // Those that do not get through the handshake take no room.
    let stuck = workload("stuck", &["203.0.113.11", "443", CAPACITY]);
    wait_for("they hang", LONG, || stuck.stdout().contains("stuck"));
    let entries = agent.metrics().sum("underpass_capture_map_entries", &[]);
    assert_eq!(entries, Some(0.0));

    agent.hold();
    let crowd = workload("fault", &["crowd", "203.0.113.11", "443", MORE]);
    wait_for("all have connected", LONG, || crowd.stdout().contains("up"));
    agent.resume();
    let answer = wait_for_readiness(&world, PROMISED, |answer| answer.body.contains("flow-map"));
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(
        answer
            .body
            .contains("flow-map: the map FLOWS is full: 16 connections (--max-connections)"),
        "{answer:?}"
    );
    assert_eq!(healthy(&agent, "flow-map"), Some(0.0));
    assert_eq!(healthy(&agent, "programs"), Some(1.0));

    wait_for_readiness(&world, LONG, |answer| answer.status == 200);
    assert_eq!(healthy(&agent, "flow-map"), Some(1.0));
    assert_eq!(
        events(&mut agent, "flow-map", "readiness check failed").len(),
        1
    );
    // The first was at the start.
    assert_eq!(
        events(&mut agent, "flow-map", "readiness check passed").len(),
        2
    );
}

#[test]
fn a_canary_that_cannot_be_made_is_named_until_it_can() {
    let world = World::new("no-canary");
    let agent = Agent::start(&world, &tunnel_policy(&[]));
    let most = world.workload().path().join("cgroup.max.descendants");

    fs::write(&most, "0").must("forbid cgroups below the workload's");
    kill_canaries(&world, Signal::SIGKILL);
    let answer = wait_for_readiness(&world, PROMISED, |answer| {
        answer.body.contains("canary-ipv4: ") && answer.body.contains("canary-ipv6: ")
    });
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(!answer.body.contains("programs"), "{answer:?}");
    assert_eq!(healthy(&agent, "canary-ipv4"), Some(0.0));

    fs::write(&most, "max").must("allow them again");
    wait_for_readiness(&world, LONG, |answer| answer.status == 200);
    assert_eq!(healthy(&agent, "canary-ipv4"), Some(1.0));
}

#[test]
fn a_canary_that_was_stopped_is_replaced() {
    let world = World::new("held-canary");
    let mut agent = Agent::start(&world, &tunnel_policy(&[]));
    kill_canaries(&world, Signal::SIGSTOP);
    let failed = poll(PROMISED, || {
        events(&mut agent, "canary-ipv4", "readiness check failed")
            .pop()
            .or_else(|| events(&mut agent, "canary-ipv6", "readiness check failed").pop())
    });
    let failed = failed.unwrap_or_else(|| panic!("{}", agent.tails()));
    assert!(failed.contains("helper process"), "{failed}");
    wait_for_readiness(&world, LONG, |answer| answer.status == 200);
}

/// All that are looked at.
const CHECKS: [&str; 5] = [
    "canary-ipv4",
    "canary-ipv6",
    "flow-map",
    "programs",
    "tasks",
];

fn healthy(agent: &Agent, check: &str) -> Option<f64> {
    let labels = [("check", check)];
    agent.metrics().sum("underpass_capture_healthy", &labels)
}

/// The reasons of the events about a check.
fn events(agent: &mut Agent, check: &str, message: &str) -> Vec<String> {
    let log = agent.process().stderr();
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["check"] == check && line["message"] == message)
        .map(|line| line["reason"].to_string())
        .collect()
}

#[track_caller]
fn wait_for_readiness(
    world: &World,
    within: Duration,
    condition: impl Fn(&Answer) -> bool,
) -> Answer {
    let ask = || http::get(world.host(), READY, "/healthz/ready").must("ask for readiness");
    poll(within, || Some(ask()).filter(&condition)).unwrap_or_else(|| panic!("{:?}", ask()))
}

/// Takes the agent's program from one hook, as another tool on the node might.
#[track_caller]
fn detach(world: &World, hook: &str) {
    let detach = world.host().python("detach_link");
    let detach = detach.arg(world.workload().path()).arg(hook);
    let done = detach.run(LONG).expect_success();
    assert_eq!(done.stdout.trim(), "1", "links of hook {hook}");
}

/// Sends a signal to the helper processes of canaries.
fn kill_canaries(world: &World, signal: Signal) {
    let below = fs::read_dir(world.workload().path()).must("list cgroups");
    let canaries = below
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("canary"));
    let mut killed = 0;
    for canary in canaries {
        let procs = fs::read_to_string(canary.path().join("cgroup.procs")).must("list processes");
        for pid in procs.lines().filter_map(|line| line.parse().ok()) {
            kill(Pid::from_raw(pid), signal).must("signal a helper");
            killed += 1;
        }
    }
    assert_eq!(killed, 1, "one agent has one canary");
}
