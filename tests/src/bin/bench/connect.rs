//! What the programs add to `connect`.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use underpass_tests::addr::{INTERNAL_V4, SITE_V4};
use underpass_tests::cgroup::Cgroup;
use underpass_tests::{Must as _, Place};

use super::client::program;
use super::paths::{GATEWAY, Setting, agent, opaque};
use super::progress;
use super::study::Rounds;
use super::table::median;

/// Connections of one round: fewer than wait to be accepted at most, since nobody accepts them
/// meanwhile.
const COUNT: usize = 1000;

/// Rounds for each of the repetitions of other measurements: one takes a moment only.
const ROUNDS: usize = 4;

/// Where our own listeners are.
const PORT: u16 = 15002;

/// What is connected to, by whom, and beside what that is put.
struct Way {
    name: &'static str,
    captured: bool,
    to: SocketAddr,
    baseline: usize,
    /// In nanoseconds, of each round.
    p10: Vec<f64>,
    p50: Vec<f64>,
}

fn way(name: &'static str, captured: bool, to: (Ipv4Addr, u16), baseline: usize) -> Way {
    Way {
        name,
        captured,
        to: to.into(),
        baseline,
        p10: Vec::new(),
        p50: Vec::new(),
    }
}

pub(crate) fn run(setting: &Setting, rounds: &Rounds) -> anyhow::Result<Value> {
    let world = &setting.world;
    let agent = agent(world, &opaque(GATEWAY, "HTTP-CONNECT"));
    let near = (Ipv4Addr::LOCALHOST, PORT);
    let far = (INTERNAL_V4, PORT);
    let listeners = [
        Silent::listen(world.host(), near.into()),
        Silent::listen(world.inet(), far.into()),
    ];
    let mut ways = [
        way("loopback, no programs", false, near, 0),
        way("loopback, left alone at once", true, near, 0),
        way("redirected to the agent", true, (SITE_V4, 80), 0),
        way("another host, no programs", false, far, 3),
        way("another host, no policy about it", true, far, 3),
    ];
    for number in 0..rounds.reps * ROUNDS {
        progress(&format!("connect, round {}", number + 1));
        // It would use a processor for what comes after `connect`.
        agent.hold();
        for way in &mut ways {
            let cgroup = if way.captured {
                world.workload()
            } else {
                world.services()
            };
            let (p10, p50) = knock(setting, cgroup, way.to)?;
            way.p10.push(p10);
            way.p50.push(p50);
        }
        agent.resume();
        for listener in &listeners {
            listener.forget();
        }
        agent.wait_for_metric("underpass_capture_map_entries", &[], 0.0);
        agent.wait_for_metric("underpass_tunnels_active", &[], 0.0);
    }
    println!(
        "\nconnect(), medians of {} rounds of {COUNT}",
        rounds.reps * ROUNDS
    );
    println!(
        "{:<34} {:>10} {:>10} {:>12} {:>12}",
        "", "p10, us", "p50, us", "added to p10", "added to p50"
    );
    let middle = |values: &[f64]| median(values.to_vec()).unwrap_or(f64::NAN) / 1000.0;
    for (index, way) in ways.iter().enumerate() {
        let added = |of: fn(&Way) -> &[f64]| {
            if way.baseline == index {
                return String::new();
            }
            // Of each round by itself, so that what slows a whole round down is in both.
            let pairs = of(way).iter().zip(of(&ways[way.baseline]));
            let differences: Vec<f64> = pairs.map(|(with, without)| with - without).collect();
            format!("{:.2} us", middle(&differences))
        };
        println!(
            "{:<34} {:>10.2} {:>10.2} {:>12} {:>12}",
            way.name,
            middle(&way.p10),
            middle(&way.p50),
            added(|way| &way.p10),
            added(|way| &way.p50),
        );
    }
    let json = |way: &Way| json!({ "way": way.name, "p10_ns": way.p10, "p50_ns": way.p50 });
    Ok(ways.iter().map(json).collect())
}

/// One round; gives p10 and p50.
fn knock(setting: &Setting, cgroup: &Cgroup, to: SocketAddr) -> anyhow::Result<(f64, f64)> {
    let knock = setting.world.host().command(program("knock")?);
    let knock = knock.arg(to.to_string()).arg(COUNT.to_string());
    let done = knock.in_cgroup(cgroup).run(Duration::from_secs(30));
    let told: Value = serde_json::from_str(&done.stdout).with_context(|| format!("{done:?}"))?;
    ensure!(told["failed"] == 0, "connect to {to}: {told}");
    let number = |key: &str| told[key].as_f64().context("no time");
    Ok((number("p10")?, number("p50")?))
}

/// A listener that accepts nothing while it is measured.
struct Silent(Socket);

impl Silent {
    fn listen(place: &Place, address: SocketAddr) -> Self {
        let listen = || {
            let tcp = Some(Protocol::TCP);
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, tcp)?;
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(4096)?;
            std::io::Result::Ok(socket)
        };
        Self(
            place
                .within(listen)
                .must(format_args!("listen on {address}")),
        )
    }

    /// Lets go all that has come.
    fn forget(&self) {
        while self.0.accept().is_ok() {}
    }
}
