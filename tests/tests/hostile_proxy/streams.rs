//! How many streams a connection takes, and streams that the proxy resets.

use serde_json::json;
use underpass_tests::servers::h2_proxy::frame::{
    CANCEL, MAX_STREAMS, REFUSED_STREAM, reset, settings,
};

use crate::stage::{Stage, saw};

const MANY: u64 = 50;

/// As many connections as are needed, and each as full as it may be.
#[track_caller]
fn grows(name: &str, limit: u32) {
    let stage = Stage::with(name, &[(MAX_STREAMS, limit)]);
    let mut rounds = stage.rounds(MANY as usize);
    rounds.expect(MANY, &stage.agent);
    assert_eq!(rounds.next(), saw([("echoed", MANY)]));
    let all = stage.proxy.connections();
    let peaks: Vec<u64> = all.iter().map(|one| one.peak).collect();
    assert!(peaks.iter().all(|peak| *peak <= limit.into()), "{peaks:?}");
    let needed = MANY.div_ceil(limit.into());
    // It may be dialled for one more than come to use.
    let most = needed + 4;
    assert!((needed..=most).contains(&(all.len() as u64)), "{peaks:?}");
    assert_eq!(rounds.end(), saw([("ended", MANY)]));
    stage.flagged("", MANY as usize);
    stage.expect_clean();
}

#[test]
fn one_stream_a_connection_is_a_connection_a_tunnel() {
    grows("one-stream", 1);
}

#[test]
fn two_streams_a_connection_are_two_tunnels_a_connection() {
    grows("two-streams", 2);
}

#[test]
fn a_proxy_may_take_fewer_streams_later_and_more_again() {
    let stage = Stage::new("fewer-streams");
    let mut first = stage.rounds(10);
    first.expect(10, &stage.agent);
    stage.proxy.send(0, &settings(&[(MAX_STREAMS, 2)]));
    wait_until_acknowledged(&stage, 2);
    let mut second = stage.rounds(3);
    second.expect(3, &stage.agent);
    assert_eq!(first.next(), saw([("echoed", 10)]));
    // One more may have been made than came to use.
    let requests = |at: usize| stage.proxy.connections()[at].requests;
    assert_eq!(requests(0), 10);
    stage.proxy.send(0, &settings(&[(MAX_STREAMS, 11)]));
    wait_until_acknowledged(&stage, 3);
    let mut third = stage.rounds(1);
    third.expect(1, &stage.agent);
    assert_eq!(requests(0), 11);
    for (rounds, count) in [(first, 10), (second, 3), (third, 1)] {
        assert_eq!(rounds.end(), saw([("ended", count)]));
    }
    stage.expect_clean();
}

/// A server that takes none for now is to say so for a short time only (RFC 9113 section 6.5.2).
#[test]
fn a_proxy_that_takes_no_streams_is_waited_for_and_not_given_connections() {
    let stage = Stage::with("no-streams", &[(MAX_STREAMS, 0)]);
    let mut rounds = stage.rounds(20);
    stage
        .proxy
        .wait_for("there is a second connection", |all| all.len() == 2);
    std::thread::sleep(std::time::Duration::from_secs(3));
    let all = stage.proxy.connections();
    assert_eq!((all.len(), all[0].requests), (2, 0), "{all:?}");
    stage.proxy.send(0, &settings(&[(MAX_STREAMS, 100)]));
    rounds.expect(20, &stage.agent);
    assert_eq!(rounds.end(), saw([("ended", 20)]));
    stage.expect_clean();
}

/// The agent knows of so many SETTINGS of its first connection.
#[track_caller]
fn wait_until_acknowledged(stage: &Stage, count: u64) {
    stage.proxy.wait_for("SETTINGS are acknowledged", |all| {
        all[0].events.get("SettingsAcknowledged") == Some(&count)
    });
}

/// Each request fails by itself, and tells.
#[test]
fn a_storm_of_resets_costs_each_request_and_nothing_else() {
    const STORM: u64 = 300;
    let stage = Stage::new("resets");
    let mut standing = stage.rounds(2);
    standing.expect(2, &stage.agent);
    let before = stage.memory();
    stage.proxy.answer(&json!({ "reset": CANCEL }));
    let mut storm = stage.rounds(STORM as usize);
    assert_eq!(storm.outcome(), saw([("reset", STORM)]));
    let failures = "underpass_proxy_connections_failures_total";
    let storm = [("reason", "reset")];
    stage.agent.wait_for_metric(failures, &storm, STORM as f64);
    stage.flagged("UF", STORM as usize);
    assert_eq!(standing.next(), saw([("echoed", 2)]));
    assert_eq!(stage.proxy.connections().len(), 1);
    stage.proxy.answer(&json!({}));
    stage.expect_well();
    stage.expect_bounded(before);
    stage.expect_rest();
    assert_eq!(standing.end(), saw([("ended", 2)]));
    stage.expect_clean();
}

/// What was refused may be asked for elsewhere, but not for ever.
#[test]
fn a_storm_of_refused_streams_is_tried_elsewhere_a_few_times() {
    const STORM: u64 = 300;
    let stage = Stage::new("refused-streams");
    let mut standing = stage.rounds(2);
    standing.expect(2, &stage.agent);
    stage.proxy.answer(&json!({ "reset": REFUSED_STREAM }));
    let mut storm = stage.rounds(STORM as usize);
    assert_eq!(storm.outcome(), saw([("reset", STORM)]));
    let all = stage.proxy.connections();
    let requests: u64 = all.iter().map(|one| one.requests).sum();
    println!("{requests} requests on {} connections", all.len());
    assert!(requests <= 2 + 3 * STORM, "{requests}");
    assert!(all.len() <= 8, "{}", all.len());
    stage.proxy.answer(&json!({}));
    stage.expect_well();
    assert_eq!(standing.next(), saw([("echoed", 2)]));
    assert_eq!(standing.end(), saw([("ended", 2)]));
    stage.expect_clean();
}

#[test]
fn a_reset_ends_its_tunnel_and_no_other() {
    let stage = Stage::new("reset-one");
    let mut rounds = stage.rounds(3);
    rounds.expect(3, &stage.agent);
    // Over and over, which says no more than once does.
    assert!(stage.proxy.flood(0, &reset(3, CANCEL), 50_000, &[]));
    assert_eq!(rounds.next(), saw([("echoed", 2), ("reset", 1)]));
    stage.flagged("UC", 1);
    assert_eq!(rounds.end(), saw([("ended", 2)]));
    // A stream that has never been is a fault (RFC 9113 section 5.1).
    let mut others = stage.rounds(2);
    others.expect(2, &stage.agent);
    stage.proxy.flood(0, &reset(99, CANCEL), 1, &[]);
    assert_eq!(others.next(), saw([("reset", 2)]));
    stage.expect_well();
    stage.expect_clean();
}
