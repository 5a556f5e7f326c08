//! What is too much is refused at once and said; when there is room again, all is well again.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use underpass_tests::addr::{OTHER_V4, proxy_v4};
use underpass_tests::agent::{Agent, METRICS, READY, tunnel_policy};
use underpass_tests::cgroup::Cgroup;
use underpass_tests::process::Running;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Must as _, World, http, poll, wait_for};

const LONG: Duration = Duration::from_secs(30);
const REFUSED: &str = "underpass_limit_refused_total";

/// A world in which everything can be reached through the proxy.
struct Open {
    proxy: FakeProxy,
    _echo: Server,
    world: World,
}

impl Open {
    fn new(name: &str) -> Self {
        let world = World::new(name);
        Self {
            proxy: FakeProxy::start(world.inet(), proxy_v4(), Answer::tunnel()),
            _echo: Server::echo(world.inet(), SocketAddr::from((OTHER_V4, 7))),
            world,
        }
    }

    fn agent(&self, options: &[&str]) -> Agent {
        Agent::start_with(&self.world, &policy(), options)
    }

    /// Connections of a program in `cgroup`, held until the value is dropped.
    fn hold(&self, cgroup: &Cgroup, count: usize, how: &str) -> Held {
        let hold = self.world.host().python("hold");
        let hold = hold.args(["203.0.113.11", "7", &count.to_string(), how]);
        Held {
            count,
            running: hold.in_cgroup(cgroup).start(),
        }
    }
}

/// By address: no name server is needed.
fn policy() -> String {
    tunnel_policy(&[]).replace("proxy.example", "192.0.2.20")
}

struct Held {
    count: usize,
    running: Running,
}

impl Held {
    /// How many were answered and how many reset, once that is known of all.
    #[track_caller]
    fn outcome(&self) -> (usize, usize) {
        self.wait_for(self.count)
    }

    /// The same, once it is known of `count`.
    #[track_caller]
    fn wait_for(&self, count: usize) -> (usize, usize) {
        let all = || {
            let out = self.running.stdout();
            let of = |what| out.lines().filter(|line| *line == what).count();
            let (answered, reset) = (of("answered"), of("reset"));
            assert_eq!(out.lines().count(), answered + reset, "{out}");
            (answered + reset >= count).then_some((answered, reset))
        };
        poll(LONG, all).unwrap_or_else(|| panic!("{}", self.running.tails()))
    }
}

fn refused(agent: &Agent, limit: &str) -> f64 {
    let labels = [("limit", limit)];
    let refused = agent.metrics().sum(REFUSED, &labels);
    refused.unwrap_or_else(|| panic!("no series for {limit}"))
}

#[test]
fn connections_in_all_are_limited() {
    let open = Open::new("limit-all");
    let workload = open.world.workload();
    let options = [
        "--max-connections",
        "8",
        "--max-connections-per-workload",
        "0",
    ];
    let agent = open.agent(&options);

    let held = open.hold(workload, 11, "in-turn");
    assert_eq!(held.outcome(), (8, 3));
    for record in agent.wait_for_accesses(3) {
        assert_eq!(record.text("flags"), "UO");
        assert_eq!(
            record.text("error"),
            "the limit of 8 connections (--max-connections) is reached"
        );
        assert_eq!(record.text("original_dst"), "203.0.113.11:7");
    }
    assert_eq!(refused(&agent, "connections"), 3.0);
    assert_eq!(refused(&agent, "workload"), 0.0);

    drop(held);
    agent.wait_for_accesses(11);
    assert_eq!(open.hold(workload, 8, "in-turn").outcome(), (8, 0));
    assert_eq!(refused(&agent, "connections"), 3.0);
    open.world.expect_no_direct_arrivals();
}

