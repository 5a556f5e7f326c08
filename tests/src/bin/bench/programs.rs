//! The programs in the kernel: how large they are, how often they run, and how long that takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use aya::programs::{ProgramInfo, loaded_programs};
use aya::sys::{Stats, enable_stats};
use serde_json::{Value, json};
use underpass_tests::addr::{INTERNAL_V4, SITE_V4};

use super::client::{Client, Work, program};
use super::paths::{GATEWAY, Setting, agent, opaque};
use super::progress;
use super::study::Rounds;

/// Connections to what no policy names: nobody listens there, so the kernel answers each at once.
const UNNAMED: usize = 5000;
const NOBODY: u16 = 9;

/// Connections that wait to be accepted.
const UNACCEPTED: usize = 3000;

/// How often each program ran, and for how long in all.
type Runs = BTreeMap<u32, (u64, Duration)>;

/// What ran, how many operations that were, and what the programs did meanwhile.
struct Load {
    name: &'static str,
    each: &'static str,
    operations: f64,
    runs: Runs,
}

pub(crate) fn run(setting: &Setting, rounds: &Rounds) -> anyhow::Result<Value> {
    let world = &setting.world;
    let agent = agent(world, &opaque(GATEWAY, "HTTP-CONNECT"));
    let ids = held_by(agent.pid());
    let client = Client {
        setting,
        cgroup: world.workload(),
        via: None,
        watch: None,
    };
    let pace = |mode, workers| {
        let (kept, time) = (None, rounds.time);
        let work = Work {
            mode,
            workers,
            kept,
            time,
        };
        client.work(work)?.flawless()
    };
    // The kernel counts as long as this is open.
    let counting =
        enable_stats(Stats::RunTime).context("have the kernel count (BPF_ENABLE_STATS)")?;
    let mut loads = Vec::new();
    let mut note = |name, each, work: &dyn Fn() -> anyhow::Result<f64>| {
        progress(&format!("programs: {name}"));
        let before = runs(&ids)?;
        let operations = work()?;
        let after = runs(&ids)?;
        let runs = after.into_iter().map(|(id, (count, time))| {
            let (count_before, time_before) = before.get(&id).copied().unwrap_or_default();
            (id, (count - count_before, time - time_before))
        });
        loads.push(Load {
            name,
            each,
            operations,
            runs: runs.collect(),
        });
        anyhow::Ok(())
    };
    note("connections that are tunnelled", "connection", &|| {
        Ok(pace("connections", 16)?.done)
    })?;
    note("connections that nobody accepts yet", "connection", &|| {
        // Else it would have the caches and a processor. No more than wait to be accepted at most.
        agent.hold();
        let knocked = knock(setting, (SITE_V4, 80), UNACCEPTED);
        agent.resume();
        knocked
    })?;
    note("connections that no policy is about", "connection", &|| {
        knock(setting, (INTERNAL_V4, NOBODY), UNNAMED)
    })?;
    note("requests on connections that stand", "request", &|| {
        Ok(pace("requests", 32)?.done)
    })?;
    note("bytes", "MiB", &|| Ok(pace("bulk", 4)?.gib() * 1024.0))?;
    drop(counting);

    let all = infos(&ids)?;
    println!("\nprograms");
    println!(
        "{:<18} {:>12} {:>12} {:>14}",
        "", "instructions", "native bytes", "verified"
    );
    for info in &all {
        println!(
            "{:<18} {:>12} {:>12} {:>14}",
            name(info),
            info.size_translated().unwrap_or_default() / 8,
            info.size_jitted(),
            info.verified_instruction_count().unwrap_or_default(),
        );
    }
    for load in &loads {
        println!(
            "\n{}: runs for each {}, and time of a run",
            load.name, load.each
        );
        let mut sum = 0.0;
        for info in &all {
            let (count, time) = load.runs.get(&info.id()).copied().unwrap_or_default();
            if count > 0 {
                let each = time.as_nanos() as f64 / count as f64;
                sum += time.as_nanos() as f64;
                let often = count as f64 / load.operations;
                println!("{:<18} {often:>10.2} x {each:>6.0} ns", name(info));
            }
        }
        println!(
            "{:<18} {:>10.0} ns for each {}",
            "all",
            sum / load.operations,
            load.each
        );
    }
    Ok(
        json!({ "programs": all.iter().map(described).collect::<Vec<_>>(),
        "loads": loads.iter().map(|load| load.to_json(&all)).collect::<Vec<_>>() }),
    )
}

/// Connects as a workload, and gives how often.
fn knock(setting: &Setting, to: (Ipv4Addr, u16), count: usize) -> anyhow::Result<f64> {
    let world = &setting.world;
    let knock = world.host().command(program("knock")?);
    let knock = knock.args([SocketAddr::from(to).to_string(), count.to_string()]);
    let done = knock
        .in_cgroup(world.workload())
        .run(Duration::from_secs(30));
    done.expect_success();
    Ok(count as f64)
}

fn described(info: &ProgramInfo) -> Value {
    json!({
        "name": name(info),
        "instructions": info.size_translated().map(|bytes| bytes / 8),
        "native_bytes": info.size_jitted(),
        "verified_instructions": info.verified_instruction_count(),
    })
}

impl Load {
    fn to_json(&self, all: &[ProgramInfo]) -> Value {
        let runs = all.iter().map(|info| {
            let (count, time) = self.runs.get(&info.id()).copied().unwrap_or_default();
            json!({ "name": name(info), "runs": count, "nanoseconds": time.as_nanos() as u64 })
        });
        json!({
            "load": self.name, "each": self.each, "operations": self.operations,
            "runs": runs.collect::<Vec<_>>(),
        })
    }
}

/// The programs to which a process has a descriptor.
fn held_by(pid: u32) -> BTreeSet<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo"));
    let texts = entries.into_iter().flatten().flatten();
    let texts = texts.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let ids = texts.filter_map(|text| {
        let id = text
            .lines()
            .find_map(|line| line.strip_prefix("prog_id:"))?;
        id.trim().parse().ok()
    });
    ids.collect()
}

fn infos(ids: &BTreeSet<u32>) -> anyhow::Result<Vec<ProgramInfo>> {
    let mut infos = Vec::new();
    for info in loaded_programs() {
        // Those of others come and go meanwhile.
        if let Ok(info) = info
            && ids.contains(&info.id())
        {
            infos.push(info);
        }
    }
    anyhow::ensure!(!infos.is_empty(), "the agent has no programs");
    Ok(infos)
}

fn runs(ids: &BTreeSet<u32>) -> anyhow::Result<Runs> {
    let infos = infos(ids)?;
    let run = |info: &ProgramInfo| (info.id(), (info.run_count(), info.run_time()));
    Ok(infos.iter().map(run).collect())
}

fn name(info: &ProgramInfo) -> &str {
    info.name_as_str().unwrap_or("?")
}
