//! Faults of the proxy and of the way to it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::addr::{DNS_V4, HOST_V4, NAMES, PROXY_PORT, PROXY_V4};
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy, Step};
use underpass_tests::wait_for;

use crate::row::PROXY;
use crate::stage::{Saw, Stage};

const SECONDS: Duration = Duration::from_secs(10);

/// The proxy sends these bytes and closes.
pub(crate) fn sends(stage: &Stage, bytes: impl Into<Vec<u8>>) -> Saw {
    stage.see_answer(Answer::Send(bytes.into()))
}

/// The proxy sends this head and then is the target.
pub(crate) fn opens_with(stage: &Stage, head: &str) -> Saw {
    let answer = [Step::Send(head.into()), Step::Echo];
    stage.see_answer(Answer::Play(answer.into()))
}

/// The proxy takes these steps.
pub(crate) fn plays<const N: usize>(stage: &Stage, steps: [Step; N]) -> Saw {
    stage.see_answer(Answer::Play(steps.into()))
}

/// A usual answer, but byte by byte.
pub(crate) fn drips_a_whole_answer(stage: &mut Stage) -> Saw {
    let head = b"HTTP/1.1 200 Connection established\r\n\r\n".to_vec();
    plays(
        stage,
        [Step::Drip(head, Duration::from_millis(2)), Step::Echo],
    )
}

/// Five bytes, the end, and then it listens on.
pub(crate) fn ends_first(stage: &mut Stage) -> Saw {
    let answer = [Step::Send(b"first".into()), Step::Finish, Step::Listen];
    stage.proxy.set_answer(Answer::opened(answer));
    let saw = stage.see("late", &[]);
    let heard = stage.proxy.wait_for_heard(1).swap_remove(0);
    assert_eq!(
        (heard.bytes.as_slice(), heard.complete),
        (&b"hello late"[..], true)
    );
    saw
}

/// The target answers and ends its side while the workload waits for more.
pub(crate) fn ends_while_waited_for(stage: &mut Stage) -> Saw {
    let answer = [
        Step::Read(5),
        Step::Send(b"hello".into()),
        Step::Finish,
        Step::Listen,
    ];
    stage.proxy.set_answer(Answer::opened(answer));
    stage.see("stay", &[])
}

/// Nothing is read from the tunnel until the workload cannot send any more.
pub(crate) fn stops_reading(stage: &mut Stage) -> Saw {
    stage
        .proxy
        .set_answer(Answer::opened([Step::Hold, Step::Reset]));
    let workload = stage.fault("stuck_upload", &[]).start();
    wait_for("the upload is stuck", SECONDS, || {
        workload.stdout().contains("stuck")
    });
    stage.proxy.let_go();
    stage.finish(workload)
}

/// A download that breaks.
pub(crate) fn resets_a_download(stage: &mut Stage) -> Saw {
    let answer = [Step::Read(5), Step::Send(vec![0; 3 << 20]), Step::Reset];
    stage.proxy.set_answer(Answer::opened(answer));
    stage.see("download", &[])
}

/// The listener of the proxy is gone.
pub(crate) fn is_down(stage: &mut Stage) -> Saw {
    take_down(stage);
    stage.see("echo", &[])
}

/// Moves it to another port.
pub(crate) fn take_down(stage: &mut Stage) {
    let elsewhere = SocketAddr::from((PROXY_V4, PROXY_PORT + 1));
    stage.proxy = FakeProxy::start(stage.world.inet(), elsewhere, Answer::Reset);
}

/// The name server is gone.
pub(crate) fn resolver_is_down(stage: &mut Stage) -> Saw {
    stage.dns.process().kill();
    stage.see("echo", &[])
}

/// The name server says nothing.
pub(crate) fn resolver_is_silent(stage: &mut Stage) -> Saw {
    stage.dns.process().signal(Signal::SIGSTOP);
    let saw = stage.see("echo", &[]);
    stage.dns.process().signal(Signal::SIGCONT);
    saw
}

/// Names as usual, but for the proxy's.
fn rename(stage: &mut Stage, addresses: &[IpAddr], ttl: u32) {
    let names: Vec<(&str, &[IpAddr])> = NAMES
        .iter()
        .map(|(name, usual)| (*name, if *name == PROXY { addresses } else { usual }))
        .collect();
    stage.dns.process().kill();
    stage.dns = Dns::start_with(&stage.world, &names, ttl);
}

/// The proxy's name leads somewhere else: connections go there, and a workload that speaks to the
/// new place itself is soon left alone.
pub(crate) fn moves(stage: &mut Stage) -> Saw {
    let place = SocketAddr::from((DNS_V4, PROXY_PORT));
    let second = FakeProxy::start(stage.world.inet(), place, Answer::tunnel());
    let served_by_first = stage.proxy.requests().len();
    rename(stage, &[DNS_V4.into()], 0);
    let saw = stage.see("echo", &[]);
    assert_eq!(second.requests().len(), 1, "{}", stage.tails());
    assert_eq!(stage.proxy.requests().len(), served_by_first);

    let known = place.to_string();
    wait_for("the programs know the new place", SECONDS, || {
        let dump = stage.agent().admin("/config_dump");
        dump["proxy_addresses"].to_string().contains(&known)
    });
    let own = stage.see_to(
        "proxied",
        &DNS_V4.to_string(),
        PROXY_PORT,
        &["203.0.113.11:7"],
    );
    assert_eq!(own.what, "echoed");
    let peer = second.requests()[1].peer;
    assert_eq!(peer.ip(), HOST_V4);
    let records = stage.agent().wait_for_accesses(2);
    assert_eq!(records.len(), 2, "{}", stage.tails());
    saw
}

/// The proxy's name has two addresses, and the one that is tried first does not answer.
pub(crate) fn gains_a_dead_address(stage: &mut Stage) -> Saw {
    let dead = "2001:db8:2::99".parse().expect("an address");
    rename(stage, &[dead, PROXY_V4.into()], 0);
    stage.see("echo", &[])
}

/// A workload connects to the proxy's host on another port.
pub(crate) fn another_port(stage: &mut Stage) -> Saw {
    stage.proxy.set_answer(Answer::opened([
        Step::Read(1),
        Step::TellTarget,
        Step::Finish,
        Step::Listen,
    ]));
    stage.see_to("say", &PROXY_V4.to_string(), 8080, &["x"])
}

/// An address that the world's router takes and nobody has.
pub(crate) const BLACK_HOLE: &str = "192.0.2.99";
/// An address without a route.
pub(crate) const NOWHERE: &str = "198.18.0.1";

/// Many connections to a proxy that refuses each of them.
pub(crate) fn refuses_a_crowd(stage: &mut Stage) -> Saw {
    stage
        .proxy
        .set_answer(Answer::refusal("429 Too Many Requests", "later"));
    let saw = stage.see("crowd", &["200"]);
    assert_eq!(stage.proxy.requests().len(), 201, "none is tried twice");
    saw
}
