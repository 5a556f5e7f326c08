//! One measurement: a client at work for a time, and what it cost.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::unistd::{SysconfVar, sysconf};
use serde_json::{Value, json};
use underpass_tests::addr::SITE_V4;
use underpass_tests::pki::Pki;
use underpass_tests::process::Running;
use underpass_tests::{Must as _, World, poll};

use super::paths::{Path, Peer, Setting};

/// What is measured.
pub(crate) struct Mode {
    pub(crate) name: &'static str,
    /// The mode of the client, and how many connections it has at a time.
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
    mode("idle", "idle", 2000, Figure::Memory),
    mode("single", "connections", 1, Figure::Latency),
    mode("connections", "connections", 16, Figure::Rate),
    mode("tls", "tls", 16, Figure::Rate),
    mode("requests", "requests", 32, Figure::Rate),
    mode("bulk", "bulk", 4, Figure::Bytes),
    mode("growth-1", "requests", 1, Figure::Growth),
    mode("growth-8", "requests", 8, Figure::Growth),
    mode("growth-64", "requests", 64, Figure::Growth),
    mode("growth-512", "requests", 512, Figure::Growth),
    mode("growth-2000", "requests", 2000, Figure::Growth),
    mode("growth-4000", "requests", 4000, Figure::Growth),
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
                ["explicit", "underpass", "underpass-h2", "redsocks", "envoy"].contains(&path.name)
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
    pub(crate) done: f64,
    pub(crate) failed: u64,
    /// Why the first one failed.
    pub(crate) error: Option<String>,
    pub(crate) bytes: f64,
    pub(crate) seconds: f64,
    /// Of one operation, in microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Of the agent or its peer, in seconds.
    pub(crate) cpu: f64,
    /// How much more it has in memory than before, in KiB.
    pub(crate) memory: f64,
}

impl Measured {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "path": self.path, "mode": self.mode, "workers": self.workers, "done": self.done,
            "failed": self.failed, "error": self.error, "bytes": self.bytes, "seconds": self.seconds,
            "p50_us": self.p50, "p99_us": self.p99, "cpu_seconds": self.cpu,
            "memory_kib": self.memory,
        })
    }
}

pub(crate) fn measure(
    setting: &Setting,
    path: &Path,
    peer: Option<&Peer>,
    mode: &Mode,
    time: Duration,
) -> anyhow::Result<Measured> {
    // What is taken once, or was left by the start of the program, is not of the connections that
    // come to others.
    let others = (mode.figure == Figure::Memory).then(|| run(setting, path, mode, time));
    let others = others.transpose()?;
    let before = peer.map_or((0.0, 0.0), usage);
    let (client, line) = run(setting, path, mode, time)?;
    let after = peer.map_or((0.0, 0.0), usage);
    drop((client, others));
    let read: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
    let number = |key: &str| read[key].as_f64().unwrap_or(f64::NAN);
    ensure!(
        number("done") > 0.0,
        "{} {}: nothing done: {}",
        path.name,
        mode.name,
        read["error"]
    );
    Ok(Measured {
        path: path.name,
        mode: mode.name,
        workers: mode.workers,
        done: number("done"),
        failed: read["failed"].as_u64().unwrap_or(1),
        error: read["error"].as_str().map(str::to_owned),
        bytes: number("bytes"),
        seconds: number("seconds"),
        p50: number("p50"),
        p99: number("p99"),
        cpu: after.0 - before.0,
        memory: after.1 - before.1,
    })
}

/// Runs a client until it says what came of it.
fn run(
    setting: &Setting,
    path: &Path,
    mode: &Mode,
    time: Duration,
) -> anyhow::Result<(Running, String)> {
    let program = std::env::current_exe()?.with_file_name("pace");
    let mut client = setting
        .world
        .host()
        .command(program)
        .in_cgroup(path.cgroup(setting))
        .arg(mode.pace)
        .arg(format!("to={}", Target::address(mode.pace == "tls")))
        .arg(format!("workers={}", mode.workers))
        .arg(format!("millis={}", time.as_millis()))
        .arg(format!("ca={}", setting.pki.ca().display()));
    if let Some(proxy) = path.via() {
        client = client.arg(format!("via={proxy}"));
    }
    let client = client.start();
    let line = first_line(&client, time + Duration::from_secs(40));
    let line = line.with_context(|| format!("{} {}\n{}", path.name, mode.name, client.tails()))?;
    Ok((client, line))
}

fn first_line(client: &Running, patience: Duration) -> Option<String> {
    poll(patience, || {
        let out = client.stdout();
        out.split_once('\n').map(|(line, _)| line.to_owned())
    })
}

/// Processor time in seconds, and resident memory in KiB.
fn usage(peer: &Peer) -> (f64, f64) {
    let pid = peer.pid();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).must("read its stat");
    // proc(5): utime and stime are the 14th and 15th field, rss the 24th; the second may have
    // spaces in it.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<f64> = rest
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap_or(f64::NAN))
        .collect();
    let conf = |var, otherwise| sysconf(var).ok().flatten().unwrap_or(otherwise) as f64;
    let per_second = conf(SysconfVar::CLK_TCK, 100);
    let page = conf(SysconfVar::PAGE_SIZE, 4096) / 1024.0;
    ((fields[10] + fields[11]) / per_second, fields[20] * page)
}

/// nginx with an answer of one kibibyte and one of one gibibyte.
pub(crate) struct Target {
    _running: Running,
}

impl Target {
    pub(crate) fn start(world: &World, pki: &Pki) -> Self {
        let dir = world.dir().join("target");
        fs::create_dir(&dir).must("make the target's directory");
        fs::write(dir.join("1k"), [b'x'; 1024]).must("write an answer");
        let long = File::create(dir.join("long")).must("make an answer");
        long.set_len(1 << 30).must("make a long answer");
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|what| format!("{what}_temp_path {}/{what};\n", dir.display()))
            .collect();
        let configuration = format!(
            "daemon off; master_process off; pid {dir}/pid; error_log stderr;\n\
             worker_rlimit_nofile 16384;\n\
             events {{ worker_connections 8192; }}\n\
             http {{\n\
             {temporary}\
             access_log off; sendfile on; tcp_nodelay on; keepalive_requests 100000000;\n\
             keepalive_timeout 600s; open_file_cache max=16;\n\
             server {{\n\
             listen {SITE_V4}:80 backlog=4096; listen {SITE_V4}:443 ssl backlog=4096;\n\
             ssl_certificate {certificate}; ssl_certificate_key {key};\n\
             ssl_protocols TLSv1.3;\n\
             root {dir};\n\
             }}\n\
             }}\n",
            dir = dir.display(),
            certificate = pki.certificate().display(),
            key = pki.key().display(),
        );
        let file = dir.join("nginx.conf");
        fs::write(&file, configuration).must("write nginx.conf");
        let command = world.inet().command("nginx").arg("-p").arg(&dir);
        let command = command.arg("-c").arg(&file).args(["-e", "stderr"]);
        let mut running = command.start();
        running.wait_until_listening(world.inet(), SocketAddr::from((SITE_V4, 443)));
        Self { _running: running }
    }

    /// Where it serves, in plain or by TLS.
    pub(crate) fn address(tls: bool) -> SocketAddr {
        SocketAddr::from((SITE_V4, if tls { 443 } else { 80 }))
    }
}
