//! GOAWAY (RFC 9113 section 6.8).

use std::time::{Duration, Instant};

use serde_json::json;
use underpass_tests::servers::h2_proxy::Connection;
use underpass_tests::servers::h2_proxy::frame::{ENHANCE_YOUR_CALM, HIGHEST, NO_ERROR, go_away};

use crate::stage::{Stage, saw};

#[test]
fn streams_above_the_last_go_elsewhere_and_those_below_to_their_end() {
    let stage = Stage::new("goaway");
    let mut first = stage.rounds(4);
    first.expect(4, &stage.agent);
    stage.proxy.answer(&json!({ "hold": true }));
    let mut second = stage.rounds(3);
    let asked = |all: &[Connection]| matches!(all, [one] if one.requests == 7);
    stage
        .proxy
        .wait_for("seven requests on one connection", asked);
    stage.proxy.send(0, &go_away(7, NO_ERROR));
    stage.proxy.answer(&json!({}));
    second.expect(3, &stage.agent);
    assert_eq!(first.next(), saw([("echoed", 4)]));
    assert_eq!(second.next(), saw([("echoed", 3)]));

    let all = stage.proxy.connections();
    let of: Vec<_> = all
        .iter()
        .map(|one| (one.requests, one.ended.is_none()))
        .collect();
    // Each of three was asked for twice, and carried nothing the first time.
    assert_eq!(of, [(7, true), (3, true)], "{all:?}");
    assert!(
        all[0].received[4..].iter().all(|bytes| *bytes == 0),
        "{all:?}"
    );
    assert_eq!(first.end(), saw([("ended", 4)]));
    // Nobody will use it again.
    stage
        .proxy
        .wait_for("the old connection ends", |all| all[0].ended.is_some());
    assert_eq!(second.end(), saw([("ended", 3)]));
    stage.flagged("", 7);
    stage.expect_clean();
}

#[test]
fn a_graceful_end_in_two_steps_loses_nothing() {
    let stage = Stage::new("goaway-graceful");
    let mut first = stage.rounds(3);
    first.expect(3, &stage.agent);
    stage.proxy.send(0, &go_away(HIGHEST, NO_ERROR));
    let mut second = stage.rounds(2);
    second.expect(2, &stage.agent);
    stage.proxy.send(0, &go_away(5, NO_ERROR));
    // An excuse is no harm either.
    stage.proxy.send(1, &go_away(3, ENHANCE_YOUR_CALM));
    assert_eq!(first.next(), saw([("echoed", 3)]));
    assert_eq!(second.next(), saw([("echoed", 2)]));
    let mut third = stage.rounds(1);
    third.expect(1, &stage.agent);
    let requests: Vec<u64> = stage
        .proxy
        .connections()
        .iter()
        .map(|one| one.requests)
        .collect();
    assert_eq!(requests, [3, 2, 1]);
    for (rounds, count) in [(first, 3), (second, 2), (third, 1)] {
        assert_eq!(rounds.end(), saw([("ended", count)]));
    }
    stage.flagged("", 6);
    stage.expect_clean();
}

/// The proxy takes back what it has answered already: what it was sent by then may have been
/// used, so it is not sent again.
#[test]
fn a_tunnel_that_has_carried_something_is_not_opened_again() {
    let stage = Stage::new("goaway-takes-back");
    let mut rounds = stage.rounds(4);
    rounds.expect(4, &stage.agent);
    stage.proxy.send(0, &go_away(3, NO_ERROR));
    assert_eq!(rounds.next(), saw([("echoed", 2), ("reset", 2)]));
    let all = stage.proxy.connections();
    assert_eq!(all.len(), 1, "{all:?}");
    stage.flagged("UC", 2);
    assert_eq!(rounds.end(), saw([("ended", 2)]));
    stage.expect_well();
    stage.expect_clean();
}

/// A proxy that is going away for good, and says so to everybody who comes, at once or when asked.
#[test]
fn a_proxy_that_always_goes_away_is_not_connected_to_without_end() {
    const MOST: usize = 4;
    let stage = Stage::new("goaway-always");
    stage.expect_well();
    stage.proxy.send(0, &go_away(1, NO_ERROR));
    stage.proxy.greet(&go_away(0, NO_ERROR));
    let given_up = |number, words: &[&str]| {
        let before = stage.proxy.connections().len();
        let start = Instant::now();
        assert_eq!(stage.see(), "reset");
        let took = start.elapsed();
        let tries = stage.proxy.connections().len() - before;
        println!("given up after {took:?} and {tries} connections");
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert!((1..=MOST).contains(&tries), "{tries} connections");
        let error = stage.flagged("UF", number)[number - 1].text("error");
        assert!(words.iter().any(|word| error.contains(word)), "{error}");
    };
    // The frame may come before the stream is opened, or behind it.
    given_up(1, &["the proxy closed the connection", "going away"]);
    stage.proxy.greet(&[]);
    stage.proxy.answer_with(&go_away(0, NO_ERROR));
    given_up(2, &["going away"]);
    stage.proxy.answer(&json!({}));
    stage.expect_well();
    stage.expect_clean();
}
