//! What the cluster is told: conditions of Tunnels, and events.
//!
//! Each agent writes one Lease of its own, which says what its node has programmed, and only when that
//! changes or it has to be renewed. One of the agents, the leader, reads these Leases and writes the
//! status of Tunnels. So no two write the same object, and what one writes makes no other write.

use std::collections::{BTreeMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use prometheus::IntCounterVec;
use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep, sleep_until, timeout};

use super::client::cause;
use super::events::Events;
use super::kinds;
use super::leader::{self, Candidate};
use super::nodes::{self, Nodes, Programmed};
use super::status::{self, News};
use crate::kubernetes::ClusterConfig;
use crate::kubernetes::feed::{Feed, Name, Verdict};
use crate::policy::ClusterKind;

/// Who writes, in managed fields and events.
pub(super) const MANAGER: &str = "underpass";

/// Between two writes of a node's Lease. The first of several changes is told at once.
const BETWEEN_LEASES: Duration = Duration::from_secs(1);

/// How long the leader gathers what nodes tell: they do at about the same time.
const GATHER: Duration = Duration::from_millis(100);

/// How often it tells how far a Tunnel has come meanwhile, and tries again what has failed.
const LOOK: Duration = Duration::from_secs(5);

/// Between two looks at the counters of refusals.
const COUNTERS: Duration = Duration::from_secs(5);

/// Tells the cluster what becomes of its policy here, for ever. `requests` are the tunnels that were
/// asked for, by `proxy`, `policy` and `code`.
pub async fn report(
    api: super::Api,
    config: ClusterConfig,
    requests: IntCounterVec,
    feed: Arc<Feed>,
) {
    let client = api.plain();
    let namespace = config.root_namespace.as_ref();
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let events = Events::new(client.clone(), Some(config.node.clone()));
    let refusals = Refusals {
        requests,
        seen: BTreeMap::new(),
    };
    tokio::join!(
        renew(&leases, &config.node, feed.verdicts()),
        lead(client, &leases, &config.node, &feed),
        tell_of_refusals(events, refusals, &feed),
    );
}

/// Keeps the Lease of this node.
async fn renew(leases: &Api<Lease>, node: &str, mut verdicts: watch::Receiver<Verdict>) {
    // An agent that has just started knows nothing, which is not to be told as that its node has lost
    // what it had.
    let judged = verdicts.wait_for(|verdict| *verdict != Verdict::default());
    let _ = timeout(nodes::RENEWAL, judged).await;
    let mut programmed = nodes::programmed(&verdicts.borrow_and_update(), &Programmed::new());
    let mut told = Told::default();
    loop {
        let mut renewal = nodes::RENEWAL.mul_f64(0.8 + 0.4 * fastrand::f64());
        let now = Timestamp::now();
        let lease = nodes::lease(node, &programmed, &format!("{now:.6}"));
        let params = PatchParams::apply(&format!("{MANAGER}-{node}")).force();
        let applied = leases
            .patch(&nodes::name(node), &params, &Patch::Apply(&lease))
            .await;
        if let Err(error) = told.result("the Lease of this node", applied) {
            tracing::debug!(error, "cannot renew the Lease of this node");
            renewal = leader::RENEWAL;
        }
        let renewal = Instant::now() + renewal;
        sleep(BETWEEN_LEASES).await;
        loop {
            tokio::select! {
                () = sleep_until(renewal) => break,
                changed = verdicts.changed() => if changed.is_err() { return },
            }
            let now = nodes::programmed(&verdicts.borrow_and_update(), &programmed);
            if now != programmed {
                programmed = now;
                break;
            }
        }
    }
}

/// Takes part in who leads, and while it is us, writes the status of Tunnels.
async fn lead(client: kube::Client, leases: &Api<Lease>, node: &str, feed: &Feed) {
    let mut candidate = Candidate::new(leases.clone(), node.to_owned());
    let mut told = Told::default();
    loop {
        match told.result("who writes status", candidate.lead().await) {
            Ok(true) => {
                tracing::info!("this agent writes the status of Tunnels");
                let writer = Writer {
                    client: client.clone(),
                    leases,
                    feed,
                    nodes: Nodes::new(node),
                    rejected: HashSet::new(),
                    told: Told::default(),
                };
                writer.write_while(&mut candidate).await;
                tracing::info!("another agent writes the status of Tunnels");
            }
            Ok(false) => {}
            Err(error) => tracing::debug!(error, "cannot tell who writes status"),
        }
        sleep(leader::RENEWAL).await;
    }
}

struct Writer<'a> {
    client: kube::Client,
    leases: &'a Api<Lease>,
    feed: &'a Feed,
    nodes: Nodes,
    /// The problems that events have told of.
    rejected: HashSet<(String, Name, String)>,
    told: Told,
}

