//! How much each target is asked at a time, and when it has failed too often: what Envoy calls
//! circuit breaking and outlier detection.
//!
//! Of each target that policy says something of there is one state for all who speak to it. The
//! limits are those of the policy that a connection or request is under, so that a policy which is
//! read again finds what there is. It is forgotten when nobody uses it and there are many.

mod counts;
mod health;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::name::{HostName, Target};
use crate::policy::{TargetPolicy, TargetSettings};
use crate::telemetry::{Label, Metrics, TargetLimit};
use counts::{Count, Counts};
use health::Health;

pub(crate) use health::Outcome;

/// States that are kept although nobody uses them.
const MAX_IDLE: usize = 4096;

/// How long a request waits for a connection, if nothing else ends its waiting.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Where a connection leads to.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Leads {
    /// To an address, which the workload chose.
    Direct(SocketAddr),
    /// To what a proxy is asked for.
    Tunnel(Target),
}

/// The states of all targets.
#[derive(Debug)]
pub(crate) struct Circuits {
    metrics: Arc<Metrics>,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    states: HashMap<Key, Arc<State>>,
    /// Past so many it is looked who is of no use.
    full: usize,
}

/// What a target is. The name is only claimed, so it says nothing of those who lead elsewhere.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Key {
    host: HostName,
    port: u16,
    leads: Leads,
}

#[derive(Debug, Default)]
struct State {
    inner: Mutex<Inner>,
    /// There is room for a connection.
    freed: Notify,
    /// Somebody waits for a connection.
    wanted: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    counts: Counts,
    health: Health,
}

impl State {
    /// Whether nothing is lost with it, as far as it knows itself.
    fn is_blank(&self, now: Instant) -> bool {
        let inner = self.inner.lock();
        inner.counts == Counts::default() && inner.health.is_blank(now)
    }
}

impl Circuits {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            table: Mutex::new(Table {
                states: HashMap::new(),
                full: MAX_IDLE,
            }),
        }
    }

    /// That of a target, as policy wants it.
    pub(crate) fn of(&self, policy: Option<&Arc<TargetPolicy>>, leads: Leads) -> Circuit {
        // Where only requests have times, there is nothing to count.
        let Some(policy) = policy.filter(|policy| policy.settings.policy.is_some()) else {
            return Circuit(None);
        };
        let key = Key {
            host: policy.host.clone(),
            port: policy.port,
            leads,
        };
        let state = self.table.lock().state(key);
        Circuit(Some(Of {
            policy: Arc::clone(policy),
            state,
            metrics: Arc::clone(&self.metrics),
        }))
    }
}

impl Table {
    fn state(&mut self, key: Key) -> Arc<State> {
        if let Some(state) = self.states.get(&key) {
            return Arc::clone(state);
        }
        if self.states.len() >= self.full {
            self.make_room();
        }
        Arc::clone(self.states.entry(key).or_default())
    }

    /// Forgets what nobody uses: what remembers nothing, then, if there is still much, the rest.
    fn make_room(&mut self) {
        let now = Instant::now();
        let is_used = |state: &Arc<State>| Arc::strong_count(state) > 1;
        self.states
            .retain(|_, state| is_used(state) || !state.is_blank(now));
        if self.states.len() > self.full / 2 {
            self.states.retain(|_, state| is_used(state));
        }
        // What is used does not make every newcomer look through all.
        self.full = MAX_IDLE.max(self.states.len() * 2);
    }
}

/// The state of a target, and the settings that somebody is under. Where policy says nothing of a
/// target, everything is allowed and nothing counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Circuit(Option<Of>);

#[derive(Clone, Debug)]
struct Of {
    policy: Arc<TargetPolicy>,
    state: Arc<State>,
    metrics: Arc<Metrics>,
}

/// Tells targets that are counted together from others. Settings are the same only if they come of
/// the same reading of policy.
#[derive(Clone, Debug)]
pub(crate) struct Id {
    host: HostName,
    port: u16,
    settings: Arc<TargetSettings>,
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        self.host == other.host
            && self.port == other.port
            && Arc::ptr_eq(&self.settings, &other.settings)
    }
}

/// Why something is not done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) limit: TargetLimit,
    text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Circuit {
    /// What policy says of the target.
    pub(crate) fn settings(&self) -> Option<&TargetSettings> {
        self.0.as_ref().map(|of| &*of.policy.settings)
    }

    /// What is counted together, under the same settings.
    pub(crate) fn id(&self) -> Option<Id> {
        let of = self.0.as_ref()?;
        Some(Id {
            host: of.policy.host.clone(),
            port: of.policy.port,
            settings: Arc::clone(&of.policy.settings),
        })
    }

    /// Asks whether the target may be tried now. What comes of it is to be said.
    ///
    /// # Errors
    /// It has failed too often.
    pub(crate) fn attempt(&self) -> Result<Attempt, Refusal> {
        let Some(of) = &self.0 else {
            return Ok(Attempt(None));
        };
        let Some(outliers) = &of.policy.settings.outliers else {
            return Ok(Attempt(None));
        };
        let now = Instant::now();
        match of.state.inner.lock().health.admit(now, outliers) {
            Ok(trial) => Ok(Attempt(Some(Trying {
                of: of.clone(),
                trial,
            }))),
            Err(wait) => Err(of.refuse(
                TargetLimit::Ejected,
                &format_args!("has kept failing: it is tried again in {wait:.0?}"),
            )),
        }
    }

    /// A request begins.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub(crate) fn request(&self) -> Result<Held, Refusal> {
        self.hold(Count::Requests)
    }

    /// A request is tried again.
    ///
    /// # Errors
    /// There are as many retries as there may be.
    pub(crate) fn retry(&self) -> Result<Held, Refusal> {
        self.hold(Count::Retries)
    }

    /// A connection, at once.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub(crate) fn connection(&self) -> Result<Place, Refusal> {
        let held = self.hold(Count::Connections)?;
        Ok(Place(held.0))
    }

    /// A request begins to wait for a connection.
    ///
    /// # Errors
    /// As many wait as there may.
    pub(crate) fn wait(&self) -> Result<Waiting, Refusal> {
        self.hold(Count::Pending).map(Waiting)
    }

    fn hold(&self, count: Count) -> Result<Held, Refusal> {
        let Some(of) = &self.0 else {
            return Ok(Held(None));
        };
        of.take(count).map(|holding| Held(Some(holding)))
    }
}

