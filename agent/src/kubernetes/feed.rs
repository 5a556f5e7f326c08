//! What is known of the cluster, and how well it is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use crate::policy::{
    ClusterDocuments, ClusterKind, ClusterObjects, ObjectKey, ObjectRef, Problem, References,
};
use crate::workload::{Pod, Pods};

/// Objects of the cluster as they are known, which is as they were when the API was last reached.
#[derive(Debug, Default)]
pub struct Feed {
    state: Mutex<State>,
    verdict: watch::Sender<Verdict>,
    pods: Arc<Pods>,
    /// Some object is another.
    pub(super) moved: Notify,
    /// What there is may be read.
    pub(super) settled: Notify,
}

#[derive(Debug, Default)]
struct State {
    objects: ClusterObjects,
    tunnels: Tunnels,
    /// The same when documents were last taken.
    taken: Tunnels,
    /// Of this node, with what their cgroups call them.
    pods: HashMap<Name, (Box<str>, Pod)>,
    watches: BTreeMap<Scope, Watched>,
    outage: Option<Outage>,
}

/// Namespace and name.
pub type Name = (String, String);

/// Tunnels as they were at one moment.
pub type Tunnels = Arc<BTreeMap<Name, Arc<TunnelFacts>>>;

/// An object as a watch has it.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) name: Name,
    pub(super) facts: TunnelFacts,
    pub(super) json: Value,
}

/// What is known of a Tunnel besides what it says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TunnelFacts {
    /// Which object of its name it is.
    pub uid: String,
    /// Which version of what it says.
    pub generation: i64,
    /// What its status says, as it stands there.
    pub status: Value,
}

/// What became of the documents that were last taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// The Tunnels that were among them.
    pub tunnels: Tunnels,
    /// What was wrong, by kind, namespace and name: `key: reason`.
    pub problems: BTreeMap<(String, Name), Vec<String>>,
    /// Why none of it is in force, where that is so.
    pub failure: Option<String>,
}

/// What one watch is of: all objects of a kind, or those of one name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Scope {
    Policy(ClusterKind, Option<Name>),
    /// Those of one node.
    Pods(String),
}

/// How a watch does.
#[derive(Clone, Debug, Default)]
struct Watched {
    /// What there is of what it is of.
    members: HashSet<Name>,
    /// Whether what it is of was known at some time.
    synced: bool,
    /// Whether the cluster does not have its kind.
    absent: bool,
    /// Why nothing is heard of it now.
    failing: Option<String>,
    /// Whether we may not have it.
    refused: bool,
}

#[derive(Debug)]
struct Outage {
    since: Instant,
    reason: String,
}

/// What a change of how the API is reached comes to.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Turn {
    Lost(String),
    Back(Duration),
    /// What one watch is of.
    Refused(String),
}

impl Feed {
    /// The pods of the node.
    pub fn pods(&self) -> Arc<Pods> {
        Arc::clone(&self.pods)
    }

    /// Waits until what is known has changed, and what it refers to is known as well.
    pub async fn changed(&self) {
        self.settled.notified().await;
    }

    /// What is known, as documents.
    pub fn documents(&self) -> ClusterDocuments {
        let mut state = self.state.lock();
        state.taken = Arc::clone(&state.tunnels);
        state.objects.documents()
    }

