//! Many connections at a time, and nothing left of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use underpass_tests::addr::OTHER_V4;
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Must as _, Scene, poll};

const COUNT: usize = 2000;
const ROUNDS: usize = 3;

#[test]
fn two_thousand_connections_three_times_leave_nothing_behind() {
    // Inherited by everything the test starts.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).must("read a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).must("raise a limit");

    let scene = Scene::new("many");
    let squid = Squid::start_with(
        &scene.world,
        &Options {
            connect_ports: &[7],
            ..Options::default()
        },
    );
    let _echo = Server::echo(scene.world.inet(), SocketAddr::from((OTHER_V4, 7)));
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    let many = |count: usize, rounds: usize| {
        let program = scene.program("many").args(["203.0.113.11", "7"]);
        let program = program.args([count.to_string(), rounds.to_string()]);
        program
            .run(Duration::from_secs(240))
            .expect_success()
            .stdout
    };
    // What is made once and kept must not count as a leak.
    assert_eq!(many(1, 1), "1 {}\n");
    agent.wait_for_metric("underpass_tunnels_active", &[], 0.0);
    let files = agent.open_files();
    let entries = map_entries(&agent);

    assert_eq!(
        many(COUNT, ROUNDS),
        format!("{COUNT} {{}}\n").repeat(ROUNDS)
    );

    agent.wait_for_metric("underpass_tunnels_active", &[], 0.0);
    agent.wait_for_metric("underpass_proxy_connections_active", &[], 0.0);
    let redirected = (1 + COUNT * ROUNDS) as f64;
    agent.wait_for_metric("underpass_capture_redirected_total", &[], redirected);
    agent.wait_for_metric(
        "underpass_tunnel_requests_total",
        &[("code", "200")],
        redirected,
    );
    agent.wait_for_metric("underpass_capture_refused_total", &[], 0.0);
    agent.wait_for_metric(
        "underpass_capture_original_destination_misses_total",
        &[],
        0.0,
    );

    let emptied = poll(Duration::from_secs(30), || {
        (map_entries(&agent) == entries).then_some(())
    });
    assert!(
        emptied.is_some(),
        "entries before {entries:?}, after {:?}",
        map_entries(&agent)
    );
    let closed = poll(Duration::from_secs(10), || {
        (agent.open_files() <= files).then_some(())
    });
    assert!(
        closed.is_some(),
        "files before {files}, after {}",
        agent.open_files()
    );

    assert_eq!(
        squid.wait_for_log(1 + COUNT * ROUNDS).len(),
        1 + COUNT * ROUNDS
    );
    assert_eq!(
        agent.wait_for_accesses(1 + COUNT * ROUNDS).len(),
        1 + COUNT * ROUNDS
    );
    scene.world.expect_no_direct_arrivals();
}

/// How full each map of the programs is.
fn map_entries(agent: &Agent) -> BTreeMap<String, u64> {
    let metrics = agent.metrics();
    let name = "underpass_capture_map_entries";
    let maps = metrics.label_values(name, "map");
    assert!(!maps.is_empty(), "no map tells its fill");
    let fill = |map: &&str| metrics.sum(name, &[("map", map)]).unwrap_or_default() as u64;
    maps.iter()
        .map(|map| ((*map).to_owned(), fill(map)))
        .collect()
}
