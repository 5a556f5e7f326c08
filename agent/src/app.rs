//! The composition root: the one place that knows all the parts and puts them together.

mod accept;
mod cgroups;
mod cluster;
mod enrolment;
mod fronts;
mod health;
mod kernel_side;
mod policy_source;
mod proxies;
mod reload;
mod shed;
mod status;
mod traces;
mod vital;
mod watch;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus::Registry;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::admin::{AdminError, AdminServer, AdminState, AdminThread, Endpoints, Readiness};
use crate::capture::{
    Canary, Capture, CaptureConfig, CaptureError, Enrolled, Flows, Listener, Reach, Workloads,
    cgroup::Hierarchy,
};
use crate::circuit::Circuits;
use crate::connection::{InForce, Way};
use crate::dns::{Forwarder, Knowledge, Resolver, Virtuals};
use crate::inspect;
use crate::kubernetes::ClusterConfig;
use crate::limits::{Admission, Limits};
use crate::name::Target;
use crate::policy::LoadError;
use crate::relay::Timeouts;
use crate::sockets::SocketFactory;
use crate::telemetry::{LogHandle, Metrics};
use crate::tunnel::{TunnelConfig, Tunneler};

use accept::Acceptor;
use cgroups::Cgroups;
use enrolment::Enrolment;
use fronts::Fronts;
use kernel_side::KernelSide;
use proxies::Proxies;
use reload::{PolicyState, Reloader, announce, apply, warn_of};
use status::Status;
use traces::Traces;
use vital::VitalTasks;

pub use cgroups::Scope;
pub use policy_source::PolicySource;
pub use traces::TraceSettings;

/// Between two sweeps of the flow map. The listeners run dry in far less, so an entry that two
/// sweeps see belongs to no connection that waits to be accepted.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// For the TCP handshake of a direct connection: as long as a tunnel may take.
const DIRECT_DEADLINE: Duration = Duration::from_secs(15);

