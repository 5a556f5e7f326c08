//! What many readers that take nothing do to one that takes all, and what is held for them: by the
//! agent, and by the kernel in the sockets of everybody on the way.

use std::fs;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use underpass_tests::Must as _;
use underpass_tests::addr::PROXY_V4;
use underpass_tests::agent::Agent;
use underpass_tests::place::SMALL_BUFFERS;
use underpass_tests::usage::resident;

use super::client::{Client, Told, Work};
use super::paths::{GATEWAY, Setting, agent, opaque};
use super::progress;
use super::study::Rounds;
use super::table::median;

/// Readers that take nothing.
const THIRSTY: usize = 1000;

/// Between two looks at whether the kernel still takes memory for them, and how many looks at most.
const LOOK: Duration = Duration::from_millis(250);
const LOOKS: usize = 40;

/// A client that asks the proxy itself, and the agent by either protocol.
const WAYS: [(&str, Option<&str>); 3] = [
    ("explicit", None),
    ("underpass", Some("HTTP-CONNECT")),
    ("underpass-h2", Some("HTTP2-CONNECT")),
];

/// One round of one way.
struct Round {
    alone: Pair,
    beside: Pair,
    /// What the agent holds for each of them, and the kernel for all sockets of each, in KiB.
    agent: f64,
    kernel: f64,
}

/// One long answer, and requests one after the other.
struct Pair {
    bulk: Told,
    requests: Told,
}

pub(crate) fn run(setting: &Setting, rounds: &Rounds) -> anyhow::Result<Value> {
    let places = [setting.world.host(), setting.world.inet()];
    // With those that are usual the kernel comes to the end of what it has for TCP (tcp_mem), and
    // then everybody is slow for that, whether there is an agent or not.
    let usual =
        places.map(|place| SMALL_BUFFERS.map(|(name, value)| (name, place.set_net(name, value))));
    let mut all = WAYS.map(|_| Vec::new());
    for _ in 0..rounds.reps {
        for ((name, protocol), of) in WAYS.iter().zip(&mut all) {
            progress(&format!("{THIRSTY} slow readers: {name}"));
            of.push(round(setting, *protocol, rounds.time)?);
        }
    }
    for (place, settings) in places.iter().zip(&usual) {
        for (name, value) in settings {
            place.set_net(name, value);
        }
    }
    tell(&all);
    let pair = |it: &Pair| json!({ "bulk": it.bulk.to_json(), "requests": it.requests.to_json() });
    let round = |round: &Round| {
        json!({
            "alone": pair(&round.alone),
            "beside": pair(&round.beside),
            "agent_kib_each": round.agent,
            "kernel_kib_each": round.kernel,
        })
    };
    let json = WAYS.iter().zip(&all).map(|((name, _), rounds)| {
        let rounds: Vec<Value> = rounds.iter().map(round).collect();
        json!({ "path": name, "readers": THIRSTY, "rounds": rounds })
    });
    Ok(json.collect())
}

fn tell(all: &[Vec<Round>]) {
    println!("\n{THIRSTY} readers that take nothing, and one that takes all");
    println!(
        "{:<14} {:>13} {:>13} {:>7} {:>12} {:>12} {:>7} {:>11} {:>12}",
        "",
        "GiB/s, alone",
        "beside them",
        "ratio",
        "request, us",
        "beside them",
        "ratio",
        "agent, KiB",
        "kernel, KiB"
    );
    for ((name, protocol), rounds) in WAYS.iter().zip(all) {
        let of = |pick: fn(&Round) -> f64| {
            let median = median(rounds.iter().map(pick).collect());
            median.unwrap_or(f64::NAN)
        };
        let (alone, beside) = (
            of(|round| round.alone.bulk.gib() / round.alone.bulk.seconds),
            of(|round| round.beside.bulk.gib() / round.beside.bulk.seconds),
        );
        let (quick, slowed) = (
            of(|round| round.alone.requests.p50),
            of(|round| round.beside.requests.p50),
        );
        let agent = protocol.map(|_| format!("{:.0}", of(|round| round.agent)));
        println!(
            "{name:<14} {alone:>13.2} {beside:>13.2} {:>7.2} {quick:>12.0} {slowed:>12.0} {:>7.2} \
             {:>11} {:>12.0}",
            beside / alone,
            slowed / quick,
            agent.unwrap_or_default(),
            of(|round| round.kernel),
        );
    }
}

fn round(setting: &Setting, protocol: Option<&str>, time: Duration) -> anyhow::Result<Round> {
    let agent = protocol.map(|protocol| agent(&setting.world, &opaque(GATEWAY, protocol)));
    let watch = agent.as_ref().map(Agent::pid);
    let client = Client {
        setting,
        cgroup: match agent {
            Some(_) => setting.world.workload(),
            None => setting.world.services(),
        },
        via: match agent {
            Some(_) => None,
            None => Some(SocketAddr::from((PROXY_V4, GATEWAY))),
        },
        watch,
    };
    let work = |mode, workers| {
        let kept = None;
        Work {
            mode,
            workers,
            kept,
            time,
        }
    };
    let pair = || {
        anyhow::Ok(Pair {
            bulk: client.work(work("bulk", 1))?.flawless()?,
            requests: client.work(work("requests", 1))?.flawless()?,
        })
    };
    let memory = || (watch.map_or(0.0, resident), kernel_memory());
    let alone = pair()?;
    let before = memory();
    let (told, thirsty) = client.hold(work("thirsty", THIRSTY))?;
    told.flawless()?;
    let mut seen = 0.0;
    for _ in 0..LOOKS {
        sleep(LOOK);
        let now = kernel_memory();
        if now < seen * 1.01 {
            break;
        }
        seen = now;
    }
    let after = memory();
    let beside = pair()?;
    if let Some(agent) = &agent {
        let there = agent.metrics().sum("underpass_tunnels_active", &[]);
        ensure!(
            there >= Some(THIRSTY as f64),
            "only {there:?} of the slow readers were there to the end"
        );
    }
    drop(thirsty);
    Ok(Round {
        alone,
        beside,
        agent: (after.0 - before.0) / THIRSTY as f64,
        kernel: (after.1 - before.1) / THIRSTY as f64,
    })
}

/// What the kernel has in sockets of TCP, of all namespaces together, in KiB.
fn kernel_memory() -> f64 {
    let text = fs::read_to_string("/proc/net/sockstat").must("read /proc/net/sockstat");
    // proc(5): of TCP the last number is pages.
    let line = text.lines().find(|line| line.starts_with("TCP:"));
    let pages = line.and_then(|line| line.split(' ').next_back()?.parse::<f64>().ok());
    pages.unwrap_or(f64::NAN) * 4.0
}
