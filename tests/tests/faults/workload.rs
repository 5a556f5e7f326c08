//! Faults and oddities of the workload.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use underpass_tests::addr::{INTERNAL_V4, OTHER_V6};
use underpass_tests::servers::fake_proxy::{Answer, Step};
use underpass_tests::wait_for;

use crate::stage::{ECHO, Saw, Stage};

const SECONDS: Duration = Duration::from_secs(10);

/// Resets its connection in the middle of an upload: the target must not take that for the end.
pub(crate) fn resets_an_upload(stage: &mut Stage) -> Saw {
    stage.proxy.set_answer(Answer::opened([Step::Listen]));
    let saw = stage.see("reset_upload", &[]);
    let heard = stage.proxy.wait_for_heard(1).swap_remove(0);
    assert!(!heard.complete, "the target saw the end of the data");
    saw
}

/// Resets an upload of which nothing is read any more: the tunnel is to end then.
pub(crate) fn resets_a_stuck_upload(stage: &mut Stage) -> Saw {
    stage.proxy.set_answer(Answer::opened([Step::Stall]));
    let saw = stage.see("stuck_upload", &["reset"]);
    stage.proxy.wait_for_heard(1);
    saw
}

/// Ends its side first; the target answers after that.
pub(crate) fn half_closes_first(stage: &mut Stage) -> Saw {
    let answer = [Step::Listen, Step::Send(b"answer".into())];
    stage.proxy.set_answer(Answer::opened(answer));
    let saw = stage.see("say_and_finish", &["question"]);
    let heard = stage.proxy.wait_for_heard(1).swap_remove(0);
    assert_eq!(
        (heard.bytes.as_slice(), heard.complete),
        (&b"question"[..], true)
    );
    saw
}

/// Connects without waiting and gives up while the agent is held still.
pub(crate) fn abandons(stage: &mut Stage) -> Saw {
    stage.agent().hold();
    let saw = stage.see("abandon", &[]);
    stage.agent().resume();
    saw
}

/// Its connection is killed in the middle of a download: the target must not take that for the
/// end.
pub(crate) fn is_killed(stage: &mut Stage) -> Saw {
    stage.proxy.set_answer(Answer::opened([Step::Flood]));
    let mut workload = stage.fault("download", &[]).start();
    wait_for("the download is under way", SECONDS, || {
        stage.agent().admin("/connections")[0]["bytes_received"].as_u64() > Some(1 << 20)
    });
    let start = Instant::now();
    workload.kill();
    stage.proxy.wait_for_heard(1);
    Saw::since(start, "killed")
}

/// Uses one port for many destinations; the proxy tells each which it was asked for.
pub(crate) fn reuses_a_port(stage: &mut Stage) -> Saw {
    let answer = [Step::TellTarget, Step::Finish, Step::Listen];
    stage.proxy.set_answer(Answer::opened(answer));
    stage.see("reuse", &["200"])
}

/// Hands its socket to a process outside the captured cgroup.
pub(crate) fn hands_its_socket_on(stage: &Stage, when: &str) -> Saw {
    let elsewhere = stage.world.services().path().display().to_string();
    stage.see("passed", &[&elsewhere, when])
}

/// Disconnects a captured socket and connects it to the inside.
pub(crate) fn dissolves(stage: &mut Stage) -> Saw {
    let saw = stage.see("dissolved", &[&INTERNAL_V4.to_string()]);
    assert_eq!(stage.world.arrivals_at(INTERNAL_V4).len(), 1);
    saw
}

/// Connects over IPv6.
pub(crate) fn by_v6(stage: &Stage, what: &str, args: &[&str]) -> Saw {
    stage.see_to(what, &OTHER_V6.to_string(), ECHO, args)
}

/// The agent stands still for two seconds while bytes are on their way both ways.
pub(crate) fn waits_for_a_held_agent(stage: &mut Stage) -> Saw {
    let workload = stage.fault("transfer", &["256"]).start();
    wait_for("bytes are on their way", SECONDS, || {
        workload.stdout().contains("up")
    });
    stage.agent().hold();
    std::thread::sleep(Duration::from_secs(2));
    stage.agent().resume();
    stage.finish(workload)
}

/// Waits on an open connection until `act` has ended it.
pub(crate) fn stays_until(stage: &mut Stage, act: impl FnOnce(&mut Stage)) -> Saw {
    let workload = stage.fault("stay", &[]).start();
    wait_for("it is served", SECONDS, || {
        workload.stdout().contains("echoed")
    });
    let start = Instant::now();
    act(stage);
    let saw = stage.finish(workload);
    Saw::since(start, saw.what)
}

/// The agent is killed.
pub(crate) fn loses_the_agent(stage: &mut Stage) -> Saw {
    stays_until(stage, |stage| {
        let mut agent = stage.agent.take().expect("the agent runs");
        agent.process().kill();
    })
}

/// The agent is told to stop, and once more while it drains.
pub(crate) fn outlives_the_patience(stage: &mut Stage) -> Saw {
    stays_until(stage, |stage| {
        let mut agent = stage.agent.take().expect("the agent runs");
        agent.process().signal(Signal::SIGTERM);
        agent.process().wait_for_logged("draining");
        assert!(agent.process().is_running());
        agent.process().signal(Signal::SIGTERM);
        let status = agent.process().wait(SECONDS).expect("it ends");
        assert_eq!(status.code(), Some(0), "{}", agent.tails());
        let log = agent.access_log();
        let last = log.last().expect("a record");
        assert_eq!(last.text("flags"), "LR", "{log:?}");
    })
}
