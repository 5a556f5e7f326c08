//! Envoy as the forward proxy: it ends CONNECT over HTTP/1.1 and HTTP/2, and POST where a stream
//! is asked for in that way.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::forward::{ForwardProxy, Options, addresses, directory, tabbed, write};
use crate::process::Cmd;
use crate::{Place, World, tools};

pub mod client;
mod transparent;

pub use transparent::start as transparent;

/// What [`tabbed`] reads.
const FORMAT: &str = "%REQ(:METHOD)% %REQ(:AUTHORITY)% %PROTOCOL%\t%RESPONSE_CODE%\t\
    %REQ(PROXY-AUTHORIZATION)%\t%DOWNSTREAM_TLS_VERSION%\t%REQUESTED_SERVER_NAME%\t\
    %DOWNSTREAM_PEER_SUBJECT%\t-\n";

/// As many tunnels as anybody wants: without it Envoy stops at 1024.
const MANY: u32 = 100_000;

/// The HTTP versions it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
    /// Both: over TLS as ALPN says, without TLS by what the client begins with.
    Both,
}

/// Starts it and waits until it answers. It resolves names itself, and dials what it is asked for.
#[track_caller]
pub fn start(world: &World, options: &Options<'_>, versions: Versions) -> ForwardProxy {
    let dir = directory(world, "envoy", options.port);
    let log = dir.join("access.log");
    let listener = listener(world, options, versions, &log);
    let command = command(world.inet(), &dir, &listener, &upstreams(), 1);
    ForwardProxy::start(world, command, options.port, log, tabbed)
}

/// A command that runs Envoy with one listener, one cluster and so many threads, in `dir`.
#[track_caller]
fn command(place: &Place, dir: &Path, listener: &Value, cluster: &Value, threads: u8) -> Cmd {
    let configuration = json!({
        "static_resources": { "listeners": [listener], "clusters": [cluster] },
    });
    let file = dir.join("envoy.json");
    write(&file, &configuration.to_string());
    // The log is written at once, and there is no way for several on one machine to meet.
    let command = place.command(binary()).arg("--config-path").arg(file);
    command
        .args([
            "--concurrency",
            &threads.to_string(),
            "--disable-hot-restart",
        ])
        .args(["--file-flush-interval-msec", "10"])
        .args(["--log-level", "warning"])
}

/// The program: what `cargo xtask setup` left beside the build.
#[track_caller]
fn binary() -> PathBuf {
    let envoy = tools::find("bin/envoy");
    envoy.expect("no Envoy in cargo's target folder: `cargo xtask setup` gets it")
}

#[track_caller]
fn listener(world: &World, options: &Options<'_>, versions: Versions, log: &Path) -> Value {
    let [address, additional] = addresses(options.port).map(|address| {
        json!({ "socket_address": {
            "address": address.ip().to_string(),
            "port_value": address.port(),
        }})
    });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "proxy",
        "codec_type": match versions {
            Versions::Http1 => "HTTP1",
            Versions::Http2 => "HTTP2",
            Versions::Both => "AUTO",
        },
        "http2_protocol_options": { "allow_connect": true },
        "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
        "stream_idle_timeout": "0s",
        // Else a client of HTTP/1.1 sees the end of the target's data a second late.
        "delayed_close_timeout": "0s",
        "access_log": [{ "name": "file", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": log,
            "log_format": { "text_format_source": { "inline_string": FORMAT } },
        }}],
        "route_config": { "virtual_hosts": [{
            "name": "any",
            "domains": ["*"],
            "routes": routes(world, options),
        }]},
        "http_filters": [
            { "name": "names", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
                "dns_cache_config": dns(),
            }},
            { "name": "router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            }},
        ],
    });
    let mut chain = json!({ "filters": [{ "name": "http", "typed_config": manager }] });
    if let Some(identity) = options.security.identity() {
        let alpn: &[&str] = match versions {
            Versions::Http1 => &["http/1.1"],
            Versions::Http2 => &["h2"],
            Versions::Both => &["h2", "http/1.1"],
        };
        let mut common = json!({
            "alpn_protocols": alpn,
            "tls_certificates": [{
                "certificate_chain": { "filename": identity.certificate },
                "private_key": { "filename": identity.key },
            }],
        });
        if let Some(authority) = options.security.client_ca() {
            common["validation_context"] = json!({ "trusted_ca": { "filename": authority } });
        }
        chain["transport_socket"] = json!({ "name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": options.security.client_ca().is_some(),
            "common_tls_context": common,
        }});
    }
    let mut listener = json!({
        "name": "proxy",
        "address": address,
        "additional_addresses": [{ "address": additional }],
        "filter_chains": [chain],
    });
    if options.security.identity().is_some() {
        // Only this notices which server name was asked for.
        listener["listener_filters"] = json!([{ "name": "server-name", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        }}]);
    }
    listener
}

/// CONNECT, and POST in its place, with the right credentials; 407 without.
#[track_caller]
fn routes(world: &World, options: &Options<'_>) -> Vec<Value> {
    let demanded = options.credentials.header(world);
    let mut headers = Vec::new();
    if let Some(value) = &demanded {
        headers.push(json!({
            "name": "proxy-authorization",
            "string_match": { "exact": value },
        }));
    }
    let tunnel = |connect: Value| {
        json!({
            "cluster": "any",
            "timeout": "0s",
            "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": connect }],
        })
    };
    let connect = json!({
        "match": { "connect_matcher": {}, "headers": headers },
        "route": tunnel(json!({})),
    });
    headers.push(json!({ "name": ":method", "string_match": { "exact": "POST" } }));
    let post = json!({
        "match": { "prefix": "/", "headers": headers },
        "route": tunnel(json!({ "allow_post": true })),
    });
    let mut routes = vec![connect, post];
    if let Some(value) = demanded {
        let scheme = value.split(' ').next().unwrap_or_default();
        let refusal = |matched: Value| {
            json!({
                "match": matched,
                "direct_response": { "status": 407 },
                "response_headers_to_add": [{ "header": {
                    "key": "proxy-authenticate",
                    "value": format!("{scheme} realm=\"proxy.example\""),
                }}],
            })
        };
        routes.push(refusal(json!({ "connect_matcher": {} })));
        routes.push(refusal(json!({ "prefix": "/" })));
    }
    routes
}

/// Whatever a request names.
fn upstreams() -> Value {
    json!({
        "name": "any",
        "connect_timeout": "5s",
        "lb_policy": "CLUSTER_PROVIDED",
        "circuit_breakers": { "thresholds": [{
            "max_connections": MANY, "max_pending_requests": MANY, "max_requests": MANY,
        }]},
        "cluster_type": { "name": "names", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
            "dns_cache_config": dns(),
        }},
    })
}

/// The cache of names, the same for filter and cluster.
fn dns() -> Value {
    json!({ "name": "names", "dns_lookup_family": "V4_PREFERRED" })
}
