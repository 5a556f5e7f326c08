//! `underpass run`: the agent of a node.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::options::{
    CaptureOptions, KubernetesOptions, LogOptions, RuntimeOptions, SecretOptions, TraceOptions,
};
use super::{FLUSH, Failure};
use crate::admin::Endpoints;
use crate::app::{self, Config, PolicySource, Running, Scope};
use crate::capabilities;
use crate::capture::{self, Reach};
use crate::limits::raise_descriptors;
use crate::policy::Options;

/// Less than the 30 s that Kubernetes and systemd give a process to end.
const DRAIN: Duration = Duration::from_secs(25);

#[derive(clap::Args)]
pub(super) struct Args {
    /// Policy files, and directories of them; they are read again when they change, and at SIGHUP
    #[arg(long, value_name = "PATH", required_unless_present = "kubernetes", num_args = 1..)]
    policy: Vec<PathBuf>,

    #[command(flatten)]
    kubernetes: KubernetesOptions,

    #[command(flatten)]
    secrets: SecretOptions,

    /// Capture what this cgroup and those below it connect to [default: the whole node; with
    /// --kubernetes, all pods: the node's own services, kubelet among them, never depend on the agent]
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,

    #[command(flatten)]
    capture: CaptureOptions,

    /// Serve /metrics and /stats/prometheus here
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:15020")]
    metrics_addr: SocketAddr,

    /// Serve /healthz/ready and /healthz/live here
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:15021")]
    ready_addr: SocketAddr,

    /// Serve /status, /config_dump, /connections and /logging here
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    admin_addr: SocketAddr,

    #[command(flatten)]
    runtime: RuntimeOptions,

    #[command(flatten)]
    traces: TraceOptions,

    #[command(flatten)]
    log: LogOptions,
}

pub(super) fn main(args: Args) -> Result<ExitCode, Failure> {
    let verbose = args.log.verbose();
    let log = args.log.start("info")?;
    let traces = args.traces.settings(true)?;
    let hierarchy = capture::preflight()?;
    let scope = match &args.cgroup {
        Some(path) => Scope::Cgroup(hierarchy.cgroup(path).map_err(Failure::usage)?),
        None if args.kubernetes.is_wanted() => Scope::Pods(hierarchy),
        None => Scope::Cgroup(hierarchy.root().to_owned()),
    };
    let limits = args.capture.limits_of_node();
    match raise_descriptors(limits.connections) {
        Ok(descriptors) if descriptors.too_few() => tracing::warn!("{descriptors}"),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of file descriptors"),
    }
    let cluster = args.kubernetes.cluster()?;
    let options = Options {
        virtual_range: args.capture.virtual_range()?,
        internal_cidrs: args.capture.internal_cidr,
        root_namespace: cluster.as_ref().map(|it| it.root_namespace.clone()),
    };
    let config = Config {
        scope,
        reach: Reach::EveryNamespace,
        never: args.capture.never_capture,
        limits,
        verbose,
        outlives_us: true,
        policy: PolicySource::files(args.secrets.with(args.policy), options),
        kubernetes: cluster,
        endpoints: Endpoints {
            metrics: Some(args.metrics_addr),
            ready: Some(args.ready_addr),
            admin: Some(args.admin_addr),
        },
        traces,
        drain: DRAIN,
    };
    args.runtime.runtime()?.block_on(async {
        let running = app::build(config, log.clone()).await?;
        // Before the canaries' helper is started.
        give_up_privileges();
        let watch = running.watch_capture();
        running.follow_policy();
        let status = until_told(running).await;
        // It has been told, and has a cgroup to remove. A panic in it has been reported.
        let _ = watch.join();
        log.flush(FLUSH);
        status
    })
}

/// From here on the agent can do less, and serves all the same if it cannot give up anything.
fn give_up_privileges() {
    match capabilities::give_up().and_then(|()| capabilities::kept().map_err(io::Error::other)) {
        Ok(kept) => tracing::info!(kept = kept.join(" "), "gave up all other capabilities"),
        Err(error) => tracing::warn!(%error, "cannot give up capabilities that are not needed"),
    }
}

/// Runs until SIGTERM or SIGINT, then drains; a second one cuts that short.
async fn until_told(running: Running) -> Result<ExitCode, Failure> {
    let listen = |kind| signal(kind).context("cannot take signals");
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut hangup = listen(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => running.reload(),
        }
    }
    tracing::info!("draining; a second signal stops at once");
    let hurry = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    running.drain(hurry).await;
    tracing::info!("drained");
    Ok(ExitCode::SUCCESS)
}
