//! `underpass gateway`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use super::options::LogOptions;
use crate::dns::Resolver;
use crate::gateway::{AllowRule, CredentialFile, Gateway, GatewayConfig};
use crate::sockets::PlainSockets;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Where clients connect; may be given several times
    #[arg(long, value_name = "ADDR", required = true)]
    listen: Vec<SocketAddr>,

    /// Where clients may go: HOST[:PORT], HOST a name, *.name, *, address or CIDR, PORT a number
    /// or *, 443 if not given; may be given several times [default: *:443]
    #[arg(long, value_name = "RULE")]
    allow: Vec<AllowRule>,

    /// Only for the users in this file: lines of USER:PASSWORD
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,

    /// Clients at a time; those above are answered 503
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_connections: usize,

    #[command(flatten)]
    log: LogOptions,
}

pub(super) fn main(args: Args) -> Result<ExitCode, Failure> {
    let log = args.log.start("info")?;
    let credentials = args
        .credentials
        .map(|path| CredentialFile::load(&path))
        .transpose()
        .map_err(Failure::usage)?;
    let config = GatewayConfig {
        listen: args.listen,
        allow: args.allow,
        credentials,
        max_connections: args.max_connections,
        ..GatewayConfig::default()
    };
    let runtime = Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let resolver = Resolver::from_system(Arc::new(PlainSockets));
        let gateway = Gateway::bind(config, resolver).await?;
        for address in gateway.addresses() {
            tracing::info!(%address, "listening");
        }
        gateway
            .serve(async {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tracing::info!("no new clients; waiting for the tunnels to end");
            })
            .await;
        anyhow::Ok(())
    })?;
    log.flush(super::FLUSH);
    Ok(ExitCode::SUCCESS)
}
