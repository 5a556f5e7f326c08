//! `underpass exec -- CMD`: tunnels one command.

pub(super) mod enter;
pub(super) mod guard;
mod supervise;

use std::env;
use std::ffi::OsString;
use std::future::pending;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use anyhow::Context;
use nix::unistd::geteuid;

use super::options::{
    CaptureOptions, LogOptions, OptionalEndpoints, RuntimeOptions, SecretOptions, TraceOptions,
};
use super::{FLUSH, Failure, argv};
use crate::admin::Endpoints;
use crate::app::{self, Config, PolicySource, Scope};
use crate::capture::cgroup::{self, OwnedCgroup};
use crate::capture::{self, Reach};
use crate::limits::raise_descriptors;
use crate::policy::{HostList, Options, Policy, Proxy};
use crate::tls::SystemRoots;
use guard::Guard;
use supervise::Signals;

/// Exit status when `exec` itself fails, as of env(1) and timeout(1): the command's own statuses
/// stay the command's.
const EXIT_OWN_FAILURE: u8 = 125;

/// How long what the command sent may still take to reach its targets after the command's end.
const DRAIN: Duration = Duration::from_secs(5);

/// Environment variables that hold credentials, and are not for the command.
const PROXY_VARIABLE: &str = "UNDERPASS_PROXY";

#[derive(clap::Args)]
pub(super) struct Args {
    /// The forward proxy: http://[USER:PASSWORD@]HOST[:PORT], or https:// for TLS to it
    ///
    /// Without a port it is 3128, or 443 with https. The certificate has to be of an authority that
    /// this system trusts, or of one in the file that SSL_CERT_FILE names.
    /// What stands here is in the process list until the command starts to run; in the
    /// environment variable it never is.
    #[arg(long, value_name = "URL", env = PROXY_VARIABLE, hide_env_values = true)]
    proxy: Option<String>,

    /// Policy files, and directories of them, instead of a proxy
    #[arg(long, value_name = "PATH", conflicts_with = "proxy", num_args = 1..)]
    policy: Vec<PathBuf>,

    #[command(flatten)]
    secrets: SecretOptions,

    /// Hosts that are reached directly: names (with all below them), .names (only below),
    /// addresses, CIDRs, each with an optional :PORT; separated by commas
    #[arg(
        long,
        value_name = "LIST",
        conflicts_with = "policy",
        env = "UNDERPASS_NO_PROXY"
    )]
    no_proxy: Option<String>,

    /// Name of the command's cgroup [default: underpass-exec-PID]
    #[arg(long, value_name = "NAME", value_parser = cgroup_name)]
    cgroup_name: Option<String>,

    #[command(flatten)]
    capture: CaptureOptions,

    #[command(flatten)]
    endpoints: OptionalEndpoints,

    #[command(flatten)]
    runtime: RuntimeOptions,

    #[command(flatten)]
    traces: TraceOptions,

    #[command(flatten)]
    log: LogOptions,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(super) fn main(args: Args) -> Result<ExitCode, Failure> {
    let source = policy_source(&args)?;
    run(args, source).map_err(|failure| failure.with_status(EXIT_OWN_FAILURE))
}

