//! Whether a request and a connection cost the same, however many tunnels, policies and network
//! namespaces there are.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use underpass_tests::addr::SITE_V4;
use underpass_tests::agent::Agent;
use underpass_tests::cgroup::Cgroup;
use underpass_tests::process::Running;
use underpass_tests::{Must as _, World, wait_for};

use super::client::{Client, Told, Work};
use super::paths::{GATEWAY, Setting, agent, opaque};
use super::progress;
use super::study::Rounds;
use super::table::median;

/// How many there are of what grows, and what was measured then.
struct Level {
    count: usize,
    requests: Vec<Told>,
    connections: Vec<Told>,
}

/// What a client of the agent does at each level.
struct Load {
    /// Connections that take turns at requests.
    kept: usize,
    /// Connections that do nothing, beside those that are opened.
    idle: usize,
}

/// Requests at a time, and connections that are opened at a time: the same at each level.
const REQUESTS: usize = 10;
const CONNECTIONS: usize = 16;

/// Over how many tunnels requests go, and beside how many connections are opened.
pub(crate) fn tunnels(setting: &Setting, rounds: &Rounds) -> anyhow::Result<Value> {
    let agent = agent(&setting.world, &opaque(GATEWAY, "HTTP-CONNECT"));
    let mut levels = levels(&[10, 100, 1000, 9000]);
    for _ in 0..rounds.reps {
        for level in &mut levels {
            progress(&format!("{} tunnels", level.count));
            let load = Load {
                kept: level.count,
                idle: level.count,
            };
            level.measure(setting, &agent, &load, rounds.time)?;
        }
    }
    Ok(tell("tunnels", &levels))
}

/// Of how many documents the policy is made, one in ten of them a Tunnel. One is the service that is
/// asked, whose port is declared HTTP: so it is read, and each request is decided.
pub(crate) fn policies(setting: &Setting, rounds: &Rounds) -> anyhow::Result<Value> {
    let mut levels = levels(&[2, 100, 10_000]);
    for _ in 0..rounds.reps {
        for level in &mut levels {
            progress(&format!("{} policies", level.count));
            let agent = agent(&setting.world, &documents(level.count));
            level.measure(setting, &agent, &FEW, rounds.time)?;
        }
    }
    Ok(tell("policies", &levels))
}

/// How many network namespaces are enrolled. All are there all the time, but those that are not
/// enrolled are in no captured cgroup.
pub(crate) fn namespaces(setting: &Setting, rounds: &Rounds) -> anyhow::Result<Value> {
    let mut levels = levels(&[1, 50, 500]);
    let most = levels.iter().map(|level| level.count).max();
    // One is that of the client.
    let dwellers = Dwellers::start(&setting.world, most.unwrap_or(1) - 1);
    for _ in 0..rounds.reps {
        for level in &mut levels {
            progress(&format!("{} network namespaces", level.count));
            dwellers.capture(level.count - 1);
            let agent = agent(&setting.world, &opaque(GATEWAY, "HTTP-CONNECT"));
            agent.wait_for_metric("underpass_namespaces_enrolled", &[], level.count as f64);
            level.measure(setting, &agent, &FEW, rounds.time)?;
        }
    }
    Ok(tell("network namespaces", &levels))
}

const FEW: Load = Load {
    kept: REQUESTS,
    idle: 0,
};

fn levels(counts: &[usize]) -> Vec<Level> {
    let level = |count: &usize| Level {
        count: *count,
        requests: Vec::new(),
        connections: Vec::new(),
    };
    counts.iter().map(level).collect()
}

impl Level {
    fn measure(
        &mut self,
        setting: &Setting,
        agent: &Agent,
        load: &Load,
        time: Duration,
    ) -> anyhow::Result<()> {
        let client = Client {
            setting,
            cgroup: setting.world.workload(),
            via: None,
            watch: Some(agent.pid()),
        };
        let work = |mode, workers, kept| {
            let kept = Some(kept);
            let work = Work {
                mode,
                workers,
                kept,
                time,
            };
            client.work(work)?.flawless()
        };
        self.requests.push(work("requests", REQUESTS, load.kept)?);
        let connections = work("connections", CONNECTIONS, load.idle)?;
        self.connections.push(connections);
        Ok(())
    }
}

