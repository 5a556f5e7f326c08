//! The connections that live now.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::name::{OriginalDst, Target};
use crate::relay::{Progress, Traffic};
use crate::telemetry::label::{Destination, Label, Workload};
use crate::telemetry::metrics::ByteSeries;
use crate::telemetry::outcome::{
    Decision, DenyReason, ResponseFlag, TargetSource, TunnelCode, TunnelProtocol,
};
use crate::workload;

/// Shards of the table, so that accepting threads seldom meet on a lock.
const SHARDS: usize = 16;

/// Bytes relayed so far, readable at any time from any thread; neither number ever falls.
pub trait ByteCounts: Send + Sync {
    /// Payload bytes from the workload.
    fn sent(&self) -> u64;

    /// Payload bytes to the workload.
    fn received(&self) -> u64;

    /// Messages of gRPC among them, from the workload and to it.
    fn messages(&self) -> (u64, u64) {
        (0, 0)
    }
}

impl ByteCounts for Progress {
    fn sent(&self) -> u64 {
        self.traffic.sent()
    }

    fn received(&self) -> u64 {
        self.traffic.received()
    }

    fn messages(&self) -> (u64, u64) {
        Progress::messages(self)
    }
}

impl ByteCounts for Traffic {
    fn sent(&self) -> u64 {
        Traffic::sent(self)
    }

    fn received(&self) -> u64 {
        Traffic::received(self)
    }
}

/// The connections that live now: for `/connections`, and so that a scrape sees bytes of
/// connections that have not ended. Clones share one table.
#[derive(Clone, Default)]
pub struct ConnectionTable {
    shards: Arc<[Shard; SHARDS]>,
    next: Arc<AtomicU64>,
}

impl ConnectionTable {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One JSON object per connection, oldest first, its fields named as in the access log.
    pub fn snapshot(&self) -> Vec<Value> {
        let mut live = self.live();
        live.sort_unstable_by_key(|connection| connection.id);
        live.iter().map(|connection| connection.to_json()).collect()
    }

    /// Adds to the byte counters what live connections relayed since the last time. Each byte is
    /// counted once, however many threads do this and however a connection ends meanwhile.
    pub(crate) fn fold(&self) {
        for connection in self.live() {
            connection.state.lock().fold();
        }
    }

    /// Enters a connection that begins now.
    pub(crate) fn insert(&self, src: SocketAddr) -> Arc<Connection> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection {
            id,
            src,
            started: Instant::now(),
            state: Mutex::default(),
        });
        self.shard(id).0.lock().insert(id, Arc::clone(&connection));
        connection
    }

    /// Takes out a connection that ended.
    pub(crate) fn remove(&self, id: u64) {
        self.shard(id).0.lock().remove(&id);
    }

    /// The connections, collected so that no lock of the table is held while one is looked at.
    fn live(&self) -> Vec<Arc<Connection>> {
        let mut live = Vec::new();
        for shard in self.shards.iter() {
            live.extend(shard.0.lock().values().cloned());
        }
        live
    }

    fn shard(&self, id: u64) -> &Shard {
        // Below SHARDS, so the cast loses nothing.
        &self.shards[(id % SHARDS as u64) as usize]
    }
}

impl fmt::Debug for ConnectionTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionTable")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// Part of the table, by id.
#[derive(Default)]
struct Shard(Mutex<HashMap<u64, Arc<Connection>>>);

/// One connection: what never changes, and what is learnt on the way.
pub(crate) struct Connection {
    /// Unique in the life of the agent.
    pub(crate) id: u64,
    /// The workload's end as the listener saw it.
    pub(crate) src: SocketAddr,
    /// When it was accepted.
    pub(crate) started: Instant,
    /// What is known so far.
    pub(crate) state: Mutex<State>,
}

impl Connection {
    /// Milliseconds since it was accepted.
    pub(crate) fn age_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn to_json(&self) -> Value {
        let state = self.state.lock();
        let (sent, received) = state.bytes();
        let fields = [
            ("id", Some(json!(self.id))),
            ("src.addr", Some(json!(self.src.to_string()))),
            ("src.pid", state.pid.map(Value::from)),
            ("src.cgroup", state.cgroup.map(Value::from)),
            ("src.namespace", text(state.who.namespace.as_ref())),
            ("src.pod", text(state.who.name.as_ref())),
            ("src.container", text(state.who.container_id().as_ref())),
            ("original_dst", text(state.original_dst.as_ref())),
            ("target", text(state.target.as_ref())),
            ("target.source", text(state.target_source.as_ref())),
            ("proxy", text(state.proxy.as_ref())),
            ("proxy.endpoint", text(state.endpoint.as_ref())),
            ("tunnel.protocol", text(state.protocol.as_ref())),
            ("tunnel.code", state.status().map(Value::from)),
            ("decision", text(state.decision.as_ref())),
            ("policy", text(state.policy.as_ref())),
            ("rule", text(state.rule.as_ref())),
            ("established", Some(json!(state.is_served()))),
            ("bytes_sent", Some(json!(sent))),
            ("bytes_received", Some(json!(received))),
            ("duration_ms", Some(json!(self.age_ms()))),
            ("error", text(state.error.as_ref())),
        ];
        let fields = fields
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Value::Object(Map::from_iter(fields))
    }
}

