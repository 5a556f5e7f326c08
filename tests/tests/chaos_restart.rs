//! Agents that take over from one another under load. One test: it has the machine to itself.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use underpass_tests::World;
use underpass_tests::agent::{Agent, Endpoints, tunnel_policy, underpass};
use underpass_tests::load::{Load, now};
use underpass_tests::random::Random;
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::gateway::Gateway;
use underpass_tests::servers::identity::Identities;

/// Restarts with a pause between the agents, and without.
const STOPS: u16 = 20;
const OVERLAPS: u16 = 30;
/// Five hundred connections a second, and ten that last a second each: longer than a hand-over.
const SHORT: &str = "short=20:40";
const LONG: &str = "long=10:1000";
const PORTS: [u16; 2] = [9001, 9002];
const INTERVAL: Duration = Duration::from_millis(100);
/// An agent drains at most 25 s.
const DRAINED: Duration = Duration::from_secs(20);

#[test]
fn fifty_restarts_under_load() {
    let seed = Random::seed_from("CHAOS_SEED");
    println!("CHAOS_SEED={seed}");
    let mut random = Random::new(seed);
    let world = World::new("chaos-restart");
    let _dns = Dns::start(&world);
    let identities = Identities::start(world.inet(), &PORTS);
    let _gateway = Gateway::start(&world);
    let policy = tunnel_policy(&[]);
    let launch = |number| {
        let endpoints = Endpoints::numbered(number % 32);
        Agent::launch(underpass(&world), &world, &policy, &[], endpoints)
    };
    let load = || {
        let program = Path::new(env!("CARGO_BIN_EXE_load"));
        let targets = identities.addresses();
        let mut load = Load::start(&world, program, INTERVAL, &targets, &[SHORT, LONG]);
        load.wait_for("the agent serves", |counts| counts.all("ok") > 100);
        load
    };
    let mut agent = launch(0);
    agent.wait_until_ready();

    // One after the other. In between, connections are refused, and only then.
    let mut running = load();
    let start = Instant::now();
    let mut windows = Vec::new();
    for number in 1..=STOPS {
        sleep(random.moment(Duration::from_millis(300)));
        let told = now();
        agent.process().signal(Signal::SIGTERM);
        let status = agent.process().wait(DRAINED).expect("it drains");
        assert!(status.success(), "{}", agent.tails());
        agent = launch(number);
        agent.wait_until_ready();
        windows.push((told, now()));
    }
    let elapsed = start.elapsed();
    let (counts, failed) = running.finish();
    let apart: Duration = windows
        .iter()
        .map(|(from, to)| Duration::from_nanos((to - from) as u64))
        .sum();
    println!(
        "one after the other, {STOPS} in {elapsed:.1?}, {apart:.1?} without an agent: {counts}"
    );
    let unexplained: Vec<_> = failed
        .iter()
        .filter(|it| {
            let between = windows
                .iter()
                .any(|(from, to)| it.start <= *to && it.end >= *from);
            // What an agent has accepted or has in its queue it carries to the end.
            !between || it.outcome != "refused"
        })
        .collect();
    assert!(unexplained.is_empty(), "{unexplained:?}");
    assert!(counts.all("refused") > 0, "{counts}");

    // Side by side.
    running = load();
    let start = Instant::now();
    let mut ending: Vec<Agent> = Vec::new();
    for number in STOPS + 1..=STOPS + OVERLAPS {
        let mut next = launch(number);
        next.wait_until_ready();
        sleep(random.moment(Duration::from_millis(200)));
        agent.process().signal(Signal::SIGTERM);
        ending.push(std::mem::replace(&mut agent, next));
        sleep(random.moment(Duration::from_millis(200)));
    }
    for old in &mut ending {
        let status = old.process().wait(DRAINED).expect("it drains");
        assert!(status.success(), "{}", old.tails());
    }
    let elapsed = start.elapsed();
    let (counts, failed) = running.finish();
    println!("side by side, {OVERLAPS} in {elapsed:.1?}: {counts}");
    // The next agent is on the hooks before this one is off them, and this one carries what it has.
    assert!(failed.is_empty(), "{failed:?}");
    assert!(
        counts.of("short", "ok") > 0 && counts.of("long", "ok") > 0,
        "{counts}"
    );

    world.expect_no_direct_arrivals();
    assert_eq!(identities.misdelivered(), Vec::<String>::new());
}
