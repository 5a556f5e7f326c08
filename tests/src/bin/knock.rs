//! `knock ADDRESS COUNT`: connects COUNT times, one after the other, and says nothing.
//!
//! Prints one line of JSON: how many nanoseconds `connect` itself took, `p10` and `p50` of all, how
//! many `failed`, and `error`, why the first one did. Each connection is reset at once, so that
//! nothing of one is left when the next comes.

#![expect(clippy::print_stdout, reason = "it is there to be read")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let address: SocketAddr = words.next().context("no address")?.parse()?;
    let count: usize = words.next().context("no count")?.parse()?;
    ensure!(count > 0, "nothing to do");
    let to = SockAddr::from(address);
    let mut times = Vec::with_capacity(count);
    let (mut failed, mut error) = (0, None);
    for _ in 0..count {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_linger(Some(Duration::ZERO))?;
        let start = Instant::now();
        let connected = socket.connect(&to);
        let time = start.elapsed();
        match connected {
            Ok(()) => times.push(time.as_nanos() as u64),
            Err(refused) => {
                failed += 1;
                error.get_or_insert(refused.to_string());
            }
        }
    }
    times.sort_unstable();
    let at = |tenths: usize| times.get(times.len() * tenths / 10);
    println!(
        "{}",
        json!({ "p10": at(1), "p50": at(5), "failed": failed, "error": error })
    );
    Ok(())
}
