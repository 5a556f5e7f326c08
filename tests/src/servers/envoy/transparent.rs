//! Envoy as a peer of the agent: it takes what the kernel redirects to it, and asks a forward proxy
//! for a tunnel to where that was going.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;

use serde_json::json;

use super::client::socket;
use super::{MANY, command};
use crate::process::Running;
use crate::servers::forward::directory;
use crate::{Must as _, World};

/// Starts it on `port` of the host's loopback, with as many threads as the machine has. `version`
/// is that of HTTP towards the proxy, as Envoy's cluster has it: `http_protocol_options` or
/// `http2_protocol_options`.
#[track_caller]
pub fn start(world: &World, port: u16, proxy: SocketAddr, version: &str) -> Running {
    let dir = directory(world, "envoy-transparent", port);
    let listener = json!({
        "name": "redirected",
        "address": socket(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        "tcp_backlog_size": 16384,
        "listener_filters": [{ "name": "original-dst", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
        }}],
        "filter_chains": [{ "filters": [{ "name": "tunnel", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "tunnel",
            "cluster": "proxy",
            "tunneling_config": { "hostname": "%DOWNSTREAM_LOCAL_ADDRESS%" },
        }}]}],
    });
    let cluster = json!({
        "name": "proxy",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": { "thresholds": [{
            "max_connections": MANY, "max_pending_requests": MANY, "max_requests": MANY,
        }]},
        "load_assignment": { "cluster_name": "proxy", "endpoints": [{ "lb_endpoints": [{
            "endpoint": { "address": socket(proxy) },
        }]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { (version): {} },
            },
        },
    });
    let threads = thread::available_parallelism().must("count the processors");
    let threads = threads.get().try_into().unwrap_or(u8::MAX);
    command(world.host(), &dir, &listener, &cluster, threads).start()
}
