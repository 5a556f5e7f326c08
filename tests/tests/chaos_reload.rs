//! Policies that follow one another under load. One test: it has the machine to itself.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use underpass_tests::addr::{OTHER_V4, OTHER_V6, SITE_V4, SITE_V6};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::load::Load;
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::gateway::Gateway;
use underpass_tests::servers::identity::Identities;
use underpass_tests::{Must as _, World, poll};

const RELOADS: usize = 500;
/// Two hundred connections a second, and some that outlive many policies.
const SHORT: &str = "short=8:40";
const LONG: &str = "long=4:2000";
const PORTS: [u16; 2] = [9001, 9002];
const INTERVAL: Duration = Duration::from_millis(100);

/// What goes direct: by address, by port, by both, in rules that come and go around and inside one
/// another. `other.example` on port 9001 is tunnelled by all of them.
const DIRECT: [&str; 4] = [
    "203.0.113.10, 203.0.113.128/25, '2001:db8:113::10:9001'",
    "'203.0.113.10:9001', 203.0.113.0/29, '2001:db8:113::10'",
    "203.0.113.8/31, '203.0.113.11:9002', '2001:db8:113::/124'",
    "'*:9002', 203.0.113.10",
];

#[test]
fn five_hundred_policies_under_load() {
    let world = World::new("chaos-reload");
    let _dns = Dns::start(&world);
    let identities = Identities::start(world.inet(), &PORTS);
    let _gateway = Gateway::start(&world);
    let policies = DIRECT.map(|direct| tunnel_policy(&[&format!("noProxy: [{direct}]")]));
    // Several threads, however few processors there are.
    let mut agent = Agent::start_with(&world, &policies[0], &["--threads", "2"]);
    let generation = |agent: &Agent| {
        let value = agent.metrics().sum("underpass_policy_generation", &[]);
        value.expect("a generation")
    };

    let program = Path::new(env!("CARGO_BIN_EXE_load"));
    let mut load = Load::start(
        &world,
        program,
        INTERVAL,
        &identities.addresses(),
        &[SHORT, LONG],
    );
    load.wait_for("the agent serves", |counts| counts.all("ok") > 100);
    let file = world.dir().join("policy.yaml");
    let new = world.dir().join("policy.new");
    let start = Instant::now();
    for number in 1..=RELOADS {
        let before = generation(&agent);
        fs::write(&new, &policies[number % policies.len()]).must("write a policy");
        fs::rename(&new, &file).must("put it in place");
        agent.process().signal(Signal::SIGHUP);
        // The watch may have been faster, and then there may be one more.
        let is_next = || (generation(&agent) > before).then_some(());
        let reached = poll(Duration::from_secs(20), is_next);
        assert!(reached.is_some(), "policy {number}\n{}", agent.tails());
    }
    let elapsed = start.elapsed();
    let (counts, failed) = load.finish();
    println!("{RELOADS} policies in {elapsed:.1?}: {counts}");

    assert!(failed.is_empty(), "{failed:?}");
    assert!(
        counts.of("short", "ok") > 0 && counts.of("long", "ok") > 0,
        "{counts}"
    );
    assert_eq!(identities.misdelivered(), Vec::<String>::new());
    assert_eq!(
        agent
            .metrics()
            .sum("underpass_policy_reload_total", &[("result", "failure")]),
        None
    );
    // What no policy lets go direct never did; what some do, did and did not.
    let arrived = |address: IpAddr, port: u16| {
        let arrivals = world.arrivals_at(address).into_iter();
        arrivals.filter(|it| it.destination.port() == port).count()
    };
    assert_eq!(arrived(OTHER_V4.into(), 9001), 0);
    assert_eq!(arrived(OTHER_V6.into(), 9001), 0);
    for (address, port) in [
        (SITE_V4.into(), 9001),
        (SITE_V4.into(), 9002),
        (SITE_V6.into(), 9001),
        (OTHER_V4.into(), 9002),
    ] {
        assert!(arrived(address, port) > 0, "{address} {port}");
    }
    let tunnels = agent
        .metrics()
        .sum("underpass_tunnel_requests_total", &[("code", "200")]);
    assert!(tunnels > Some(0.0), "{tunnels:?}");
}
