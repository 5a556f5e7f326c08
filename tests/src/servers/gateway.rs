//! `underpass gateway` as the forward proxy.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use super::forward::{Credentials, Options, addresses, directory};
use crate::addr::{proxy_v4, proxy_v6};
use crate::agent::{Access, access_log, binary};
use crate::process::{Cmd, Running};
use crate::{Must as _, World, poll};

/// Who has the credentials of [`Options`], where they are only a token.
pub const TOKENS_USER: &str = "bearer";

/// A gateway on `proxy.example`, both families, for all targets and ports.
pub struct Gateway(Running);

impl Gateway {
    /// Starts it on port 3128 and waits until it answers. It logs nothing that a load would have
    /// it write, and takes as many tunnels as there are descriptors for.
    #[track_caller]
    pub fn start(world: &World) -> Self {
        let command = command(world).args(["--log-level", "warn"]);
        let command = command.args(["--max-connections", "20000", "--max-streams", "2000"]);
        let command = command
            .args(["--listen", &proxy_v4().to_string()])
            .args(["--listen", &proxy_v6().to_string()]);
        let mut running = command.start();
        running.wait_until_listening(world.inet(), proxy_v6());
        Self(running)
    }

    /// Starts it with the same for its clients as any other proxy, and waits until it answers.
    /// POST over HTTP/2 is a tunnel.
    #[track_caller]
    pub fn start_with(world: &World, options: &Options<'_>) -> Self {
        let dir = directory(world, "gateway", options.port);
        let mut command = command(world).args(["--log-format", "json", "--allow-post"]);
        for address in addresses(options.port) {
            command = command.args(["--listen", &address.to_string()]);
        }
        if let Some(identity) = options.security.identity() {
            command = command
                .arg("--tls-cert")
                .arg(&identity.certificate)
                .arg("--tls-key")
                .arg(&identity.key);
        }
        if let Some(authority) = options.security.client_ca() {
            command = command.arg("--tls-client-ca").arg(authority);
        }
        let users = match options.credentials {
            Credentials::None => None,
            Credentials::Basic(user, password) => {
                Some(("--credentials", format!("{user}:{password}\n")))
            }
            Credentials::Bearer(token) => Some(("--tokens", format!("{TOKENS_USER}:{token}\n"))),
        };
        if let Some((option, line)) = users {
            let file = dir.join("users");
            fs::write(&file, line).must("write the gateway's users");
            fs::set_permissions(&file, Permissions::from_mode(0o600)).must("hide them");
            command = command.arg(option).arg(file);
        }
        let mut running = command.start();
        for address in addresses(options.port) {
            running.wait_until_listening(world.inet(), address);
        }
        Self(running)
    }

    /// Waits until it has logged `count` requests, most of them at their end, and takes them.
    #[track_caller]
    pub fn wait_for_log(&self, count: usize) -> Vec<Access> {
        let complete = || Some(access_log(&self.0)).filter(|log| log.len() >= count);
        poll(Duration::from_secs(20), complete)
            .unwrap_or_else(|| panic!("not {count} requests: {}", self.tails()))
    }

    /// The ends of its logs, for a message.
    pub fn tails(&self) -> String {
        self.0.tails()
    }
}

fn command(world: &World) -> Cmd {
    let command = world.inet().command(binary()).arg("gateway");
    // The targets are on its own machine, so they must be named.
    command
        .args(["--allow", "203.0.113.0/24:*"])
        .args(["--allow", "[2001:db8:113::/64]:*"])
}