/// What an agent is built from.
pub struct Config {
    /// Whose connections are captured.
    pub scope: Scope,
    /// In which network namespaces they are.
    pub reach: Reach,
    /// Where connections go that are never captured, besides those to the API server of the cluster.
    pub never: Vec<Target>,
    /// What is too much; past it new connections are reset.
    pub limits: Limits,
    /// Whether the programs log each decision.
    pub verbose: bool,
    /// Whether, under a closed policy, the programs stay when the agent is gone, and whether what
    /// an earlier agent left so is taken over.
    pub outlives_us: bool,
    /// Where policy comes from.
    pub policy: PolicySource,
    /// The cluster that the node is part of, if policy comes from its API as well.
    pub kubernetes: Option<ClusterConfig>,
    /// Where the endpoints listen.
    pub endpoints: Endpoints,
    /// Where spans go, and which; `None`: nowhere.
    pub traces: Option<TraceSettings>,
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
    /// The way to the API of the cluster.
    #[cfg(feature = "kubernetes")]
    #[error(transparent)]
    Cluster(#[from] crate::kubernetes::ApiError),
}

/// A running agent. When it is dropped, nothing is captured any more.
pub struct Running {
    // Detached first, so that nothing is redirected to listeners that are gone.
    cgroups: LetGo,
    _closed: DropGuard,
    admin: Arc<AdminThread>,
    capture: Arc<Mutex<Capture>>,
    drain: Duration,
    families: Vec<Family>,
    readiness: Readiness,
    reloader: Arc<Reloader>,
    tasks: Tasks,
    traces: Traces,
    way: Arc<Way>,
}

/// An address family that is captured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Takes the programs off when it is dropped.
struct LetGo(Arc<Cgroups>);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

/// What the endpoints show once there is something to show.
struct Shown {
    config_dump: Arc<dyn Fn() -> Value + Send + Sync>,
    status: Status,
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
pub async fn build(mut config: Config, log: LogHandle) -> Result<Running, StartError> {
    // What the user can get wrong comes first. What of it changes from here on is read again.
    let mut read = config.policy.read(|_| {});
    if let Err(error) = read.policy {
        return Err(error.into());
    }
    let admin = AdminServer::bind(config.endpoints)?;

    let mut capture = Capture::load(&CaptureConfig {
        max_connections: config.limits.connections,
        reach: config.reach,
        verbose: config.verbose,
    })?;
    let vital = VitalTasks::default();
    vital.spawn("log of the programs", capture.logs()?);

    let registry = Registry::new();
    let metrics = Arc::new(Metrics::new(&registry)?);
    let kernel = Arc::new(KernelSide {
        counters: capture.counters(),
        flows: capture.flows(),
    });
    metrics.capture.watch(&registry, Arc::clone(&kernel) as _)?;

    let sockets: Arc<dyn SocketFactory> = capture.sockets();
    let resolver = Resolver::from_system(Arc::clone(&sockets));
    let readiness = Readiness::default();
    let shown: Arc<OnceLock<Shown>> = Arc::default();
    let serve = |admin: AdminServer| {
        let (dump, status) = (Arc::clone(&shown), Arc::clone(&shown));
        admin.spawn_thread(AdminState {
            registry: registry.clone(),
            readiness: readiness.clone(),
            config_dump: Arc::new(move || {
                dump.get().map_or(json!({}), |shown| (shown.config_dump)())
            }),
            status: Arc::new(move || status.get().map_or(json!({}), |it| it.status.to_json())),
            connections: metrics.connections().clone(),
            log: log.clone(),
        })
    };
    let (admin, feed) = match &config.kubernetes {
        None => (Ok(admin), None),
        Some(cluster) => {
            // That may take long, and whoever asks is told why.
            let served = serve(admin)?;
            let joining = cluster::join(
                cluster, &sockets, &resolver, &vital, &readiness, &registry, &metrics,
            );
            let (feed, server) = joining.await?;
            config.never.extend(server);
            config.policy.add(Arc::clone(&feed));
            read = config.policy.read(|_| {});
            (Err(served), Some(feed))
        }
    };
    let policy_source::Read {
        fingerprint,
        policy,
        rejected,
    } = read;
    let policy = policy?;
    warn_of(policy.warnings());
    let policy_state = Arc::new(PolicyState::new(&rejected));
    let settings = config.traces.take();
    let knowledge = Arc::new(Knowledge::new(
        capture.answers()?,
        Arc::clone(&metrics.dns) as _,
    ));
    vital.spawn("DNS of workloads", learn(Arc::clone(&knowledge)));
    let (tracer, traces) = Traces::start(settings, &sockets, &resolver, &metrics);
    let closing = CancellationToken::new();
    let way = Arc::new(Way {
        admission: Arc::new(Admission::new(config.limits)),
        policy: ArcSwap::from_pointee(InForce::new(policy)),
        proxies: ArcSwap::default(),
        tunneler: Tunneler::new(
            Arc::clone(&sockets),
            resolver.clone(),
            TunnelConfig::default(),
            Arc::new(metrics.proxy.clone()),
        ),
        resolver,
        knowledge,
        virtuals: Virtuals::default(),
        forwarder: Forwarder::default(),
        workloads: Arc::new(Workloads::new(
            Hierarchy::find()?,
            feed.as_ref().map(|feed| feed.pods()),
        )),
        spares_node: matches!(config.scope, Scope::Pods(_)),
        sockets,
        metrics: Arc::clone(&metrics),
        circuits: Circuits::new(Arc::clone(&metrics)),
        shared_targets: Arc::default(),
        tracer,
        inspection: inspect::Limits::default(),
        relay: Timeouts::default(),
        direct_deadline: DIRECT_DEADLINE,
        closing: closing.clone(),
    });

    let Enrolled {
        cookie,
        ports,
        listeners,
    } = capture.enrol()?;
    metrics.capture.set_namespaces_enrolled(1);
    let families = families(&listeners);
    apply(&way.policy.load(), &mut capture)?;
    announce(&way.policy.load(), &metrics);
    way.count_virtuals(&way.policy.load());
    way.tunneler.serve(way.policy.load().proxies());
    metrics.policy.started(rejected.is_empty());
    let capture = Arc::new(Mutex::new(capture));
    // Before the programs are attached: who speaks to a proxy himself must never be captured.
    let proxies = Arc::new(Proxies::new(
        Arc::clone(&way),
        Arc::clone(&capture),
        config.never.clone(),
    ));
    let refresh = proxies.refresh().await;
    vital.spawn("proxy addresses", Arc::clone(&proxies).keep_fresh(refresh));

    let tasks = Tasks {
        acceptors: TaskTracker::new(),
        connections: TaskTracker::new(),
        closing,
        cut: CancellationToken::new(),
        vital,
    };
    let acceptor = Acceptor::new(Arc::clone(&way), tasks.clone());
    for listener in listeners {
        let name = match listener.local_addr() {
            Ok(addr) => format!("listener on {addr}"),
            Err(_) => "listener".to_owned(),
        };
        let closing = tasks.closing.clone();
        tasks
            .vital
            .spawn(name, acceptor.run(listener, None, closing));
    }
    let cgroups = Arc::new(Cgroups::new(
        config.scope.clone(),
        Arc::clone(&capture),
        Arc::clone(&way),
        config.outlives_us,
    )?);
    let enrolment = match config.reach {
        Reach::OwnNamespace => None,
        Reach::EveryNamespace => {
            let (capture, cgroups) = (Arc::clone(&capture), Arc::clone(&cgroups));
            let enrolment = Enrolment::new(acceptor.clone(), capture, cgroups)?;
            Some(Arc::new(enrolment))
        }
    };
    let own = (cookie, ports);
    let fronts = Fronts::new(acceptor, Arc::clone(&capture), own, enrolment.clone());
    fronts.set(way.policy.load().takes_queries())?;
    if let Some(enrolment) = &enrolment {
        // Before the programs are attached: who is there already is captured from then on.
        enrolment.look(Vec::new()).await;
    }
    let flows = capture.lock().flows();
    tasks.vital.spawn("flow sweeper", sweep(flows));

    cgroups.settle()?;
    let cgroups = LetGo(cgroups);
    if let Some(enrolment) = &enrolment {
        let newcomers = capture.lock().newcomers()?;
        let following = Arc::clone(enrolment).follow(newcomers);
        tasks.vital.spawn("network namespaces", following);
    }

    let status = Status {
        capture: Arc::clone(&capture),
        cgroups: Arc::clone(&cgroups.0),
        enrolment,
        kernel,
        policy: Arc::clone(&policy_state),
        way: Arc::clone(&way),
        feed: feed.clone(),
    };
    if let Some(feed) = &feed {
        feed.judge(&rejected, None);
    }
    // It is set once.
    let _ = shown.set(Shown {
        config_dump: config_dump(&config, &way, &policy_state),
        status,
    });
    let admin = match admin {
        Ok(admin) => serve(admin)?,
        Err(served) => served,
    };
    let reloader = Reloader {
        source: config.policy,
        way: Arc::clone(&way),
        capture: Arc::clone(&capture),
        cgroups: Arc::clone(&cgroups.0),
        proxies,
        fronts,
        state: policy_state,
        last: Mutex::new(fingerprint),
        feed,
        asked: Notify::new(),
    };
    Ok(Running {
        cgroups,
        _closed: tasks.closing.clone().drop_guard(),
        admin: Arc::new(admin),
        capture,
        drain: config.drain,
        families,
        readiness,
        reloader: Arc::new(reloader),
        tasks,
        traces,
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
        let main = self.cgroups.0.main().unwrap_or_default();
        let mut canary = Canary::start(&main)?;
        for family in &self.families {
            canary.sing(*family == Family::V6).await?;
        }
        Ok(())
    }

    /// Checks capture until the agent drains or is dropped, on a thread of its own, and has
    /// readiness and a metric tell what came of it. The thread's end is also that of the canaries'
    /// cgroup.
    pub fn watch_capture(&self) -> JoinHandle<()> {
        let capture = self.capture.lock();
        let subject = health::Subject {
            cgroups: Arc::clone(&self.cgroups.0),
            families: self.families.clone(),
            flows: capture.flows(),
            counters: capture.counters(),
            tasks: self.tasks.vital.clone(),
            closing: self.tasks.closing.clone(),
            admin: Arc::downgrade(&self.admin),
        };
        let metrics = &self.way.metrics;
        health::watch(subject, &self.readiness, metrics)
    }

    /// Reads policy again whenever its files change, and when [`reload`](Self::reload) asks for
    /// it, until the agent drains or is dropped. A bad one changes nothing but what is told about
    /// it. To be called once, on the runtime.
    pub fn follow_policy(&self) {
        let following = Arc::clone(&self.reloader).follow(self.tasks.closing.clone());
        self.tasks.vital.spawn("policy", following);
    }

    /// Has policy read again soon, whether its files have changed or not.
    pub fn reload(&self) {
        self.reloader.ask();
    }

    /// Takes what has arrived, then no more, and waits for the connections to end; those that
    /// outlive the time for it, or the end of `hurry`, are reset, each with its record. New ones
    /// are refused in the kernel meanwhile. After `hurry` no span is waited for.
    pub async fn drain(&self, hurry: impl Future<Output = ()>) {
        self.readiness.check("draining").pending();
        self.tasks.closing.cancel();
        self.tasks.acceptors.close();
        self.tasks.connections.close();
        let drained = async {
            // Before they have ended there may be no connection yet.
            self.tasks.acceptors.wait().await;
            self.tasks.connections.wait().await;
        };
        let hurried = tokio::select! {
            () = drained => false,
            () = sleep(self.drain) => {
                self.cut("the time to drain is over: resetting what is left").await;
                false
            }
            () = hurry => {
                self.cut("stopped before the drain was over: resetting what is left").await;
                true
            }
        };
        if !hurried {
            self.traces.finish().await;
        }
    }

    async fn cut(&self, why: &str) {
        tracing::warn!(connections = self.tasks.connections.len(), "{why}");
        self.tasks.cut.cancel();
        self.tasks.connections.wait().await;
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

/// Learns what workloads resolve, for ever.
async fn learn(knowledge: Arc<Knowledge>) {
    if let Err(error) = knowledge.follow().await {
        tracing::error!(%error, "names that workloads resolve are learnt late, or not at all");
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
fn config_dump(
    config: &Config,
    way: &Arc<Way>,
    state: &Arc<PolicyState>,
) -> Arc<dyn Fn() -> Value + Send + Sync> {
    let (way, state) = (Arc::clone(way), Arc::clone(state));
    let fixed = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cgroup": config.scope.key(),
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
            "policy_generation": state.generation(),
            "policy_reload": state.reload(),
            "proxy_addresses": proxies,
        })
    })
}