impl Of {
    fn take(&self, count: Count) -> Result<Holding, Refusal> {
        let limit = count.limit(&self.policy.settings);
        if self.state.inner.lock().counts.take(count, limit) {
            return Ok(self.holding(count));
        }
        Err(self.full(count))
    }

    fn holding(&self, count: Count) -> Holding {
        Holding {
            of: self.clone(),
            count,
        }
    }

    fn full(&self, count: Count) -> Refusal {
        let limit = count.limit(&self.policy.settings).unwrap_or_default();
        self.refuse(
            count.reason(),
            &format_args!("has {limit} {} already ({})", count.what(), count.field()),
        )
    }

    fn refuse(&self, limit: TargetLimit, why: &dyn fmt::Display) -> Refusal {
        self.metrics.circuits.refused(&self.label(), limit);
        let TargetPolicy { host, port, .. } = &*self.policy;
        let by = self.policy.settings.policy.as_deref().unwrap_or_default();
        Refusal {
            limit,
            text: format!("{host}:{port} {why}, as {by} has it"),
        }
    }

    fn label(&self) -> Label {
        Label::shared(&self.policy.declared)
    }
}

/// One try of a target.
#[derive(Debug)]
pub(crate) struct Attempt(Option<Trying>);

#[derive(Debug)]
struct Trying {
    of: Of,
    /// The number of the trial by which an ejection may end.
    trial: Option<u64>,
}

impl Attempt {
    /// Says what came of it. Unless it is said, it is as if there had been none.
    pub(crate) fn ended(self, outcome: Outcome) {
        let Some(trying) = &self.0 else { return };
        let Trying { of, trial } = trying;
        let Some(outliers) = &of.policy.settings.outliers else {
            return;
        };
        let now = Instant::now();
        let mut inner = of.state.inner.lock();
        if let Some(time) = inner.health.note(now, outliers, outcome, *trial) {
            drop(inner);
            of.metrics.circuits.ejected(&of.label());
            let TargetPolicy { host, port, .. } = &*of.policy;
            tracing::warn!(%host, port, ?time, "target keeps failing: it is refused for a while");
        }
    }
}

impl Drop for Trying {
    fn drop(&mut self) {
        if let Some(trial) = self.trial {
            self.of.state.inner.lock().health.give_up(trial);
        }
    }
}

/// Something that counts as long as this lives.
#[derive(Debug)]
pub(crate) struct Held(Option<Holding>);

#[derive(Debug)]
struct Holding {
    of: Of,
    count: Count,
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.of.state.inner.lock().counts.give_back(self.count);
        if self.count == Count::Connections {
            self.of.state.freed.notify_one();
        }
    }
}

/// The place of a connection among those of its target.
#[derive(Debug, Default)]
pub(crate) struct Place(Option<Holding>);

impl Place {
    /// Whether somebody waits for a connection.
    pub(crate) fn is_wanted(&self) -> bool {
        let state = self.0.as_ref().map(|holding| &holding.of.state);
        state.is_some_and(|state| state.inner.lock().counts.is_awaited())
    }

    /// Ends when somebody waits for a connection, while this one is idle.
    pub(crate) fn wanted(&self) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        let Some(holding) = &self.0 else {
            return Box::pin(std::future::pending());
        };
        let state = Arc::clone(&holding.of.state);
        Box::pin(async move {
            loop {
                let mut wanted = pin!(state.wanted.notified());
                wanted.as_mut().enable();
                if state.inner.lock().counts.is_awaited() {
                    return;
                }
                wanted.await;
            }
        })
    }
}

/// A request that waits for a connection, until it has one.
#[derive(Debug)]
pub(crate) struct Waiting(Held);

impl Waiting {
    /// Waits until there is room for one.
    ///
    /// # Errors
    /// There was none for too long.
    pub(crate) async fn connection(&self) -> Result<Place, Refusal> {
        let Some(Holding { of, .. }) = &self.0.0 else {
            return Ok(Place(None));
        };
        let limit = of.policy.settings.max_connections;
        let take = || of.state.inner.lock().counts.take(Count::Connections, limit);
        // Who comes later waits behind those who wait.
        if !of.state.inner.lock().counts.is_awaited() && take() {
            return Ok(Place(Some(of.holding(Count::Connections))));
        }
        let _queued = Queued::new(&of.state);
        let taking = async {
            loop {
                let mut freed = pin!(of.state.freed.notified());
                freed.as_mut().enable();
                if take() {
                    return;
                }
                freed.await;
            }
        };
        match timeout(MAX_WAIT, taking).await {
            Ok(()) => Ok(Place(Some(of.holding(Count::Connections)))),
            Err(_) => Err(of.full(Count::Connections)),
        }
    }
}

/// One who waits for another to give up its connection.
struct Queued<'a>(&'a State);

impl<'a> Queued<'a> {
    fn new(state: &'a State) -> Self {
        state.inner.lock().counts.begin_to_wait();
        state.wanted.notify_waiters();
        Self(state)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.inner.lock().counts.stop_waiting();
    }
}

#[cfg(test)]
mod tests;
