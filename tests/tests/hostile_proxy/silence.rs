//! Connections from which nothing comes any more.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::stage::{Stage, saw};

/// Silence of 10 s, a PING that is not answered for 5 s, and a busy machine.
const FOUND: Duration = Duration::from_secs(20);

#[test]
fn a_connection_that_is_dead_is_found_and_costs_its_tunnels_alone() {
    let stage = Stage::new("dead");
    let mut rounds = stage.rounds(5);
    rounds.expect(5, &stage.agent);
    let start = Instant::now();
    stage.proxy.order(&json!({ "dead": 0 }));
    // Asked for on the dead connection, and served on another.
    let mut late = stage.rounds(3);
    assert_eq!(rounds.next(), saw([("reset", 5)]));
    let took = start.elapsed();
    println!("found after {took:?}");
    assert!(took < FOUND, "{took:?}");
    late.expect(3, &stage.agent);
    let lost = stage.flagged("UC", 5);
    let error = lost[0].text("error");
    assert!(error.contains("did not answer a PING"), "{error}");
    let requests: Vec<u64> = stage
        .proxy
        .connections()
        .iter()
        .map(|one| one.requests)
        .collect();
    assert_eq!(requests, [5, 3]);
    assert_eq!(late.end(), saw([("ended", 3)]));
    stage.expect_clean();
}

/// Nobody asks a connection without tunnels whether it lives; the first that needs it does, and is
/// served by another.
#[test]
fn a_connection_that_died_while_idle_costs_seconds_and_no_tunnel() {
    let stage = Stage::new("dead-idle");
    stage.expect_well();
    stage.proxy.order(&json!({ "dead": 0 }));
    // Longer than after what silence is asked.
    std::thread::sleep(Duration::from_secs(11));
    let start = Instant::now();
    stage.expect_well();
    let took = start.elapsed();
    println!("served after {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(stage.proxy.connections().len(), 2);
    stage.flagged("", 2);
    stage.expect_clean();
}

/// All of the proxy stands still, so no other connection helps.
#[test]
fn a_proxy_that_stands_still_costs_what_a_silent_one_may() {
    let stage = Stage::new("stands-still");
    let mut rounds = stage.rounds(3);
    rounds.expect(3, &stage.agent);
    let start = Instant::now();
    stage.proxy.process().signal(Signal::SIGSTOP);
    let mut late = stage.rounds(2);
    assert_eq!(rounds.next(), saw([("reset", 3)]));
    assert!(start.elapsed() < FOUND, "{:?}", start.elapsed());
    assert_eq!(late.outcome(), saw([("reset", 2)]));
    assert!(start.elapsed() < FOUND, "{:?}", start.elapsed());
    stage.flagged("UC", 3);
    stage.flagged("UT", 2);
    stage.proxy.process().signal(Signal::SIGCONT);
    stage.expect_well();
    stage.expect_clean();
}

/// Silence of the targets is none of the proxy.
#[test]
fn tunnels_that_say_nothing_live_on_a_connection_that_answers() {
    let stage = Stage::new("quiet");
    let mut rounds = stage.rounds(2);
    rounds.expect(2, &stage.agent);
    std::thread::sleep(Duration::from_secs(17));
    assert_eq!(rounds.next(), saw([("echoed", 2)]));
    let pings = stage.proxy.connections()[0]
        .events
        .get("PingReceived")
        .copied();
    assert!(pings >= Some(1), "{pings:?}");
    assert_eq!(rounds.end(), saw([("ended", 2)]));
    stage.expect_clean();
}
