//! The composition root: the one place that knows all the parts and puts them together.

mod accept;
mod health;
mod kernel_side;
mod policy_source;
mod proxies;
mod shed;
mod vital;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus::Registry;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use underpass_abi::Verdict;

use crate::admin::{AdminError, AdminServer, AdminState, AdminThread, Endpoints, Readiness};
use crate::capture::{
    Attachment, Canary, Capture, CaptureConfig, CaptureError, Flows, Listener, Workloads,
    cgroup::{self, Hierarchy},
};
use crate::connection::{InForce, Way};
use crate::dns::Resolver;
use crate::inspect;
use crate::limits::{Admission, Limits};
use crate::policy::{FailureMode, LoadError, Policy, Side};
use crate::relay::Timeouts;
use crate::sockets::SocketFactory;
use crate::telemetry::{Label, LogHandle, Metrics, Reload};
use crate::tunnel::{TunnelConfig, Tunneler};

use kernel_side::KernelSide;
use vital::VitalTasks;

pub use policy_source::PolicySource;

/// Between two sweeps of the flow map. The listeners run dry in far less, so an entry that two
/// sweeps see belongs to no connection that waits to be accepted.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// For the TCP handshake of a direct connection: as long as a tunnel may take.
const DIRECT_DEADLINE: Duration = Duration::from_secs(15);

/// What an agent is built from.
pub struct Config {
    /// The cgroup whose processes, and those below it, are captured.
    pub cgroup: PathBuf,
    /// What becomes of them in network namespaces without a listener of ours.
    pub not_enrolled: Verdict,
    /// What is too much; past it new connections are reset.
    pub limits: Limits,
    /// Whether the programs log each decision.
    pub verbose: bool,
    /// Whether, under a closed policy, the programs stay when the agent is gone, and whether what
    /// an earlier agent left so is taken over.
    pub outlives_us: bool,
    /// Where policy comes from.
    pub policy: PolicySource,
    /// Where the endpoints listen.
    pub endpoints: Endpoints,
    /// How long connections may live on after [`Running::drain`] was called.
    pub drain: Duration,
}

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An endpoint.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The kernel side.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A metric is registered twice.
    #[error("cannot register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The policy.
    #[error(transparent)]
    Policy(#[from] LoadError),
}

/// A running agent. When it is dropped, nothing is captured any more.
pub struct Running {
    // Detached first, so that nothing is redirected to listeners that are gone.
    attachment: Mutex<Attachment>,
    _closed: DropGuard,
    admin: Arc<AdminThread>,
    capture: Arc<Mutex<Capture>>,
    cgroup: PathBuf,
    drain: Duration,
    families: Vec<Family>,
    outlives_us: bool,
    policy: PolicySource,
    policy_changed: Arc<Notify>,
    readiness: Readiness,
    tasks: Tasks,
    way: Arc<Way>,
}

/// An address family that is captured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// What runs, and how it is stopped.
#[derive(Clone)]
struct Tasks {
    acceptors: TaskTracker,
    connections: TaskTracker,
    /// No new connections.
    closing: CancellationToken,
    /// Nor old ones.
    cut: CancellationToken,
    /// What must not end before.
    vital: VitalTasks,
}

