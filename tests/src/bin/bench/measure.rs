//! One measurement: a client at work for a time, and what it cost.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use underpass_tests::usage::resident;

use super::client::{Client, Told, Work};
use super::paths::{Path, Peer, Setting};

/// What is measured.
pub(crate) struct Mode {
    pub(crate) name: &'static str,
    /// The mode of the client, and how much it does at a time.
    pub(crate) pace: &'static str,
    pub(crate) workers: usize,
    /// The way a figure is read.
    pub(crate) figure: Figure,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Operations per second.
    Rate,
    /// Time of one operation.
    Latency,
    /// Bytes per second.
    Bytes,
    /// Memory per connection.
    Memory,
    /// A point of the picture.
    Growth,
}

const fn mode(name: &'static str, pace: &'static str, workers: usize, figure: Figure) -> Mode {
    Mode {
        name,
        pace,
        workers,
        figure,
    }
}

/// All of them. Memory comes first, while the peer has just started.
pub(crate) const MODES: [Mode; 12] = [
    mode("idle", "idle", 1500, Figure::Memory),
    mode("single", "connections", 1, Figure::Latency),
    mode("connections", "connections", 16, Figure::Rate),
    mode("tls", "tls", 16, Figure::Rate),
    mode("requests", "requests", 32, Figure::Rate),
    mode("bulk", "bulk", 4, Figure::Bytes),
    mode("growth-1", "requests", 1, Figure::Growth),
    mode("growth-10", "requests", 10, Figure::Growth),
    mode("growth-100", "requests", 100, Figure::Growth),
    mode("growth-1000", "requests", 1000, Figure::Growth),
    mode("growth-3000", "requests", 3000, Figure::Growth),
    mode("growth-9000", "requests", 9000, Figure::Growth),
];

impl Mode {
    /// Whether it says anything of this path.
    pub(crate) fn suits(&self, path: &Path) -> bool {
        match self.figure {
            // Without a peer there is nothing whose memory it could be; and a proxy with a thread
            // for each tunnel has no such number of threads.
            Figure::Memory => path.is_transparent() && path.is_by_gateway(),
            // The picture has those that users choose between.
            Figure::Growth => {
                let most = match path.name {
                    "explicit" | "underpass" | "underpass-h2" | "envoy" => usize::MAX,
                    // It has six descriptors for each connection.
                    "redsocks" => 3000,
                    _ => 0,
                };
                self.workers <= most
            }
            _ => true,
        }
    }
}

/// What came of a measurement.
pub(crate) struct Measured {
    pub(crate) path: &'static str,
    pub(crate) mode: &'static str,
    pub(crate) workers: usize,
    pub(crate) told: Told,
    /// How much more the peer has in memory than before, in KiB.
    pub(crate) memory: f64,
}

impl Measured {
    pub(crate) fn to_json(&self) -> Value {
        let mut json = self.told.to_json();
        json["path"] = json!(self.path);
        json["mode"] = json!(self.mode);
        json["workers"] = json!(self.workers);
        json["memory_kib"] = json!(self.memory);
        json
    }
}

pub(crate) fn measure(
    setting: &Setting,
    path: &Path,
    peer: Option<&Peer>,
    mode: &Mode,
    time: Duration,
) -> anyhow::Result<Measured> {
    let client = Client {
        setting,
        cgroup: path.cgroup(setting),
        via: path.via(),
        watch: peer.map(Peer::pid),
    };
    let work = Work {
        mode: mode.pace,
        workers: mode.workers,
        kept: None,
        time,
    };
    let hold = || {
        let held = client.hold(work);
        held.with_context(|| format!("{} {}", path.name, mode.name))
    };
    // What is taken once, or was left by the start of the program, is not of the connections that
    // come to others.
    let others = (mode.figure == Figure::Memory).then(hold).transpose()?;
    let memory = || client.watch.map_or(0.0, resident);
    let before = memory();
    let (told, running) = hold()?;
    let memory = memory() - before;
    drop((running, others));
    Ok(Measured {
        path: path.name,
        mode: mode.name,
        workers: mode.workers,
        told,
        memory,
    })
}
