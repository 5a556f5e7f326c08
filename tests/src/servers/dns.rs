//! dnsmasq as the only name server of the world.

use std::fmt::Write as _;
use std::net::SocketAddr;

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
        let records = NAMES.iter().map(|(name, addresses)| {
            addresses
                .iter()
                .fold(format!("--host-record={name}"), |mut record, address| {
                    let _ = write!(record, ",{address}");
                    record
                })
        });
        let address = format!("--listen-address={DNS_V4}");
        let mut running = dnsmasq.arg(address).args(records).start();
        running.wait_until_listening(world.inet(), SocketAddr::from((DNS_V4, 53)));
        Self { running }
    }

    /// Whether anybody has asked for `name`.
    pub fn was_asked_for(&self, name: &str) -> bool {
        let mut log = self.running.stderr();
        log.push_str(&self.running.stdout());
        let wanted = format!(" {name} from ");
        log.lines()
            .any(|line| line.contains("query[") && line.contains(&wanted))
    }
}