/// Builds the agent and attaches it: connections are captured when this returns. To be called on
/// a multi-thread runtime.
///
/// # Errors
/// Whatever stands in the way, before anything is captured.
pub async fn build(config: Config, log: LogHandle) -> Result<Running, StartError> {
    // What the user can get wrong comes first.
    let policy = config.policy.load()?;
    for warning in policy.warnings() {
        tracing::warn!("{warning}");
    }
    let admin = AdminServer::bind(config.endpoints)?;

    let mut capture = Capture::load(&CaptureConfig {
        max_connections: config.limits.connections,
        not_enrolled: config.not_enrolled,
        verbose: config.verbose,
    })?;
    let vital = VitalTasks::default();
    vital.spawn("log of the programs", capture.logs()?);

    let registry = Registry::new();
    let metrics = Arc::new(Metrics::new(&registry)?);
    let kernel = KernelSide {
        counters: capture.counters(),
        flows: capture.flows(),
    };
    metrics.capture.watch(&registry, Arc::new(kernel))?;

    let sockets: Arc<dyn SocketFactory> = capture.sockets();
    let resolver = Resolver::from_system(Arc::clone(&sockets));
    let way = Arc::new(Way {
        admission: Arc::new(Admission::new(config.limits)),
        policy: ArcSwap::from_pointee(InForce::new(policy)),
        proxies: ArcSwap::default(),
        tunneler: Tunneler::new(
            Arc::clone(&sockets),
            resolver.clone(),
            TunnelConfig::default(),
        ),
        resolver,
        workloads: Arc::new(Workloads::new(Hierarchy::find()?)),
        sockets,
        metrics: Arc::clone(&metrics),
        inspection: inspect::Limits::default(),
        relay: Timeouts::default(),
        direct_deadline: DIRECT_DEADLINE,
    });

    let listeners = capture.enrol()?;
    metrics.capture.set_namespaces_enrolled(1);
    let families = families(&listeners);
    apply(&way.policy.load(), &mut capture)?;
    announce(&way.policy.load(), &metrics);
    let capture = Arc::new(Mutex::new(capture));
    // Before the programs are attached: who speaks to a proxy himself must never be captured.
    let refresh = proxies::refresh(&way, &capture).await;
    let policy_changed = Arc::new(Notify::new());
    vital.spawn(
        "proxy addresses",
        proxies::keep_fresh(
            Arc::clone(&way),
            Arc::clone(&capture),
            refresh,
            Arc::clone(&policy_changed),
        ),
    );

    let tasks = Tasks {
        acceptors: TaskTracker::new(),
        connections: TaskTracker::new(),
        closing: CancellationToken::new(),
        cut: CancellationToken::new(),
        vital,
    };
    for listener in listeners {
        let name = match listener.local_addr() {
            Ok(addr) => format!("listener on {addr}"),
            Err(_) => "listener".to_owned(),
        };
        let accepting = accept::accept(listener, Arc::clone(&way), tasks.clone());
        let accepting = tasks.acceptors.track_future(accepting);
        tasks.vital.spawn(name, accepting);
    }
    let flows = capture.lock().flows();
    tasks.vital.spawn("flow sweeper", sweep(flows));

    let mut attachment = capture.lock().attach(&config.cgroup)?;
    if config.outlives_us {
        for path in cgroup::leftovers(&config.cgroup) {
            cgroup::end(&path)?;
        }
        attachment.set_outliving(must_outlive(&way.policy.load()))?;
        // Ours are on the hooks, so those of an earlier agent may go: there is no gap.
        let agents = attachment.supersede()?;
        tracing::info!(agents, "taken over from earlier agents");
    }
    tracing::info!(cgroup = %config.cgroup.display(), "capturing");

    let readiness = Readiness::default();
    let admin = admin.spawn_thread(AdminState {
        registry,
        readiness: readiness.clone(),
        config_dump: config_dump(&config, &way),
        connections: metrics.connections().clone(),
        log,
    })?;
    Ok(Running {
        attachment: Mutex::new(attachment),
        _closed: tasks.closing.clone().drop_guard(),
        admin: Arc::new(admin),
        capture,
        cgroup: config.cgroup,
        drain: config.drain,
        families,
        outlives_us: config.outlives_us,
        policy: config.policy,
        policy_changed,
        readiness,
        tasks,
        way,
    })
}

impl Running {
    /// Where the endpoints really listen.
    pub fn endpoints(&self) -> Endpoints {
        self.admin.addrs()
    }

    /// Sends one canary of each family through, and waits for it.
    ///
    /// # Errors
    /// One was not captured.
    pub async fn prove_capture(&self) -> Result<(), CaptureError> {
        let mut canary = Canary::start(&self.cgroup)?;
        for family in &self.families {
            canary.sing(*family == Family::V6).await?;
        }
        Ok(())
    }

    /// Checks capture until the agent drains or is dropped, on a thread of its own, and has
    /// readiness and a metric tell what came of it. The thread's end is also that of the canaries'
    /// cgroup.
    ///
    /// # Errors
    /// The cgroup is gone, or the kernel does not tell about a program.
    pub fn watch_capture(&self) -> Result<JoinHandle<()>, CaptureError> {
        let mut capture = self.capture.lock();
        let subject = health::Subject {
            cgroup: self.cgroup.clone(),
            families: self.families.clone(),
            hooks: capture.hooks(&self.cgroup)?,
            flows: capture.flows(),
            counters: capture.counters(),
            tasks: self.tasks.vital.clone(),
            closing: self.tasks.closing.clone(),
            admin: Arc::downgrade(&self.admin),
        };
        let metrics = &self.way.metrics;
        Ok(health::watch(subject, &self.readiness, metrics))
    }