fn run(args: Args, policy: PolicySource) -> Result<ExitCode, Failure> {
    let mut signals = Signals::take()?;
    let verbose = args.log.verbose();
    let log = args.log.start("warn")?;
    // What the environment says is meant for the command.
    let traces = args.traces.settings(false)?;
    let hierarchy = capture::preflight()?;
    let name = args
        .cgroup_name
        .unwrap_or_else(|| format!("{}{}", cgroup::EXEC_PREFIX, std::process::id()));
    let limits = args.capture.limits_of_command();
    let descriptors = raise_descriptors(limits.connections)
        .context("cannot raise the limit of file descriptors")?;
    if descriptors.too_few() {
        // One command seldom comes near: not worth a warning on every terminal.
        tracing::info!("{descriptors}");
    }
    // Below our own cgroup, so that whatever limits hold for us hold for the command.
    let cgroup = OwnedCgroup::create(hierarchy.own(), &name)?;

    let runtime = args.runtime.runtime()?;
    let config = Config {
        scope: Scope::Cgroup(cgroup.path().to_owned()),
        // The command may make a network namespace of its own; what it does there must not slip
        // past the tunnel.
        reach: Reach::OwnNamespace,
        never: args.capture.never_capture.clone(),
        limits,
        verbose,
        // The guard sees to that: it ends the command.
        outlives_us: false,
        kubernetes: None,
        policy,
        endpoints: Endpoints {
            metrics: args.endpoints.metrics_addr,
            ready: args.endpoints.ready_addr,
            admin: args.endpoints.admin_addr,
        },
        traces,
        drain: DRAIN,
    };
    let running = runtime.block_on(app::build(config, log.clone()))?;
    let guard = Guard::start(cgroup.path())?;
    // From here on the guard removes the cgroup, whatever becomes of us.
    runtime.block_on(running.prove_capture())?;
    if running.endpoints().ready.is_some() {
        running.watch_capture();
    }

    let command = spawn(
        &args.command,
        cgroup.path().to_owned(),
        descriptors.inherited,
    )?;
    let status = signals.supervise(&command);
    guard.end()?;
    runtime.block_on(running.drain(pending()));
    log.flush(FLUSH);
    Ok(status?)
}

/// Starts the command in its cgroup, as the user who called sudo if somebody did.
/// `open_files` is its soft limit of file descriptors, since ours is raised.
fn spawn(command: &[OsString], cgroup: PathBuf, open_files: u64) -> anyhow::Result<Child> {
    let mut entry = Command::new("/proc/self/exe");
    entry
        .arg("exec-enter")
        .arg("--cgroup")
        .arg(cgroup)
        .arg("--supervisor")
        .arg(std::process::id().to_string())
        .arg("--open-files")
        .arg(open_files.to_string());
    if let Some((uid, gid)) = sudo_caller() {
        entry.args(["--uid", &uid, "--gid", &gid]);
    }
    entry.arg("--").args(command).env_remove(PROXY_VARIABLE);
    entry.spawn().context("cannot start the command")
}

/// User and group of the user who called sudo.
fn sudo_caller() -> Option<(String, String)> {
    if !geteuid().is_root() {
        return None;
    }
    let id = |name| {
        let value = env::var(name).ok()?;
        value.parse::<u32>().ok().map(|_| value)
    };
    Some((id("SUDO_UID")?, id("SUDO_GID")?))
}

fn policy_source(args: &Args) -> Result<PolicySource, Failure> {
    let options = Options {
        internal_cidrs: args.capture.internal_cidr.clone(),
        virtual_range: args.capture.virtual_range()?,
        ..Options::default()
    };
    let Some(url) = &args.proxy else {
        if args.policy.is_empty() {
            return Err(Failure::usage(anyhow::anyhow!(
                "no proxy: give one with --proxy URL, {PROXY_VARIABLE}, or --policy PATH"
            )));
        }
        let paths = args.secrets.clone().with(args.policy.clone());
        return Ok(PolicySource::files(paths, options));
    };
    if let Some(secret) = argv::secret_of(url) {
        argv::hide(secret).context("cannot hide the password from the process list")?;
    }
    let proxy = Proxy::from_url(url, SystemRoots::load)
        .map_err(|error| Failure::usage(anyhow::Error::from(error).context("--proxy")))?;
    let no_proxy = args.no_proxy.as_deref().unwrap_or_default();
    let no_proxy: HostList = no_proxy
        .parse()
        .map_err(|error| Failure::usage(anyhow::Error::from(error).context("--no-proxy")))?;
    let policy = Policy::for_proxy(proxy, no_proxy, &options);
    Ok(PolicySource::fixed(policy))
}

fn cgroup_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('.') || text.contains('/') || text.contains('\0') {
        return Err("must be the name of one directory".to_owned());
    }
    Ok(text.to_owned())
}