/// Prints a table and gives all as JSON.
fn tell(what: &str, levels: &[Level]) -> Value {
    println!("\n{what}: {REQUESTS} requests at a time, {CONNECTIONS} connections at a time");
    println!(
        "{:>10} {:>24} {:>9} {:>9} {:>24} {:>9} {:>9}",
        "",
        "CPU per request, us",
        "p50, us",
        "p99, us",
        "CPU per connection, us",
        "p50, us",
        "p99, us"
    );
    for level in levels {
        let of = |told: &[Told], pick: fn(&Told) -> f64| {
            let median = median(told.iter().map(pick).collect());
            median.unwrap_or(f64::NAN)
        };
        let cost = |told: &[Told]| {
            let each = || told.iter().map(Told::cpu_each);
            let (least, most) = (
                each().fold(f64::INFINITY, f64::min),
                each().fold(0.0, f64::max),
            );
            format!("{:.1} ({least:.1}..{most:.1})", of(told, Told::cpu_each))
        };
        let (requests, connections) = (&level.requests, &level.connections);
        println!(
            "{:>10} {:>24} {:>9.0} {:>9.0} {:>24} {:>9.0} {:>9.0}",
            level.count,
            cost(requests),
            of(requests, |told| told.p50),
            of(requests, |told| told.p99),
            cost(connections),
            of(connections, |told| told.p50),
            of(connections, |told| told.p99),
        );
    }
    let json = |told: &[Told]| told.iter().map(Told::to_json).collect::<Vec<_>>();
    let level = |level: &Level| {
        json!({
            "count": level.count,
            "requests": json(&level.requests),
            "connections": json(&level.connections),
        })
    };
    levels.iter().map(level).collect()
}

/// A Tunnel for everything else, Tunnels for the services of one team each, and services: with
/// names, every tenth of them with an address as well. That of the target is among them.
fn documents(count: usize) -> String {
    let mut text = opaque(GATEWAY, "HTTP-CONNECT");
    let spec = text
        .split_once("spec:\n")
        .map(|(_, spec)| spec.to_owned())
        .unwrap_or_default();
    let (tunnels, services) = (count / 10, count - count / 10 - 1);
    for tunnel in 0..tunnels {
        let _ = write!(
            text,
            "---\napiVersion: underpass.dev/v1alpha1\nkind: Tunnel\n\
             metadata: {{ name: team-{tunnel} }}\nspec:\n\
             \x20 selector: {{ matchLabels: {{ team: team-{tunnel} }} }}\n{spec}"
        );
    }
    for service in 0..services {
        let address = match service {
            _ if service == services / 2 => format!("{SITE_V4}"),
            _ if service % 10 == 0 => format!("198.18.{}.{}", service / 256, service % 256),
            _ => String::new(),
        };
        let team = service % tunnels.max(1);
        let _ = write!(
            text,
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{ name: s{service}, labels: {{ team: team-{team} }} }}\nspec:\n\
             \x20 hosts: [s{service}.example.com]\n\
             \x20 addresses: [{address}]\n\
             \x20 ports: [{{ number: 80, name: http, protocol: HTTP }}]\n\
             \x20 location: MESH_EXTERNAL\n\
             \x20 resolution: NONE\n"
        );
    }
    text
}

/// Processes in network namespaces of their own, each in a cgroup of its own, as in pods.
struct Dwellers {
    /// A process, and its cgroup where it is captured. The former are the first to end.
    all: Vec<(Running, Cgroup)>,
    elsewhere: Cgroup,
}

impl Dwellers {
    fn start(world: &World, count: usize) -> Self {
        let elsewhere = world.services().child("dwellers");
        let dweller = |number| {
            let unshare = world.host().command("unshare");
            let sleep = unshare.args(["--net", "sleep", "infinity"]);
            let cgroup = world.workload().child(&format!("dweller-{number}"));
            (sleep.in_cgroup(&elsewhere).start(), cgroup)
        };
        let all: Vec<_> = (0..count).map(dweller).collect();
        // A process becomes `sleep` when it has its namespace.
        wait_for("all have their namespaces", Duration::from_secs(60), || {
            all.iter().all(|(process, _)| {
                let name = fs::read_to_string(format!("/proc/{}/comm", process.pid()));
                name.is_ok_and(|name| name == "sleep\n")
            })
        });
        Self { all, elsewhere }
    }

    /// Has the first `count` of them in captured cgroups, and the others not.
    fn capture(&self, count: usize) {
        for (index, (process, cgroup)) in self.all.iter().enumerate() {
            let cgroup = if index < count {
                cgroup
            } else {
                &self.elsewhere
            };
            let procs = cgroup.path().join("cgroup.procs");
            fs::write(procs, process.pid().to_string()).must("move a process");
        }
    }
}