    /// Reads policy again. A bad one changes nothing but the metric and the log.
    pub fn reload(&self) {
        let metrics = &self.way.metrics.policy;
        let policy = match self.policy.load() {
            Ok(policy) => policy,
            Err(error) => {
                metrics.reloaded(Reload::Failure);
                tracing::error!(%error, "policy not reloaded, the last good one stays in force");
                return;
            }
        };
        for warning in policy.warnings() {
            tracing::warn!("{warning}");
        }
        if let Err(error) = apply(&policy, &mut self.capture.lock()) {
            metrics.reloaded(Reload::Failure);
            tracing::error!(%error, "policy not reloaded");
            return;
        }
        if self.outlives_us
            && let Err(error) = self.attachment.lock().set_outliving(must_outlive(&policy))
        {
            tracing::error!(%error, "the programs do not follow the policy's failure mode");
        }
        announce(&policy, &self.way.metrics);
        self.way.policy.store(Arc::new(InForce::new(policy)));
        self.policy_changed.notify_one();
        metrics.reloaded(Reload::Success);
        tracing::info!("policy reloaded");
    }

    /// Takes what has arrived, then no more, and waits for the connections to end; those that
    /// outlive the time for it are reset. New ones are refused in the kernel meanwhile.
    pub async fn drain(&self) {
        self.readiness.check("draining").pending();
        self.tasks.closing.cancel();
        self.tasks.acceptors.close();
        self.tasks.connections.close();
        let drained = async {
            // Before they have ended there may be no connection yet.
            self.tasks.acceptors.wait().await;
            self.tasks.connections.wait().await;
        };
        if timeout(self.drain, drained).await.is_err() {
            tracing::warn!(
                connections = self.tasks.connections.len(),
                "the time to drain is over: resetting what is left"
            );
            self.tasks.cut.cancel();
            self.tasks.connections.wait().await;
        }
    }
}

fn families(listeners: &[Listener]) -> Vec<Family> {
    listeners
        .iter()
        .filter_map(|listener| listener.local_addr().ok())
        .map(|addr| {
            if addr.is_ipv6() {
                Family::V6
            } else {
                Family::V4
            }
        })
        .collect()
}

/// Whether the programs must refuse what they capture when the agent is gone.
fn must_outlive(policy: &Policy) -> bool {
    policy.failure_mode() == FailureMode::Closed
}

/// Tells the programs what policy wants captured.
fn apply(policy: &Policy, capture: &mut Capture) -> Result<(), CaptureError> {
    let plan = policy.capture_plan();
    let prefixes = plan.prefixes.iter().map(|(prefix, side)| {
        let side = match side {
            Side::External => underpass_abi::Side::External,
            Side::Internal => underpass_abi::Side::Internal,
            Side::Open => underpass_abi::Side::Open,
        };
        (*prefix, None, side)
    });
    let exceptions = plan
        .exceptions
        .iter()
        .map(|(prefix, port)| (*prefix, Some(*port), underpass_abi::Side::Internal));
    capture.rules().set_prefixes(prefixes.chain(exceptions))?;
    capture.rules().set_ports(|port| plan.ports.contains(port))
}

/// Has the proxies' series stand at zero before anything happens, so that a rate has a start.
fn announce(policy: &Policy, metrics: &Metrics) {
    for proxy in policy.proxies() {
        let label = Label::of(proxy);
        metrics.proxy.announce(&label, &label);
    }
}

/// Removes flows that nobody will take, for ever.
async fn sweep(flows: Arc<Flows>) {
    let mut sweeper = flows.sweeper();
    let mut ticks = interval(SWEEP_INTERVAL);
    // After a pause of the whole process the next tick must not come before the listeners do.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match sweeper.sweep() {
            Ok(0) => {}
            Ok(removed) => tracing::debug!(removed, "swept flows that nobody took"),
            Err(error) => tracing::error!(%error, "cannot sweep flows"),
        }
    }
}

/// What `/config_dump` shows. Nothing in it is secret: policy masks its credentials itself.
fn config_dump(config: &Config, way: &Arc<Way>) -> Arc<dyn Fn() -> Value + Send + Sync> {
    let way = Arc::clone(way);
    let fixed = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cgroup": config.cgroup,
        "max_connections": config.limits.connections,
        "max_connections_per_workload": config.limits.per_workload,
        "max_pending_tunnels": config.limits.pending_tunnels,
        "drain_seconds": config.drain.as_secs(),
    });
    Arc::new(move || {
        let proxies: Vec<SocketAddr> = way.proxies.load().iter().copied().collect();
        json!({
            "agent": fixed,
            "policy": ***way.policy.load(),
            "proxy_addresses": proxies,
        })
    })
}