#[test]
fn one_workload_does_not_use_up_what_is_for_all() {
    let open = Open::new("limit-workload");
    let (greedy, modest) = (
        open.world.workload().child("greedy"),
        open.world.workload().child("modest"),
    );
    // A quarter of it for each.
    let agent = open.agent(&["--max-connections", "16"]);
    let limits = &agent.admin("/config_dump")["agent"];
    assert_eq!(limits["max_connections_per_workload"], 4, "{limits}");

    let held = open.hold(&greedy, 9, "in-turn");
    assert_eq!(held.outcome(), (4, 5));
    let record = &agent.wait_for_accesses(5)[0];
    assert_eq!(record.text("flags"), "UO");
    assert_eq!(record.number("src.cgroup"), greedy.id());
    assert_eq!(
        record.text("error"),
        "the limit of 4 connections of one workload (--max-connections-per-workload) is reached"
    );
    assert_eq!(refused(&agent, "workload"), 5.0);

    assert_eq!(open.hold(&modest, 4, "in-turn").outcome(), (4, 0));
    drop(held);
    agent.wait_for_accesses(13);
    assert_eq!(open.hold(&greedy, 4, "in-turn").outcome(), (4, 0));
    assert_eq!(refused(&agent, "workload"), 5.0);
    assert_eq!(refused(&agent, "connections"), 0.0);
    open.world.expect_no_direct_arrivals();
}

#[test]
fn a_proxy_that_does_not_answer_holds_no_more_than_the_pending() {
    let open = Open::new("limit-pending");
    let agent = open.agent(&["--max-pending-tunnels", "3"]);

    open.proxy.set_answer(Answer::Silence);
    let held = open.hold(open.world.workload(), 5, "at-once");
    assert_eq!(held.wait_for(2), (0, 2));
    for record in agent.wait_for_accesses(2) {
        assert_eq!(record.text("flags"), "UO");
        let error = record.text("error");
        assert!(
            error.contains("3 tunnels being opened (--max-pending-tunnels)"),
            "{error}"
        );
    }
    assert_eq!(open.proxy.request_lines(3).len(), 3);
    assert_eq!(refused(&agent, "pending_tunnels"), 2.0);

    // The others are given up in the end, and there is room again.
    open.proxy.set_answer(Answer::tunnel());
    assert_eq!(held.outcome(), (0, 5));
    agent.wait_for_accesses(5);
    // Open tunnels are not pending.
    let workload = open.world.workload();
    assert_eq!(open.hold(workload, 6, "in-turn").outcome(), (6, 0));
    assert_eq!(refused(&agent, "pending_tunnels"), 2.0);
    open.world.expect_no_direct_arrivals();
}

#[test]
fn without_descriptors_connections_are_reset_and_later_ones_served() {
    let open = Open::new("descriptors");
    let workload = open.world.workload();
    let mut agent = open.agent(&[]);
    let soft = agent
        .metrics()
        .sum("process_max_fds", &[])
        .expect("a limit");
    let start = Instant::now();
    let before = agent.open_files();

    // With an even and an odd number to spare, so that both the first and the second descriptor
    // of a connection is the one that cannot be had.
    for spare in [20, 21] {
        allow(&agent, before + agent.open_pipes() + spare);
        for (count, how) in [(30, "in-turn"), (100, "at-once")] {
            let held = open.hold(workload, count, how);
            // Each of them is told; none hangs.
            let (answered, reset) = held.outcome();
            assert!(answered > 0, "{}", agent.tails());
            assert!(
                reset >= count - 12,
                "{answered} of {count} with {spare} files"
            );
            drop(held);
            wait_for("the connections are closed", LONG, || {
                agent.open_files() <= before + 4
            });
        }
    }
    allow(&agent, soft as usize);
    assert_eq!(open.hold(workload, 30, "in-turn").outcome(), (30, 0));
    wait_for("readiness", LONG, || {
        http::get(open.world.host(), READY, "/healthz/ready").is_ok_and(|it| it.status == 200)
    });

    let shed = refused(&agent, "descriptors");
    assert!(shed > 0.0, "{}", agent.tails());
    let record = agent.wait_for_access("one for want of descriptors", |record| {
        record
            .text("error")
            .contains("file descriptors (RLIMIT_NOFILE")
    });
    assert_eq!(record.text("flags"), "UO");
    assert_eq!(record.text("original_dst"), "203.0.113.11:7");

    // Many failures, few lines: one a second for each listener.
    let log = agent.process().stderr();
    let failures = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["message"] == "cannot accept connections");
    let times: Vec<f64> = failures.filter_map(|line| line["times"].as_f64()).collect();
    let lines = times.len() as u64;
    assert!(
        (1..=2 * (start.elapsed().as_secs() + 1)).contains(&lines),
        "{lines} lines in {:?}",
        start.elapsed()
    );
    open.world.expect_no_direct_arrivals();
}

