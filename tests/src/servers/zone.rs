//! A name server that says what no other one would.

use std::net::{Ipv4Addr, SocketAddr};

use crate::World;
use crate::process::Running;

/// The type of A records.
pub const A: u16 = 1;
/// That of signatures.
pub const RRSIG: u16 = 46;
/// That of HTTPS records (RFC 9460).
pub const HTTPS: u16 = 65;

/// A record, as `zone.py` takes it.
pub fn record(name: &str, kind: u16, ttls: &str, data: &[u8]) -> String {
    let digits: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name}/{kind}/{ttls}/{digits}")
}

/// It answers until it is dropped.
pub struct Zone {
    _running: Running,
}

impl Zone {
    /// Starts it at this address of the internet's side, and waits until it answers.
    #[track_caller]
    pub fn start_at(world: &World, at: Ipv4Addr, records: &[String]) -> Self {
        let zone = world.inet().python("zone").arg(at.to_string());
        let mut running = zone.args(records).start();
        running.wait_until_listening(world.inet(), SocketAddr::from((at, 53)));
        Self { _running: running }
    }
}