    /// Tells the cluster what became of the documents that were last taken: what is wrong with them,
    /// and why the rest is not in force if it is not.
    pub fn judge<'a>(
        &self,
        problems: impl IntoIterator<Item = &'a Problem>,
        failure: Option<String>,
    ) {
        let mut verdict = Verdict {
            tunnels: Arc::clone(&self.state.lock().taken),
            problems: BTreeMap::new(),
            failure,
        };
        for problem in problems {
            if let Some(ObjectRef {
                kind,
                namespace: Some(namespace),
                name,
            }) = problem.object()
            {
                let object = (kind.to_owned(), (namespace.to_owned(), name.to_owned()));
                let text = format!("{}: {}", problem.key(), problem.reason());
                verdict.problems.entry(object).or_default().push(text);
            }
        }
        self.verdict.send_replace(verdict);
    }

    /// What was last told, and what will be.
    pub(super) fn verdicts(&self) -> watch::Receiver<Verdict> {
        let mut verdicts = self.verdict.subscribe();
        verdicts.mark_changed();
        verdicts
    }

    /// Every Tunnel there is.
    pub fn tunnels(&self) -> Tunnels {
        Arc::clone(&self.state.lock().tunnels)
    }

    /// Whether everything was known at some time, but for what is only referred to: before, nothing
    /// can be decided.
    pub fn is_complete(&self) -> bool {
        let state = self.state.lock();
        let mut watches = state.watches.iter();
        let is_of_one = |scope: &Scope| matches!(scope, Scope::Policy(_, Some(_)));
        watches.all(|(scope, watched)| is_of_one(scope) || watched.is_settled(scope))
    }

    /// Why not everything is known yet, as far as that is the API's doing.
    pub fn obstacle(&self) -> Option<String> {
        let state = self.state.lock();
        let outage = state.outage.as_ref().map(|outage| outage.reason.clone());
        outage.or_else(|| {
            let mut watches = state.watches.iter();
            let refused =
                watches.find(|(scope, watched)| watched.refused && !watched.is_settled(scope));
            refused.map(|(scope, _)| format!("it does not let us read {scope}"))
        })
    }

    /// Why the API is not reached, if it is not.
    pub fn outage(&self) -> Option<String> {
        let state = self.state.lock();
        state.outage.as_ref().map(|outage| outage.reason.clone())
    }

    /// What `/status` shows.
    pub fn to_json(&self) -> Value {
        let state = self.state.lock();
        let mut absent = Vec::new();
        let mut refused = Vec::new();
        for (scope, watched) in &state.watches {
            if watched.absent {
                absent.push(scope.to_string());
            }
            if watched.refused {
                refused.push(scope.to_string());
            }
        }
        json!({
            "connected": state.outage.is_none(),
            "outage": state.outage.as_ref().map(|outage| json!({
                "seconds": outage.since.elapsed().as_secs(),
                "reason": outage.reason,
            })),
            "objects": state.counts(),
            "absent": absent,
            "refused": refused,
        })
    }

    /// How many objects there are, by kind.
    pub(super) fn counts(&self) -> BTreeMap<&'static str, usize> {
        self.state.lock().counts()
    }

    pub(super) fn references(&self) -> References {
        self.state.lock().objects.references()
    }

    pub(super) fn open(&self, scope: Scope) {
        self.state.lock().watches.entry(scope).or_default();
    }

    /// Forgets a watch and what it was of.
    pub(super) fn close(&self, scope: &Scope) {
        self.keep_only(scope, &HashSet::new());
        self.state.lock().watches.remove(scope);
    }

    pub(super) fn is_settled(&self, scope: &Scope) -> bool {
        let state = self.state.lock();
        let watched = state.watches.get(scope);
        watched.is_some_and(|watched| watched.is_settled(scope))
    }

    /// Takes an object of a watch as it is now.
    pub(super) fn set(&self, scope: &Scope, version: &str, object: Arrived) {
        let Scope::Policy(kind, _) = scope else {
            return;
        };
        let Arrived { name, facts, json } = object;
        let mut state = self.state.lock();
        let Some(watched) = state.watches.get_mut(scope) else {
            return;
        };
        watched.members.insert(name.clone());
        if *kind == ClusterKind::Tunnel {
            Arc::make_mut(&mut state.tunnels).insert(name.clone(), Arc::new(facts));
        }
        if state.objects.set(key(*kind, name), version, json) {
            self.moved.notify_one();
        }
    }

    /// Takes a pod of the node as it is now; `uid` is what its cgroup calls it.
    pub(super) fn set_pod(&self, scope: &Scope, name: Name, uid: Box<str>, pod: Pod) {
        let mut state = self.state.lock();
        let Some(watched) = state.watches.get_mut(scope) else {
            return;
        };
        watched.members.insert(name.clone());
        let is_known = watched.synced;
        state.pods.insert(name, (uid, pod));
        if is_known {
            self.tell_pods(&state);
        }
    }

    fn tell_pods(&self, state: &State) {
        self.pods.replace(state.pods.values().cloned());
    }

    /// Forgets an object of a watch.
    pub(super) fn remove(&self, scope: &Scope, name: &Name) {
        let mut state = self.state.lock();
        if let Some(watched) = state.watches.get_mut(scope) {
            watched.members.remove(name);
        }
        let Scope::Policy(kind, _) = scope else {
            state.pods.remove(name);
            return self.tell_pods(&state);
        };
        if *kind == ClusterKind::Tunnel {
            Arc::make_mut(&mut state.tunnels).remove(name);
        }
        if state.objects.remove(&key(*kind, name.clone())) {
            self.moved.notify_one();
        }
    }

    /// Of what a watch is of, only what was `seen` is there.
    pub(super) fn keep_only(&self, scope: &Scope, seen: &HashSet<Name>) {
        let gone: Vec<Name> = {
            let state = self.state.lock();
            let members = state.watches.get(scope).map(|watched| &watched.members);
            members
                .into_iter()
                .flatten()
                .filter(|name| !seen.contains(*name))
                .cloned()
                .collect()
        };
        for name in &gone {
            self.remove(scope, name);
        }
    }

    pub(super) fn synced(&self, scope: &Scope) {
        let mut state = self.state.lock();
        let Some(watched) = state.watches.get_mut(scope) else {
            return;
        };
        watched.absent = false;
        let is_first = !std::mem::replace(&mut watched.synced, true);
        if matches!(scope, Scope::Pods(_)) {
            self.tell_pods(&state);
        }
        if is_first {
            self.moved.notify_one();
        }
    }

    /// The cluster does not have the kind.
    pub(super) fn absent(&self, scope: &Scope) {
        let mut state = self.state.lock();
        let Some(watched) = state.watches.get_mut(scope) else {
            return;
        };
        if !std::mem::replace(&mut watched.absent, true) {
            self.moved.notify_one();
        }
    }

    /// Notes how a request for a watch fared. Returns what that turns.
    pub(super) fn fared(
        &self,
        scope: &Scope,
        failing: Option<String>,
        refused: Option<String>,
    ) -> Option<Turn> {
        let mut state = self.state.lock();
        let watched = state.watches.get_mut(scope)?;
        watched.failing = failing;
        let was_refused = std::mem::replace(&mut watched.refused, refused.is_some());
        if let Some(why) = refused.filter(|_| !was_refused) {
            // Whoever waits for it would wait for ever.
            self.moved.notify_one();
            return Some(Turn::Refused(why));
        }
        let reason = state.watches.values().find_map(|it| it.failing.clone());
        match (&mut state.outage, reason) {
            (None, Some(reason)) => {
                state.outage = Some(Outage {
                    since: Instant::now(),
                    reason: reason.clone(),
                });
                Some(Turn::Lost(reason))
            }
            (Some(outage), None) => {
                let after = outage.since.elapsed();
                state.outage = None;
                Some(Turn::Back(after))
            }
            (Some(outage), Some(reason)) => {
                outage.reason = reason;
                None
            }
            (None, None) => None,
        }
    }
}

impl State {
    fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for (scope, watched) in &self.watches {
            *counts.entry(scope.name()).or_default() += watched.members.len();
        }
        counts
    }
}

impl Watched {
    fn is_settled(&self, scope: &Scope) -> bool {
        self.synced || self.absent || self.refused && !scope.is_vital()
    }
}

impl Scope {
    /// Whether it is all of a kind that says what goes where. To do without it would be to let go what
    /// is to be captured.
    pub(super) fn is_vital(&self) -> bool {
        use ClusterKind::{DestinationRule, ServiceEntry, Tunnel};
        matches!(
            self,
            Self::Policy(Tunnel | ServiceEntry | DestinationRule, None)
        )
    }

    /// In the plural, with the group where it is not plain.
    fn name(&self) -> &'static str {
        match self {
            Self::Pods(_) => "pods",
            Self::Policy(kind, _) => kind.resource(),
        }
    }
}

fn key(kind: ClusterKind, (namespace, name): Name) -> ObjectKey {
    ObjectKey {
        kind,
        namespace,
        name,
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Policy(_, Some((namespace, name))) => write!(f, " {namespace}/{name}"),
            Self::Policy(_, None) | Self::Pods(_) => Ok(()),
        }
    }
}