/// What is learnt about a connection on its way.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) pid: Option<u32>,
    pub(crate) cgroup: Option<u64>,
    pub(crate) original_dst: Option<OriginalDst>,
    /// As labels.
    pub(crate) workload: Arc<Workload>,
    /// In the words of policy.
    pub(crate) who: Arc<workload::Workload>,
    pub(crate) destination: Destination,
    pub(crate) target: Option<Target>,
    pub(crate) target_source: Option<TargetSource>,
    pub(crate) decision: Option<Decision>,
    pub(crate) policy: Option<Label>,
    pub(crate) rule: Option<Label>,
    pub(crate) denied: Option<DenyReason>,
    pub(crate) proxy: Option<Label>,
    pub(crate) endpoint: Option<Label>,
    pub(crate) protocol: Option<TunnelProtocol>,
    pub(crate) code: Option<TunnelCode>,
    pub(crate) flag: Option<ResponseFlag>,
    pub(crate) error: Option<Box<str>>,
    /// From the moment the connection is served.
    pub(crate) relay: Option<Relay>,
    /// Unless it carries no requests, as most do not.
    requests: Option<Box<Requests>>,
}

/// The requests of a connection.
#[derive(Default)]
struct Requests {
    /// That are served now, by their numbers.
    moving: BTreeMap<u64, Relay>,
    next: u64,
}

impl State {
    /// The status of the last answer to CONNECT.
    pub(crate) fn status(&self) -> Option<u16> {
        self.code.and_then(TunnelCode::status)
    }

    /// A request that begins to move bytes. Gives its number.
    pub(crate) fn moves(&mut self, relay: Relay) -> u64 {
        let requests = self.requests.get_or_insert_default();
        let number = requests.next;
        requests.next += 1;
        requests.moving.insert(number, relay);
        number
    }

    /// A request that is over: its bytes are settled.
    pub(crate) fn rests(&mut self, number: u64) {
        let requests = self.requests.as_mut();
        if let Some(relay) = requests.and_then(|requests| requests.moving.remove(&number)) {
            relay.finish(None);
        }
    }

    fn is_served(&self) -> bool {
        self.relays().next().is_some()
    }

    /// Bytes sent and received so far.
    fn bytes(&self) -> (u64, u64) {
        self.relays().fold((0, 0), |(sent, received), relay| {
            let bytes = &relay.bytes;
            (sent + bytes.sent(), received + bytes.received())
        })
    }

    /// Adds to the counters what came since the last time.
    fn fold(&mut self) {
        let requests = self.requests.iter_mut();
        let requests = requests.flat_map(|requests| requests.moving.values_mut());
        for relay in self.relay.iter_mut().chain(requests) {
            relay.fold();
        }
    }

    fn relays(&self) -> impl Iterator<Item = &Relay> {
        let requests = self.requests.iter();
        let requests = requests.flat_map(|requests| requests.moving.values());
        self.relay.iter().chain(requests)
    }
}

/// The bytes of a connection that is served, and how far they are counted.
pub(crate) struct Relay {
    bytes: Arc<dyn ByteCounts>,
    series: ByteSeries,
    counted: (u64, u64),
}

impl Relay {
    /// Nothing counted yet; `series` is where it will be.
    pub(crate) fn new(bytes: Arc<dyn ByteCounts>, series: ByteSeries) -> Self {
        Self {
            bytes,
            series,
            counted: (0, 0),
        }
    }

    /// As [`new`](Self::new), but what has been moved already is not to be counted.
    pub(crate) fn from_now(bytes: Arc<dyn ByteCounts>, series: ByteSeries) -> Self {
        let counted = (bytes.sent(), bytes.received());
        Self {
            counted,
            ..Self::new(bytes, series)
        }
    }

    /// Counts the rest, in `last` if the connection ended as its series does not say. Gives the
    /// bytes sent and received in all.
    pub(crate) fn finish(mut self, last: Option<ByteSeries>) -> (u64, u64) {
        if let Some(series) = last {
            self.series = series;
        }
        self.fold();
        self.counted
    }

    fn fold(&mut self) {
        // A count that fell would break its contract, but must not make counters jump by 2^64.
        let sent = self.bytes.sent().max(self.counted.0);
        let received = self.bytes.received().max(self.counted.1);
        self.series
            .add(sent - self.counted.0, received - self.counted.1);
        self.counted = (sent, received);
        self.series.count_messages(|| self.bytes.messages());
    }
}

fn text<T: ToString>(value: Option<&T>) -> Option<Value> {
    value.map(|value| Value::String(value.to_string()))
}
