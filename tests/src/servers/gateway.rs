//! `underpass gateway` as the forward proxy, where another's speed would limit a test.

use crate::World;
use crate::addr::{proxy_v4, proxy_v6};
use crate::agent::binary;
use crate::process::Running;

/// A gateway on `proxy.example`, port 3128, both families, for all targets and ports.
pub struct Gateway(Running);

impl Gateway {
    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn start(world: &World) -> Self {
        let command = world.inet().command(binary()).arg("gateway");
        let command = command
            .args(["--listen", &proxy_v4().to_string()])
            .args(["--listen", &proxy_v6().to_string()])
            // The targets are on its own machine, so they must be named.
            .args(["--allow", "203.0.113.0/24:*"])
            .args(["--allow", "[2001:db8:113::/64]:*"])
            .args(["--log-level", "warn"]);
        let mut running = command.start();
        running.wait_until_listening(world.inet(), proxy_v6());
        Self(running)
    }

    /// The ends of its logs, for a message.
    pub fn tails(&self) -> String {
        self.0.tails()
    }
}