#[test]
fn connections_leave_descriptors_for_everything_else() {
    let open = Open::new("reserve");
    let workload = open.world.workload();
    let agent = open.agent(&[]);

    allow(&agent, 400);
    let held = open.hold(workload, 110, "in-turn");
    assert_eq!(held.outcome(), (100, 10));
    assert_eq!(refused(&agent, "descriptors"), 10.0);
    let record = &agent.wait_for_accesses(10)[0];
    assert_eq!(record.text("flags"), "UO");
    let error = record.text("error");
    assert!(
        error.starts_with("the limit of 400 file descriptors (RLIMIT_NOFILE"),
        "{error}"
    );
    let ready = http::get(open.world.host(), READY, "/healthz/ready").must("ask");
    assert_eq!(ready.status, 200, "{ready:?}");

    drop(held);
    agent.wait_for_accesses(110);
    assert_eq!(open.hold(workload, 100, "in-turn").outcome(), (100, 0));
    open.world.expect_no_direct_arrivals();
}

#[test]
fn the_agent_takes_all_descriptors_it_may_and_says_if_they_are_too_few() {
    let world = World::new("nofile");
    let file = world.dir().join("policy.yaml");
    std::fs::write(&file, policy()).must("write a policy");
    let limited = |hard: &str| {
        let prlimit = world.host().command("prlimit");
        prlimit
            .arg(format!("--nofile=900:{hard}"))
            .arg(underpass_tests::agent::binary())
    };
    let agent = limited("5000").args(["run", "--max-connections", "3000", "--policy"]);
    let agent = agent
        .arg(&file)
        .arg("--cgroup")
        .arg(world.workload().path());
    let mut agent = agent.args(["--metrics-addr", &METRICS.to_string()]).start();
    agent.wait_until_listening(world.host(), METRICS);
    let text = http::get(world.host(), METRICS, "/metrics")
        .must("scrape")
        .body;
    assert!(text.contains("\nprocess_max_fds 5000\n"), "{text}");
    let log = agent.wait_for_logged("--max-connections");
    let warning = log.lines().find(|line| line.contains("--max-connections"));
    let warning = warning.unwrap_or_else(|| panic!("no warning in {log}"));
    for part in ["WARN", "3000 connections", "6512", "5000"] {
        assert!(warning.contains(part), "no {part} in {warning}");
    }
    drop(agent);

    // A command must not notice.
    let exec = limited("5000").args(["exec", "--proxy", "http://192.0.2.20:3128"]);
    let exec = exec.args(["--", "sh", "-c", "ulimit -Sn; ulimit -Hn"]);
    let done = exec.run(LONG).expect_success();
    assert_eq!(
        (done.stdout.as_str(), done.stderr.as_str()),
        ("900\n5000\n", "")
    );
}

/// Sets how many descriptors a running agent may have.
fn allow(agent: &Agent, files: usize) {
    let pid = agent.pid().to_string();
    let done = std::process::Command::new("prlimit")
        .args(["--pid", &pid, &format!("--nofile={files}:")])
        .status();
    assert!(done.must("run prlimit").success());
}