impl Writer<'_> {
    /// Until somebody else leads.
    async fn write_while(mut self, candidate: &mut Candidate) {
        let mut verdicts = self.feed.verdicts();
        let mut events = Events::new(self.client.clone(), None);
        let config = watcher::Config::default().labels(nodes::LABEL);
        let mut leases = pin!(watcher(self.leases.clone(), config).default_backoff());
        let mut looks = interval(LOOK);
        let mut renewed = Instant::now();
        // When what other nodes have told is to be written.
        let mut due = None;
        loop {
            let mut least = News::Turn;
            tokio::select! {
                _ = looks.tick() => least = News::Progress,
                changed = verdicts.changed() => if changed.is_err() { return },
                Some(event) = leases.next() => {
                    if self.take(event) {
                        due.get_or_insert_with(|| Instant::now() + GATHER);
                    }
                    continue;
                }
                () = sleep_until(due.unwrap_or(renewed)), if due.is_some() => {}
            }
            due = None;
            if renewed.elapsed() > leader::RENEWAL {
                match candidate.lead().await {
                    Ok(true) => renewed = Instant::now(),
                    Ok(false) => return,
                    // Others wait longer than this before they take over.
                    Err(_) if renewed.elapsed() < leader::RENEWAL * 2 => {}
                    Err(_) => return,
                }
            }
            let verdict = verdicts.borrow_and_update().clone();
            self.nodes.judge(&verdict);
            if self.nodes.are_known() {
                self.write(&verdict, least).await;
                for gone in self.nodes.gone(Instant::now()) {
                    // Whoever comes back makes it anew.
                    let _ = self.leases.delete(&gone, &DeleteParams::default()).await;
                }
            }
            self.tell_of_rejected(&verdict, &mut events).await;
        }
    }

    /// Takes what is told of the Leases of nodes. Returns whether it counts.
    fn take(&mut self, event: Result<watcher::Event<Lease>, watcher::Error>) -> bool {
        let event = event.map_err(super::watch::cause);
        match self.told.result("the Leases of nodes", event) {
            Ok(event) => self.nodes.take(event, Instant::now()),
            Err(error) => {
                tracing::debug!(error, "cannot read what nodes have programmed");
                false
            }
        }
    }

    /// Writes the status of each Tunnel of which there is at `least` such news.
    async fn write(&mut self, verdict: &Verdict, least: News) {
        let resource = kinds::resource(ClusterKind::Tunnel, None);
        let current = self.feed.tunnels();
        for (name, judged) in &*verdict.tunnels {
            // What is there now has the status; what was judged has the version.
            let Some(facts) = current.get(name) else {
                continue;
            };
            if (&facts.uid, facts.generation) != (&judged.uid, judged.generation) {
                continue;
            }
            let count = self.nodes.count(facts, Instant::now());
            let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let status = status::status(name, facts, verdict, count, &now);
            if status::news(facts, &status) < least {
                continue;
            }
            let tunnels: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &name.0, &resource);
            let patch = json!({
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "metadata": {"name": name.1, "namespace": name.0},
                "status": status,
            });
            let params = PatchParams::apply(MANAGER).force();
            let applied = tunnels
                .patch_status(&name.1, &params, &Patch::Apply(&patch))
                .await;
            let answered = matches!(applied, Ok(_) | Err(kube::Error::Api(_)));
            if let Err(error) = self.told.result("the status of Tunnels", applied) {
                tracing::debug!(error, "cannot write the status of a Tunnel");
            }
            if !answered {
                // Neither would it be for the others.
                return;
            }
        }
    }

    /// Events of what was rejected, each once.
    async fn tell_of_rejected(&mut self, verdict: &Verdict, events: &mut Events) {
        let mut now = HashSet::new();
        for ((kind, name), problems) in &verdict.problems {
            let text = problems.join("; ");
            let problem = (kind.clone(), name.clone(), text.clone());
            let known = self.rejected.contains(&problem);
            if known
                || events
                    .warn(kind, name, None, "Rejected", "Read", &text)
                    .await
            {
                now.insert(problem);
            }
        }
        self.rejected = now;
    }
}

/// Events of what proxies refused.
async fn tell_of_refusals(mut events: Events, mut refusals: Refusals, feed: &Feed) {
    let mut looks = interval(COUNTERS);
    loop {
        looks.tick().await;
        for (policy, proxy) in refusals.news() {
            let mut parts = policy.splitn(3, '/');
            let (Some(kind), Some(namespace), Some(name)) =
                (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            let name = (namespace.to_owned(), name.to_owned());
            let tunnels = feed.tunnels();
            let tunnel = tunnels.get(&name).filter(|_| kind == "Tunnel");
            let uid = tunnel.map(|facts| facts.uid.clone());
            let note = format!(
                "proxy {proxy} answers 407: it wants other credentials than those of the Secret, or \
                 any at all"
            );
            events
                .warn(
                    kind,
                    &name,
                    uid,
                    "ProxyAuthenticationRequired",
                    "Tunnel",
                    &note,
                )
                .await;
        }
    }
}

/// The counters of tunnels that were refused for want of credentials.
struct Refusals {
    requests: IntCounterVec,
    seen: BTreeMap<(String, String), f64>,
}

impl Refusals {
    /// The policies and proxies of which there are more than at the last look.
    fn news(&mut self) -> Vec<(String, String)> {
        let families = self.requests.collect();
        let mut news = Vec::new();
        for metric in families.iter().flat_map(MetricFamily::get_metric) {
            let label = |name: &str| {
                let label = metric.get_label().iter().find(|label| label.name() == name);
                label
                    .map(|label| label.value().to_owned())
                    .unwrap_or_default()
            };
            if label("code") != "407" {
                continue;
            }
            let key = (label("policy"), label("proxy"));
            let count = metric.get_counter().get_value();
            let before = self.seen.insert(key.clone(), count);
            if count > before.unwrap_or_default() {
                news.push(key);
            }
        }
        news
    }
}

/// Has the log say once that something is not allowed.
#[derive(Default)]
struct Told(HashSet<&'static str>);

impl Told {
    fn result<T>(
        &mut self,
        what: &'static str,
        result: Result<T, kube::Error>,
    ) -> Result<T, String> {
        match result {
            Ok(value) => {
                self.0.remove(what);
                Ok(value)
            }
            Err(error) => {
                if matches!(&error, kube::Error::Api(status) if status.code == 403)
                    && self.0.insert(what)
                {
                    tracing::error!(
                        "the API server does not let us have {what}: {}; see the role of the \
                         agent's service account",
                        cause(&error)
                    );
                }
                Err(cause(&error))
            }
        }
    }
}
