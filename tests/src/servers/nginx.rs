//! nginx as the site on the internet.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::addr::{INTERNAL_V4, SITE_V4, SITE_V6};
use crate::pki::{Authority, Issued, Pki};
use crate::process::Running;
use crate::{Must as _, World};

/// A site that answers every path with [`Nginx::GREETING`], on port 80, and on 443 with TLS,
/// HTTP/1.1 and HTTP/2. It also serves the internal destination, on the same ports.
pub struct Nginx {
    _running: Running,
    log: PathBuf,
}

/// How the site does TLS.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Its certificate.
    pub identity: &'a Issued,
    /// The authority whose clients alone it lets in, by TLS; others get status 400.
    pub clients: Option<&'a Authority>,
}

/// One request, as the site saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The peer's address.
    pub peer: String,
    /// The address that was connected to.
    pub address: String,
    /// The port that was connected to.
    pub port: String,
    /// The server name of TLS, or `-`.
    pub sni: String,
    /// The Host header.
    pub host: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: String,
    /// The path.
    pub path: String,
    /// `TLSv1.2`, `TLSv1.3`, or empty without TLS.
    pub tls: String,
    /// What ALPN agreed on: `h2`, `http/1.1`, or empty without.
    pub alpn: String,
    /// The header traceparent, or empty without one.
    pub traceparent: String,
    /// The header tracestate, or empty without one.
    pub tracestate: String,
    /// The subject of the client's certificate, or empty without one.
    pub client: String,
}

impl Nginx {
    /// The body of every answer.
    pub const GREETING: &str = "hello from site.example\n";

    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn start(world: &World, pki: &Pki) -> Self {
        let options = Options {
            identity: pki.server(),
            clients: None,
        };
        Self::start_with(world, &options)
    }

    /// As [`start`](Self::start), with TLS of the test's own.
    #[track_caller]
    pub fn start_with(world: &World, options: &Options<'_>) -> Self {
        let dir = world.dir().join("nginx");
        fs::create_dir(&dir).must("make nginx's directory");
        let log = dir.join("access.log");
        let listen: String = [
            format!("{SITE_V4}"),
            format!("[{SITE_V6}]"),
            INTERNAL_V4.to_string(),
        ]
        .iter()
        .map(|address| format!("listen {address}:80; listen {address}:443 ssl http2;\n"))
        .collect();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|what| format!("{what}_temp_path {}/{what};\n", dir.display()))
            .collect();
        let clients = options.clients.map_or_else(String::new, |authority| {
            format!(
                "ssl_verify_client on; ssl_client_certificate {};\n",
                authority.certificate().display()
            )
        });
        let configuration = format!(
            "daemon off; master_process off; pid {dir}/pid; error_log stderr;\n\
             worker_rlimit_nofile 16384;\n\
             events {{ worker_connections 8192; }}\n\
             http {{\n\
             {temporary}\
             log_format seen '$remote_addr $server_addr $server_port $ssl_server_name '\n\
                 '$http_host $server_protocol $request_uri '\n\
                 '$ssl_protocol $ssl_alpn_protocol $http_traceparent $http_tracestate '\n\
                 '$ssl_client_s_dn';\n\
             access_log {log} seen;\n\
             server {{\n\
             {listen}\
             ssl_certificate {certificate};\n\
             ssl_certificate_key {key};\n\
             ssl_protocols TLSv1.2 TLSv1.3;\n\
             {clients}\
             location / {{ default_type text/plain; return 200 '{greeting}'; }}\n\
             }}\n\
             }}\n",
            dir = dir.display(),
            log = log.display(),
            certificate = options.identity.certificate.display(),
            key = options.identity.key.display(),
            greeting = Self::GREETING,
        );
        let file = dir.join("nginx.conf");
        fs::write(&file, configuration).must("write nginx.conf");
        let command = world
            .inet()
            .command("nginx")
            .arg("-p")
            .arg(&dir)
            .arg("-c")
            .arg(&file);
        let mut running = command.args(["-e", "stderr"]).start();
        running.wait_until_listening(world.inet(), SocketAddr::from((SITE_V4, 443)));
        Self {
            _running: running,
            log,
        }
    }

    /// The requests it has answered, oldest first.
    pub fn requests(&self) -> Vec<Request> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines()
            .map(|line| {
                // A subject may have spaces.
                let mut words = line.splitn(12, ' ').map(str::to_owned);
                let mut next = || words.next().unwrap_or_default();
                Request {
                    peer: next(),
                    address: next(),
                    port: next(),
                    sni: next(),
                    host: next(),
                    protocol: next(),
                    path: next(),
                    tls: given(next()),
                    alpn: given(next()),
                    traceparent: given(next()),
                    tracestate: given(next()),
                    client: given(next()),
                }
            })
            .collect()
    }
}

/// A field for which nginx writes `-` when there is nothing to say.
fn given(field: String) -> String {
    if field == "-" { String::new() } else { field }
}
