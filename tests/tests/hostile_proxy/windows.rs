//! Games with windows (RFC 9113 section 5.2), and streams of which one end does not read.

use std::time::Duration;

use serde_json::json;
use underpass_tests::process::Running;
use underpass_tests::servers::h2_proxy::frame::{HIGHEST, INITIAL_WINDOW, data, grant, settings};
use underpass_tests::servers::h2_proxy::{Connection, FLOOD, SIZE, SOURCE, STALLS};
use underpass_tests::wait_for;

use crate::stage::{LONG, Stage, saw};

/// Streams that stand still.
const STILL: usize = 5;

#[test]
fn a_window_too_large_costs_its_stream() {
    let stage = Stage::new("stream-window");
    let mut rounds = stage.rounds(3);
    rounds.expect(3, &stage.agent);
    stage.proxy.send(0, &grant(1, HIGHEST));
    assert_eq!(rounds.next(), saw([("echoed", 2), ("reset", 1)]));
    stage.flagged("UC", 1);
    assert_eq!(rounds.end(), saw([("ended", 2)]));
    stage.expect_clean();
}

#[test]
fn a_window_too_large_for_the_connection_costs_the_connection() {
    for (number, frames) in [
        grant(0, HIGHEST),
        settings(&[(INITIAL_WINDOW, u32::MAX)]),
        grant(0, 0),
    ]
    .iter()
    .enumerate()
    {
        let stage = Stage::new(&format!("window-{number}"));
        let mut rounds = stage.rounds(3);
        rounds.expect(3, &stage.agent);
        stage.proxy.flood(0, frames, 1, &[]);
        assert_eq!(rounds.next(), saw([("reset", 3)]));
        stage.flagged("UC", 3);
        stage.expect_well();
        stage.expect_clean();
    }
}

/// What comes beyond what we allow is not kept.
#[test]
fn more_than_the_window_is_a_fault() {
    let stage = Stage::new("beyond-window");
    let thirsty = stage.program("thirsty", FLOOD).arg("1").start();
    stage.proxy.wait_for("the window is used up", |all| {
        all.first()
            .is_some_and(|one| one.sent.iter().sum::<u64>() > 200_000)
    });
    let mut rounds = stage.rounds(1);
    rounds.expect(1, &stage.agent);
    let before = stage.memory();
    stage.proxy.flood(0, &data(1, &[0; 16_000]), 10_000, &[]);
    stage.expect_bounded(before);
    stage.proxy.wait_for("the stream is reset", |all| {
        all[0].events.get("StreamReset") == Some(&1)
    });
    // And nothing but the stream.
    assert_eq!(rounds.next(), saw([("echoed", 1)]));
    assert_eq!(rounds.end(), saw([("ended", 1)]));
    assert_eq!(stage.proxy.connections().len(), 1);
    stage.expect_rest();
    drop(thirsty);
    stage.expect_clean();
}

#[test]
fn a_window_that_is_shut_holds_back_and_opens_again() {
    let stage = Stage::with("shut-window", &[(INITIAL_WINDOW, 0)]);
    let mut rounds = stage.rounds(3);
    let asked = |all: &[Connection]| matches!(all, [one] if one.requests == 3);
    stage.proxy.wait_for("they are asked for", asked);
    let before = stage.memory();
    let stuck = stuck_upload(&stage, 7);
    stage.expect_bounded(before);
    let nothing = stage.proxy.connections();
    assert!(
        nothing[0].received.iter().all(|bytes| *bytes == 0),
        "{nothing:?}"
    );
    drop(stuck);
    // Opened little by little, and then for good.
    for window in [1, 10, 100, 100_000] {
        stage.proxy.order(&json!({ "grant": window, "to": 0 }));
    }
    rounds.expect(3, &stage.agent);
    assert_eq!(rounds.end(), saw([("ended", 3)]));
    stage.expect_clean();
}

/// A workload that sends until nothing is taken any more, and then waits.
#[track_caller]
fn stuck_upload(stage: &Stage, port: u16) -> Running {
    let address = underpass_tests::addr::OTHER_V4.to_string();
    let program = stage.world.host().python("fault");
    let program = program.in_cgroup(stage.world.workload());
    let upload = program
        .args(["stuck_upload", &address, &port.to_string()])
        .start();
    wait_for("the upload is stuck", LONG, || {
        upload.stdout().contains("stuck")
    });
    upload
}

/// All that a target sends, to the last byte.
#[track_caller]
fn download(stage: &Stage) -> Duration {
    let done = stage.program("fetch", SOURCE).run(LONG).expect_success();
    assert_eq!(
        done.stdout.trim(),
        SIZE.to_string(),
        "{}",
        stage.agent.tails()
    );
    done.elapsed
}

/// Uploads that the target does not take hold up neither each other nor anything else.
#[test]
fn streams_that_the_proxy_does_not_read_hold_up_no_other() {
    let stage = Stage::new("stalled-uploads");
    let alone = download(&stage);
    let before = stage.memory();
    let stuck: Vec<Running> = (0..STILL).map(|_| stuck_upload(&stage, STALLS)).collect();
    stage.expect_bounded(before);
    let mut rounds = stage.rounds(20);
    rounds.expect(20, &stage.agent);
    let beside = download(&stage);
    println!("{SIZE} bytes take {alone:?} alone, {beside:?} beside {STILL} stalled uploads");
    let all = stage.proxy.connections();
    assert_eq!(all.len(), 1, "{all:?}");
    let stalled = &all[0].received[1..=STILL];
    // What its window takes to begin with, and no more.
    assert!(stalled.iter().all(|bytes| *bytes == 65_535), "{stalled:?}");
    assert_eq!(rounds.end(), saw([("ended", 20)]));
    // They end in order as soon as they can.
    drop(stuck);
    let rest = 64 << 20;
    stage.proxy.order(&json!({ "grant": rest, "to": 0 }));
    stage.expect_clean();
}

/// Neither do downloads that the workload does not take.
#[test]
fn streams_that_the_workload_does_not_read_hold_up_no_other() {
    /// A window, and the buffers of two sockets.
    const MOST: u64 = 8 << 20;
    let stage = Stage::new("stalled-downloads");
    let alone = download(&stage);
    let before = stage.memory();
    let thirsty = stage
        .program("thirsty", FLOOD)
        .arg(STILL.to_string())
        .start();
    let sent = || stage.proxy.connections()[0].sent.clone();
    let mut last = sent();
    wait_for("nothing moves any more", LONG, || {
        std::thread::sleep(Duration::from_millis(300));
        let (now, before) = (sent(), std::mem::replace(&mut last, sent()));
        now.len() > STILL && now.iter().all(|bytes| *bytes > 0) && now == before
    });
    stage.expect_bounded(before);
    assert!(last[1..].iter().all(|bytes| *bytes < MOST), "{last:?}");
    let mut rounds = stage.rounds(20);
    rounds.expect(20, &stage.agent);
    let beside = download(&stage);
    println!("{SIZE} bytes take {alone:?} alone, {beside:?} beside {STILL} stalled downloads");
    assert_eq!(stage.proxy.connections().len(), 1);
    drop(thirsty);
    assert_eq!(rounds.end(), saw([("ended", 20)]));
    stage.expect_clean();
}
