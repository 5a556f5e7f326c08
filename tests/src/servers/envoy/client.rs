//! Envoy as a client of forward proxies, for what curl does not speak: CONNECT and POST over
//! HTTP/2.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::command;
use crate::World;
use crate::pki::Issued;
use crate::process::Running;
use crate::servers::forward::directory;

const PATIENCE: Duration = Duration::from_secs(10);

/// How it asks for a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// CONNECT over HTTP/1.1.
    Http1,
    /// CONNECT over HTTP/2.
    Http2,
    /// POST over HTTP/2.
    Http2Post,
}

/// What a tunnel is to be.
#[derive(Clone, Copy)]
pub struct Tunnel<'a> {
    /// The proxy's address.
    pub proxy: SocketAddr,
    /// How it is asked.
    pub way: Way,
    /// `HOST:PORT` at the tunnel's far end.
    pub target: &'a str,
    /// TLS to the proxy.
    pub tls: Option<Tls<'a>>,
    /// The value of Proxy-Authorization.
    pub authorization: Option<&'a str>,
}

/// TLS to the proxy.
#[derive(Clone, Copy)]
pub struct Tls<'a> {
    /// The authority the proxy's certificate must be from; its name must be `proxy.example`.
    pub authority: &'a Path,
    /// The client's own certificate.
    pub identity: Option<&'a Issued>,
}

/// A listener on the host's loopback whose connections all go through one proxy to one target.
pub struct Client {
    running: Running,
    address: SocketAddr,
}

impl Client {
    /// Starts it on `port` and waits until it answers.
    #[track_caller]
    pub fn start(world: &World, port: u16, tunnel: &Tunnel<'_>) -> Self {
        let dir = directory(world, "envoy-client", port);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (listener, cluster) = (listener(address, tunnel), cluster(tunnel));
        let mut running = command(world.host(), &dir, &listener, &cluster, 1).start();
        let pid = running.pid();
        // Not by connecting, which would ask the proxy for a tunnel.
        let what = format!("Envoy listens on {address}");
        running.wait_for(&what, PATIENCE, || listens(pid, port));
        Self { running, address }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The ends of its logs, for a message.
    pub fn tails(&self) -> String {
        self.running.tails()
    }
}

fn listener(address: SocketAddr, tunnel: &Tunnel<'_>) -> Value {
    let mut tunneling = json!({ "hostname": tunnel.target });
    if tunnel.way == Way::Http2Post {
        tunneling["use_post"] = json!(true);
        tunneling["post_path"] = json!("/");
    }
    if let Some(value) = tunnel.authorization {
        tunneling["headers_to_add"] = json!([{
            "header": { "key": "proxy-authorization", "value": value },
        }]);
    }
    json!({
        "name": "client",
        "address": socket(address),
        "filter_chains": [{ "filters": [{ "name": "tunnel", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "tunnel",
            "cluster": "proxy",
            "tunneling_config": tunneling,
        }}]}],
    })
}

fn cluster(tunnel: &Tunnel<'_>) -> Value {
    let (version, alpn) = match tunnel.way {
        Way::Http1 => ("http_protocol_options", "http/1.1"),
        Way::Http2 | Way::Http2Post => ("http2_protocol_options", "h2"),
    };
    let mut cluster = json!({
        "name": "proxy",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": { "cluster_name": "proxy", "endpoints": [{ "lb_endpoints": [{
            "endpoint": { "address": socket(tunnel.proxy) },
        }]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { (version): {} },
            },
        },
    });
    if let Some(tls) = &tunnel.tls {
        let mut common = json!({
            "alpn_protocols": [alpn],
            // As a client it stops at TLS 1.2 by default.
            "tls_params": { "tls_maximum_protocol_version": "TLSv1_3" },
            "validation_context": {
                "trusted_ca": { "filename": tls.authority },
                "match_typed_subject_alt_names": [{
                    "san_type": "DNS",
                    "matcher": { "exact": "proxy.example" },
                }],
            },
        });
        if let Some(identity) = tls.identity {
            common["tls_certificates"] = json!([{
                "certificate_chain": { "filename": identity.certificate },
                "private_key": { "filename": identity.key },
            }]);
        }
        cluster["transport_socket"] = json!({ "name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": "proxy.example",
            "common_tls_context": common,
        }});
    }
    cluster
}

pub(super) fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": {
        "address": address.ip().to_string(),
        "port_value": address.port(),
    }})
}

/// Whether something listens on `port` in the network namespace of the process `pid`.
fn listens(pid: u32, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let local = format!(":{port:04X}");
    table.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        matches!(words[..], [_, address, _, LISTEN, ..] if address.ends_with(&local))
    })
}
