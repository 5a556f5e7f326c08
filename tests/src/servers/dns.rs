//! dnsmasq as the only name server of the world.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use crate::World;
use crate::addr::{DNS_V4, NAMES};
use crate::process::Running;

/// A name server that knows [`NAMES`] and refuses everything else.
pub struct Dns {
    running: Running,
}

impl Dns {
    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn start(world: &World) -> Self {
        Self::start_with(world, &NAMES, 0)
    }

    /// As [`start`](Self::start), with names of the test's own that may be kept for `ttl` seconds.
    #[track_caller]
    pub fn start_with(world: &World, names: &[(&str, &[IpAddr])], ttl: u32) -> Self {
        Self::start_at(world, DNS_V4.into(), names, ttl)
    }

    /// Another one, at this address of the internet's side.
    #[track_caller]
    pub fn start_at(world: &World, at: IpAddr, names: &[(&str, &[IpAddr])], ttl: u32) -> Self {
        let dnsmasq = world.inet().command("dnsmasq").args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file=",
            "--user=root",
            "--no-resolv",
            "--no-hosts",
            "--local=/example/",
            "--bind-interfaces",
            "--log-queries",
            "--log-facility=-",
        ]);
        let records = names.iter().map(|(name, addresses)| {
            addresses
                .iter()
                .fold(format!("--host-record={name}"), |mut record, address| {
                    let _ = write!(record, ",{address}");
                    record
                })
        });
        let address = format!("--listen-address={at}");
        let ttl = format!("--local-ttl={ttl}");
        let mut running = dnsmasq.args([address, ttl]).args(records).start();
        running.wait_until_listening(world.inet(), SocketAddr::new(at, 53));
        Self { running }
    }

    /// The process, to be held still or ended.
    pub fn process(&mut self) -> &mut Running {
        &mut self.running
    }

    /// What it has logged: a line for each query, among others.
    pub fn log(&self) -> String {
        self.running.stderr() + &self.running.stdout()
    }

    /// Whether anybody has asked for `name`.
    pub fn was_asked_for(&self, name: &str) -> bool {
        let log = self.log();
        let wanted = format!(" {name} from ");
        log.lines()
            .any(|line| line.contains("query[") && line.contains(&wanted))
    }
}
