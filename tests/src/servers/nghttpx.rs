//! nghttpx as an HTTP/2 forward proxy. It dials nothing itself but asks another proxy.

use std::net::SocketAddr;

use super::forward::{Credentials, ForwardProxy, Options, addresses, directory, tabbed};
use crate::World;

/// What [`tabbed`] reads.
const FORMAT: &str = "--accesslog-format=$request\t$status\t$http_proxy_authorization\t\
    $tls_protocol\t$tls_sni\t$tls_client_subject_name\t$tls_session_reused";

/// Starts it before the proxy `behind`, which speaks HTTP/1.1 without TLS, and waits until it
/// answers. It speaks HTTP/1.1 and HTTP/2: over TLS as ALPN says, without TLS by prior knowledge.
///
/// It passes credentials on. Panics if asked to demand some, which is for the proxy behind it.
#[track_caller]
pub fn start(world: &World, options: &Options<'_>, behind: SocketAddr) -> ForwardProxy {
    assert!(
        matches!(options.credentials, Credentials::None),
        "nghttpx leaves credentials to the proxy behind it"
    );
    let dir = directory(world, "nghttpx", options.port);
    let log = dir.join("access.log");
    let mut command = world.inet().command("nghttpx").args([
        "--conf=/dev/null",
        "--http2-proxy",
        "--workers=1",
        "--single-process",
        "--no-location-rewrite",
        // To one host, which is how it counts tunnels as well, it has 8 otherwise.
        "--backend-connections-per-host=10000",
        FORMAT,
    ]);
    for address in addresses(options.port) {
        let plain = if options.security.identity().is_some() {
            ""
        } else {
            ";no-tls"
        };
        command = command.arg(format!(
            "--frontend={},{}{plain}",
            address.ip(),
            address.port()
        ));
    }
    command = command
        .arg(format!("--backend={},{}", behind.ip(), behind.port()))
        .arg(format!("--accesslog-file={}", log.display()))
        .arg("--errorlog-file=/dev/stderr");
    if let Some(authority) = options.security.client_ca() {
        command = command
            .arg("--verify-client")
            .arg(format!("--verify-client-cacert={}", authority.display()));
    }
    if let Some(identity) = options.security.identity() {
        command = command.arg(&identity.key).arg(&identity.certificate);
    }
    ForwardProxy::start(world, command, options.port, log, tabbed)
}
