//! Answers to CONNECT that are not simply one.

use serde_json::json;

use crate::stage::{Stage, saw};

#[test]
fn interim_answers_are_passed_over() {
    let stage = Stage::new("interim");
    stage.proxy.answer(&json!({ "interim": 3 }));
    let mut rounds = stage.rounds(5);
    rounds.expect(5, &stage.agent);
    assert_eq!(rounds.end(), saw([("ended", 5)]));
    stage.flagged("", 5);
    stage.expect_clean();
}

#[test]
fn interim_answers_without_end_are_refused_each_by_itself() {
    let stage = Stage::new("interim-flood");
    let mut standing = stage.rounds(2);
    standing.expect(2, &stage.agent);
    let before = stage.memory();
    stage.proxy.answer(&json!({ "interim": 1000 }));
    let mut asking = stage.rounds(10);
    assert_eq!(asking.outcome(), saw([("reset", 10)]));
    let refused = stage.flagged("UPE", 10);
    let error = refused[0].text("error");
    assert!(error.contains("more than 16 interim answers"), "{error}");
    stage.proxy.answer(&json!({}));
    assert_eq!(standing.next(), saw([("echoed", 2)]));
    stage.expect_well();
    assert_eq!(stage.proxy.connections().len(), 1);
    stage.expect_bounded(before);
    stage.expect_rest();
    assert_eq!(standing.end(), saw([("ended", 2)]));
    stage.expect_clean();
}

/// What comes before the answer, and after it, is neither taken for one nor lost.
#[test]
fn refusals_are_told_and_leave_the_connection_as_it_is() {
    let stage = Stage::new("refusals");
    let mut standing = stage.rounds(2);
    standing.expect(2, &stage.agent);
    for (status, flag) in [(403, "CONNECT"), (407, "CONNECT"), (503, "CONNECT")] {
        let before = stage.agent.access_log().len();
        stage.proxy.answer(&json!({ "status": status }));
        assert_eq!(stage.see(), "reset");
        let log = stage.agent.wait_for_accesses(before + 1);
        let record = &log[before];
        assert_eq!(record.text("flags"), flag, "{record:?}");
        assert_eq!(record.text("tunnel.code"), status.to_string(), "{record:?}");
    }
    assert_eq!(stage.proxy.connections().len(), 1);
    assert_eq!(standing.next(), saw([("echoed", 2)]));
    assert_eq!(standing.end(), saw([("ended", 2)]));
    stage.expect_clean();
}
