//! Frames without end: those that want an answer, those that do nothing, and those that never are
//! complete. Memory stays bounded, other connections serve, and when it is over there is rest.

use serde_json::json;
use underpass_tests::servers::h2_proxy::frame::{
    INITIAL_WINDOW, MAX_STREAMS, NO_ERROR, answer, continuation, data, frame, go_away, grant, ping,
    settings,
};

use crate::stage::{Stage, saw};

/// Frames of one flood.
const MANY: u64 = 200_000;

/// A flood whose answers are read is absorbed beside tunnels that go on.
#[track_caller]
fn absorbs(name: &str, frame: &[u8], answered: Option<&str>) {
    let stage = Stage::new(name);
    let mut rounds = stage.rounds(2);
    rounds.expect(2, &stage.agent);
    let before = stage.memory();
    assert!(
        stage.proxy.flood(0, frame, MANY, &[]),
        "{}",
        stage.agent.tails()
    );
    // Answered one by one, and in turn with everything else.
    assert_eq!(rounds.next(), saw([("echoed", 2)]));
    if let Some(answered) = answered {
        let all = |count: &u64| *count >= MANY;
        stage
            .proxy
            .wait_for("every one is answered", |connections| {
                connections[0].events.get(answered).is_some_and(all)
            });
    }
    stage.expect_bounded(before);
    stage.expect_rest();
    stage.expect_well();
    assert_eq!(stage.proxy.connections().len(), 1);
    assert_eq!(rounds.end(), saw([("ended", 2)]));
    stage.flagged("", 3);
    stage.expect_clean();
}

#[test]
fn pings_are_answered() {
    absorbs("pings", &ping(), Some("PingAckReceived"));
}

#[test]
fn settings_are_answered() {
    absorbs(
        "settings",
        &settings(&[(MAX_STREAMS, 100)]),
        Some("SettingsAcknowledged"),
    );
}

#[test]
fn priorities_and_frames_of_unknown_kinds_are_passed_over() {
    let frames = [frame(2, 0, 1, &[0; 5]), frame(0xfa, 0, 0, &[0; 100])].concat();
    absorbs("unknown-frames", &frames, None);
}

/// Who does not read the answers is not read either, and is found out.
#[track_caller]
fn holds_back(name: &str, frame: &[u8]) {
    let stage = Stage::new(name);
    let mut rounds = stage.rounds(2);
    rounds.expect(2, &stage.agent);
    let before = stage.memory();
    stage.proxy.order(&json!({ "deaf": 0, "is": true }));
    // Far more than is taken.
    assert!(
        !stage.proxy.flood(0, frame, 30 * MANY, &[]),
        "{}",
        stage.agent.tails()
    );
    stage.expect_bounded(before);
    assert_eq!(rounds.next(), saw([("reset", 2)]));
    let lost = stage.flagged("UC", 2);
    let error = lost[0].text("error");
    assert!(error.contains("did not answer a PING"), "{error}");
    stage.expect_well();
    stage.expect_rest();
    stage.expect_clean();
}

#[test]
fn pings_whose_answers_are_not_read_are_held_back() {
    holds_back("deaf-pings", &ping());
}

#[test]
fn settings_whose_answers_are_not_read_are_held_back() {
    holds_back("deaf-settings", &settings(&[(INITIAL_WINDOW, 70_000)]));
}

#[test]
fn a_header_block_without_end_is_given_up() {
    let stage = Stage::new("continuation");
    let mut standing = stage.rounds(1);
    standing.expect(1, &stage.agent);
    let before = stage.memory();
    stage.proxy.answer(&json!({ "hold": true }));
    let mut asking = stage.rounds(1);
    stage
        .proxy
        .wait_for("it is asked", |all| all[0].requests == 2);
    stage.proxy.send(0, &answer(3, false));
    assert!(
        !stage.proxy.flood(0, &continuation(3), MANY, &[]),
        "{}",
        stage.agent.tails()
    );
    stage.expect_bounded(before);
    // The connection is of no use to anybody. What has not carried anything goes elsewhere.
    assert_eq!(standing.next(), saw([("reset", 1)]));
    let error = stage.flagged("UC", 1)[0].text("error");
    // The stream tells what was excessive, the connection does not: whichever is heard of first.
    assert!(error.contains("excessive load"), "{error}");
    stage.proxy.answer(&json!({}));
    asking.expect(1, &stage.agent);
    assert_eq!(asking.end(), saw([("ended", 1)]));

    // A proxy that always does so is given up.
    let flood = [answer(1, false), continuation(1).repeat(100)].concat();
    stage.proxy.send(1, &go_away(3, NO_ERROR));
    stage.proxy.answer_with(&flood);
    assert_eq!(stage.see(), "reset");
    stage.flagged("UPE", 1);
    stage.proxy.answer(&json!({}));
    stage.expect_well();
    stage.expect_rest();
    stage.expect_clean();
}

/// They cost no window, and each takes memory until it is read.
#[test]
fn frames_with_nothing_in_them_are_bounded() {
    let stage = Stage::new("empty-frames");
    let mut rounds = stage.rounds(2);
    rounds.expect(2, &stage.agent);
    let before = stage.memory();
    stage.proxy.flood(0, &data(1, &[]), 20 * MANY, &[]);
    stage.expect_bounded(before);
    stage.expect_rest();
    stage.expect_well();
    stage.expect_clean();
}

/// A window that is opened byte by byte is opened.
#[test]
fn grants_of_single_bytes_are_taken() {
    absorbs("grants", &grant(1, 1), None);
}
