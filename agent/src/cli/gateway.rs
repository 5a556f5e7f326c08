//! `underpass gateway`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use prometheus::Registry;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;
use super::options::{LogOptions, SecretOptions};
use crate::admin::{AdminServer, AdminState, AdminThread, Endpoints, Readiness};
use crate::app::PolicySource;
use crate::dns::Resolver;
use crate::gateway::{
    AllowRule, Chain, Control, CredentialFile, DenyRule, Gateway, GatewayConfig, GatewayMetrics,
    Scheme, TlsFiles, follow_policy,
};
use crate::limits::raise_descriptors;
use crate::policy::Options;
use crate::sockets::PlainSockets;
use crate::telemetry::ConnectionTable;
use crate::telemetry::logging::LogHandle;
use crate::tunnel::TunnelConfig;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    proxy: ProxyOptions,

    #[command(flatten)]
    chain: ChainOptions,

    /// Serve /metrics here
    #[arg(long, value_name = "ADDR")]
    metrics_addr: Option<SocketAddr>,

    #[command(flatten)]
    log: LogOptions,
}

/// What the proxy does, and for whom.
#[derive(clap::Args)]
struct ProxyOptions {
    /// Where clients connect; may be given several times
    #[arg(long, value_name = "ADDR", required = true)]
    listen: Vec<SocketAddr>,

    /// Where clients may go: HOST[:PORT], HOST a name, *.name, *, address or CIDR, PORT a number
    /// or *, 443 if not given; may be given several times [default: *:443]
    #[arg(long, value_name = "RULE")]
    allow: Vec<AllowRule>,

    /// Where clients may not go, whatever allows it; written in the same way, but any port is
    /// meant if none is given; may be given several times
    #[arg(long, value_name = "RULE")]
    deny: Vec<DenyRule>,

    /// Only for the users in this file: lines of USER:PASSWORD; read again when it changes
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,

    /// Only for whoever has a token of this file (Bearer): lines of USER:TOKEN; read again when it
    /// changes
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,

    /// Speak TLS with clients: the certificate and its chain, PEM; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The private key of the certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Only for clients with a certificate of these authorities, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,

    /// Take POST over HTTP/2 for a tunnel to its :authority, as some proxies send it, instead of
    /// forwarding it
    #[arg(long)]
    allow_post: bool,

    /// Clients at a time, each HTTP/2 stream counting as one more; those above are answered 503
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_connections: u32,

    /// Streams of one HTTP/2 connection at a time
    #[arg(long, value_name = "N", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..=8000))]
    max_streams: u32,
}

/// What is reached through further proxies.
#[derive(clap::Args)]
struct ChainOptions {
    /// Policy files, and directories of them, that say which targets are reached through further
    /// proxies, directly, or not at all; read again when they change
    #[arg(long, value_name = "PATH", num_args = 1..)]
    policy: Vec<PathBuf>,

    #[command(flatten)]
    secrets: SecretOptions,
}

impl ChainOptions {
    fn chain(
        self,
        resolver: &Resolver,
        config: &GatewayConfig,
        metrics: &GatewayMetrics,
    ) -> Result<Option<Chain>, Failure> {
        let paths = self.secrets.with(self.policy);
        match (paths.policy.is_empty(), paths.secrets.is_empty()) {
            (true, true) => return Ok(None),
            (true, false) => {
                let error = "--secrets are for what --policy says: give a policy";
                return Err(Failure::usage(anyhow::anyhow!(error)));
            }
            (false, _) => {}
        }
        let source = PolicySource::files(paths, Options::default());
        let policy = follow_policy(source).map_err(Failure::usage)?;
        let limits = TunnelConfig {
            deadline: config.connect_timeout,
        };
        Ok(Some(Chain::new(policy, resolver.clone(), limits, metrics)))
    }
}

impl ProxyOptions {
    fn config(self) -> Result<GatewayConfig, Failure> {
        let files = [
            (self.credentials, Scheme::Basic),
            (self.tokens, Scheme::Bearer),
        ];
        let users = files
            .into_iter()
            .filter_map(|(path, scheme)| Some(CredentialFile::follow(&path?, scheme)))
            .collect::<Result<_, _>>()
            .map_err(Failure::usage)?;
        let tls = self.tls_cert.zip(self.tls_key);
        let tls = tls.map(|(certificate, key)| TlsFiles {
            certificate,
            key,
            client_ca: self.tls_client_ca,
        });
        Ok(GatewayConfig {
            listen: self.listen,
            allow: self.allow,
            deny: self.deny,
            users,
            tls: tls
                .map(TlsFiles::follow)
                .transpose()
                .map_err(Failure::usage)?,
            post_tunnels: self.allow_post,
            max_connections: self.max_connections as usize,
            max_streams: self.max_streams,
            ..GatewayConfig::default()
        })
    }
}

pub(super) fn main(args: Args) -> Result<ExitCode, Failure> {
    let log = args.log.start("info")?;
    // Without it there may be fewer connections; accepting says when there are too few.
    let _ = raise_descriptors(args.proxy.max_connections);
    let mut config = args.proxy.config()?;
    let resolver = Resolver::from_system(Arc::new(PlainSockets));
    let registry = Registry::new();
    let metrics = GatewayMetrics::new(&registry).context("cannot register metrics")?;
    config.chain = args.chain.chain(&resolver, &config, &metrics)?;
    let runtime = Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        let control = Control::default();
        let signals = Signals::new()?;
        let gateway = Gateway::bind(config, resolver, metrics).await?;
        let _endpoint = args
            .metrics_addr
            .map(|addr| serve_metrics(addr, registry, log.clone()))
            .transpose()?;
        for address in gateway.addresses() {
            tracing::info!(%address, "listening");
        }
        tokio::spawn(signals.obey(control.clone()));
        gateway.serve(control).await;
        anyhow::Ok(())
    })?;
    log.flush(super::FLUSH);
    Ok(ExitCode::SUCCESS)
}

fn serve_metrics(
    addr: SocketAddr,
    registry: Registry,
    log: LogHandle,
) -> anyhow::Result<AdminThread> {
    let server = AdminServer::bind(Endpoints {
        metrics: Some(addr),
        ..Endpoints::default()
    })?;
    // Only metrics are served, so nobody can ask for the rest.
    let state = AdminState {
        registry,
        readiness: Readiness::default(),
        config_dump: Arc::new(|| json!({})),
        status: Arc::new(|| json!({})),
        connections: ConnectionTable::default(),
        log,
    };
    Ok(server.spawn_thread(state)?)
}

/// The signals that are orders.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// SIGTERM and SIGINT drain, and stop the second time; SIGHUP has files read again.
    async fn obey(mut self, control: Control) {
        let mut draining = false;
        loop {
            tokio::select! {
                _ = self.hang_up.recv() => {
                    control.reload();
                    continue;
                }
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
            if draining {
                return control.stop();
            }
            draining = true;
            tracing::info!("no new clients; waiting for the tunnels to end");
            control.drain();
        }
    }
}
