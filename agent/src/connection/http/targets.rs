//! Connections to targets that several requests use at the same time.

use std::future::pending;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::uri::Scheme;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::lease::Lease;
use super::refused::Refused;
use super::upstream::{KEEP_IDLE, Key, Pool, Upstream, Wanted};
use super::{Requests, Route};
use crate::circuit::{Circuit, Place, Waiting};
use crate::policy::Facts;
use crate::sockets::Carrier;
use crate::telemetry::request::{Attempt, OpenTunnel};
use crate::telemetry::{Label, RequestRecord};
use crate::tunnel::Early;
use crate::tunnel::http2::{Config, Connection};

/// The protocols that are spoken to targets (RFC 7301 section 6).
const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

/// Connections for one key that take new streams; where a target allows few streams at a time,
/// more wait.
const MAX_LINES: usize = 8;

/// Keys of which something is remembered, besides those that have connections.
const MAX_SLOTS: usize = 256;

/// How long a target may take to greet in HTTP/2.
const GREETING_DEADLINE: Duration = Duration::from_secs(10);

/// The longest head of an answer, in the count of RFC 9113 section 6.5.2.
const MAX_ANSWER_HEAD: u32 = 64 * 1024;

/// Connections on which one request is tried.
pub(super) const MAX_TRIES: usize = 3;

/// How often is looked what has been idle for too long.
pub(super) const SWEEP: Duration = Duration::from_secs(5);

/// How often is looked what is idle, while a request waits for a connection.
const GLANCE: Duration = Duration::from_millis(50);

/// A connection to a target that speaks HTTP/2.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) connection: Connection,
    pub(super) scheme: Scheme,
    through: Option<OpenTunnel>,
    /// What policy allows it.
    lease: Box<Lease>,
    last_use: Mutex<Instant>,
}

impl Line {
    /// Whether it takes a stream now.
    fn has_room(&self) -> bool {
        let status = self.connection.status();
        let status = status.borrow();
        let max = self.lease.streams_of(status.max_streams.unwrap_or(1));
        status.ended.is_none()
            && !status.going_away
            && self.lease.is_good()
            && self.connection.open_streams() < max
    }

    /// The proxy through which it goes.
    pub(super) fn proxy(&self) -> Option<&Label> {
        self.through.as_ref().map(OpenTunnel::proxy)
    }

    fn is_alive(&self) -> bool {
        let status = self.connection.status();
        let status = status.borrow();
        status.ended.is_none() && !status.going_away && self.lease.is_good()
    }

    /// Whether it is idle, and another request waits for its place.
    fn is_to_give_way(&self) -> bool {
        self.lease.is_wanted() && self.connection.open_streams() == 0
    }

    /// Since when it has had no stream.
    fn idle_since(&self) -> Option<Instant> {
        (self.connection.open_streams() == 0).then(|| *self.last_use.lock())
    }
}

/// What takes one request.
pub(super) enum Target {
    /// A stream of this.
    Http2(Arc<Line>),
    /// All of this, which speaks HTTP/1.1.
    Http1(Box<Upstream>),
}

impl Target {
    /// The proxy through which it goes.
    pub(super) fn proxy(&self) -> Option<&Label> {
        match self {
            Self::Http2(line) => line.proxy(),
            Self::Http1(upstream) => upstream.proxy(),
        }
    }
}

/// Connections to targets that several requests of one workload use, by what policy says of a
/// request. They are shared with no other workload: a target may have learnt something of it on
/// them.
///
/// Who finds none opens one; who comes meanwhile and has the same key waits for that one. Nobody
/// waits for a connection of another key.
#[derive(Debug)]
pub(super) struct Targets {
    state: Mutex<State>,
    /// A request is over, so that there may be room for another.
    room: Notify,
    /// How many may be idle.
    max_idle: usize,
}

/// A stream on its way. Dropped, it makes room for another.
pub(super) struct Carried<'a>(pub(super) &'a Targets);

impl Drop for Carried<'_> {
    fn drop(&mut self) {
        self.0.room.notify_waiters();
    }
}

/// Where a request goes.
pub(super) struct Way<'a> {
    pub(super) route: &'a Route,
    pub(super) key: Key,
    pub(super) circuit: &'a Circuit,
    /// For messages.
    pub(super) whose: &'a str,
}

#[derive(Debug, Default)]
struct State {
    slots: Vec<Slot>,
    /// Of HTTP/1.1, idle.
    http1: Pool,
}

#[derive(Debug)]
struct Slot {
    key: Key,
    lines: Vec<Arc<Line>>,
    /// A connection is being opened; what comes of it.
    opening: Option<watch::Receiver<Option<Opened>>>,
    /// The target lately chose HTTP/1.1, so each request needs a connection of its own.
    speaks_http1: bool,
    last_use: Instant,
}

/// What came of opening a connection for several.
#[derive(Clone, Debug)]
enum Opened {
    Line(Arc<Line>),
    /// It serves who opened it, and nobody else.
    NotShared,
    Failed(Refused, Attempt),
}

/// What a request that needs a connection does next.
enum Step {
    Take(Arc<Line>),
    Reuse(Box<Upstream>),
    Wait(watch::Receiver<Option<Opened>>),
    Open(watch::Sender<Option<Opened>>),
    OpenAlone,
}

impl Targets {
    /// None yet, of which so many may be idle.
    pub(super) fn new(max_idle: usize) -> Self {
        Self {
            state: Mutex::default(),
            room: Notify::new(),
            max_idle,
        }
    }

    /// Whether the target lately chose HTTP/1.1.
    pub(super) fn speak_http1(&self, key: &Key) -> bool {
        self.state.lock().slot(key).speaks_http1
    }

    /// Whether there are none, and nothing is remembered.
    pub(super) fn are_none(&self) -> bool {
        self.state.lock().slots.is_empty()
    }

    /// A connection for a request on this way, and whether it has served others; none of those to
    /// `avoid`.
    pub(super) async fn reach(
        self: &Arc<Self>,
        requests: &Requests,
        way: &Way<'_>,
        avoid: &[Arc<Line>],
        facts: &mut Facts,
        record: &mut RequestRecord,
    ) -> Result<(Target, bool), Refused> {
        let key = &way.key;
        let mut waiting: Option<Waiting> = None;
        let mut alone = false;
        loop {
            // Before it is looked for, lest it comes unseen.
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            let step = if alone {
                Step::OpenAlone
            } else {
                self.state.lock().next(key, avoid)
            };
            let shared = match step {
                Step::Take(line) => return Ok((reuse(line, record), true)),
                Step::Reuse(upstream) => {
                    upstream.reused(record);
                    return Ok((Target::Http1(upstream), true));
                }
                Step::Wait(mut opening) => {
                    begin_to_wait(&mut waiting, way.circuit)?;
                    // An error: who opened it has gone.
                    match opening.wait_for(Option::is_some).await.as_deref() {
                        // Where there may be few at a time, all who come must be counted.
                        Ok(Some(Opened::Line(line))) if !line.lease.is_restricted() => {
                            line.lease.serve();
                            return Ok((reuse(Arc::clone(line), record), true));
                        }
                        Ok(Some(Opened::Failed(refused, attempt))) => {
                            record.shares(attempt);
                            return Err(refused.clone());
                        }
                        Ok(Some(Opened::NotShared)) => alone = true,
                        Ok(Some(Opened::Line(_)) | None) | Err(_) => {}
                    }
                    continue;
                }
                Step::Open(shared) => Some(Opening {
                    targets: self,
                    key,
                    shared,
                }),
                Step::OpenAlone => None,
            };
            let place = tokio::select! {
                biased;
                place = begin_to_wait(&mut waiting, way.circuit)?.connection() => place,
                () = self.give_way() => pending().await,
                () = room.as_mut() => continue,
            };
            let place = place.map_err(|refusal| Refused::limit(&refusal))?;
            // On the heap: most requests have no use for the room.
            let opened = Box::pin(self.open(requests, way, place, facts, record)).await;
            let told = match &opened {
                Ok((Target::Http2(line), true)) => {
                    line.lease.serve();
                    self.keep(key, line);
                    Opened::Line(Arc::clone(line))
                }
                Ok((target, is_kept)) => {
                    let is_http1 = matches!(target, Target::Http1(_));
                    self.state.lock().slot(key).speaks_http1 = is_http1 && *is_kept;
                    Opened::NotShared
                }
                Err(refused) => Opened::Failed(refused.clone(), record.attempt()),
            };
            if let Some(shared) = shared {
                shared.tell(told);
            }
            return opened.map(|(target, _)| (target, false));
        }
    }

    /// A connection, and whether others may use it.
    async fn open(
        &self,
        requests: &Requests,
        way: &Way<'_>,
        place: Place,
        facts: &mut Facts,
        record: &mut RequestRecord,
    ) -> Result<(Target, bool), Refused> {
        let arrived = requests.arrived();
        let wanted = Wanted {
            forward: false,
            protocols: ALPN,
        };
        let counted = (way.circuit, place);
        let from = &requests.way;
        let reached = from.reach(&arrived, way.route, wanted, counted, facts, record);
        let upstream = reached.await?;
        let is_kept = upstream.is_kept();
        let scheme = if upstream.is_encrypted {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        };
        if upstream.is_encrypted && upstream.stream.alpn() != Some(b"h2") {
            return Ok((Target::Http1(Box::new(upstream)), is_kept));
        }
        let (mut stream, early, through, lease) = upstream.into_parts();
        stream.finish_on_drop();
        let config = Config {
            max_header_list: MAX_ANSWER_HEAD,
            ..Config::default()
        };
        let deadline = Instant::now() + GREETING_DEADLINE;
        let transport = Early::new(stream, early);
        let connection = Connection::handshake(transport, &config, deadline)
            .await
            .map_err(|error| Refused::greeting(&error, way.whose))?;
        let line = Line {
            connection,
            scheme,
            through,
            lease,
            last_use: Mutex::new(Instant::now()),
        };
        Ok((Target::Http2(Arc::new(line)), is_kept))
    }

    fn keep(self: &Arc<Self>, key: &Key, line: &Arc<Line>) {
        let mut state = self.state.lock();
        let slot = state.slot(key);
        slot.speaks_http1 = false;
        slot.lines.push(Arc::clone(line));
        tokio::spawn(watch_over(Arc::downgrade(self), Arc::clone(line)));
    }

    /// A request is over: keeps what can serve others.
    pub(super) fn put(&self, key: &Key, target: Target, persists: bool) {
        match target {
            Target::Http2(line) => {
                *line.last_use.lock() = Instant::now();
                if !line.lease.is_good() || line.is_to_give_way() {
                    self.forget(&line);
                }
                self.state.lock().trim(self.max_idle);
            }
            Target::Http1(upstream) if persists => {
                self.state.lock().http1.put(key.clone(), *upstream);
            }
            Target::Http1(_) => {}
        }
    }

    /// Gives up idle connections whose place a request waits for. Never ends.
    async fn give_way(&self) {
        loop {
            self.state.lock().give_way();
            sleep(GLANCE).await;
        }
    }

    /// Gives up what has been idle for too long.
    pub(super) fn sweep(&self) {
        self.state.lock().sweep();
    }

    fn forget(&self, line: &Arc<Line>) {
        let mut state = self.state.lock();
        for slot in &mut state.slots {
            slot.lines.retain(|one| !Arc::ptr_eq(one, line));
        }
    }
}

/// A request that uses a connection which is there.
fn reuse(line: Arc<Line>, record: &mut RequestRecord) -> Target {
    if let Some(through) = &line.through {
        record.reuses(through);
    }
    *line.last_use.lock() = Instant::now();
    Target::Http2(line)
}

/// Forgets a connection as soon as it takes no more streams. Those that it has keep it.
async fn watch_over(targets: Weak<Targets>, line: Arc<Line>) {
    let mut status = line.connection.status();
    let wanted = line.lease.wanted();
    let line = {
        let weak = Arc::downgrade(&line);
        drop(line);
        weak
    };
    let is_over =
        |status: &crate::tunnel::http2::Status| status.going_away || status.ended.is_some();
    tokio::select! {
        // An error: it has ended as well.
        _ = status.wait_for(is_over) => {}
        () = gives_way(wanted, &line) => {}
    }
    if let (Some(targets), Some(line)) = (targets.upgrade(), line.upgrade()) {
        targets.forget(&line);
    }
}

/// Ends when another request needs the place of a connection that is idle.
async fn gives_way(wanted: impl Future<Output = ()>, line: &Weak<Line>) {
    wanted.await;
    // It may be wanted while it is busy, and not any more when it is idle.
    while line.upgrade().is_some_and(|line| !line.is_to_give_way()) {
        sleep(GLANCE).await;
    }
}

/// A request has to wait for a connection, if it has not had to before.
fn begin_to_wait<'a>(
    waiting: &'a mut Option<Waiting>,
    circuit: &Circuit,
) -> Result<&'a Waiting, Refused> {
    match waiting {
        Some(waiting) => Ok(waiting),
        None => {
            let begun = circuit.wait().map_err(|refusal| Refused::limit(&refusal))?;
            Ok(waiting.insert(begun))
        }
    }
}

impl Slot {
    fn is_used(&self) -> bool {
        !self.lines.is_empty() || self.opening.is_some()
    }
}

impl State {
    fn slot(&mut self, key: &Key) -> &mut Slot {
        let at = self.slots.iter().position(|slot| slot.key == *key);
        let at = at.unwrap_or_else(|| {
            if self.slots.len() >= MAX_SLOTS {
                self.slots.retain(Slot::is_used);
            }
            self.slots.push(Slot {
                key: key.clone(),
                lines: Vec::new(),
                opening: None,
                speaks_http1: false,
                last_use: Instant::now(),
            });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[at];
        slot.last_use = Instant::now();
        slot
    }

    fn next(&mut self, key: &Key, avoid: &[Arc<Line>]) -> Step {
        let slot = self.slot(key);
        let is_avoided = |line: &Arc<Line>| avoid.iter().any(|one| Arc::ptr_eq(one, line));
        let usable = slot.lines.iter().filter(|line| !is_avoided(line));
        if let Some(line) = usable.clone().find(|line| line.has_room()) {
            line.lease.serve();
            return Step::Take(Arc::clone(line));
        }
        if let Some(opening) = &slot.opening {
            return Step::Wait(opening.clone());
        }
        let is_restricted = slot.lines.iter().any(|line| line.lease.limits_streams());
        if slot.lines.len() >= MAX_LINES && !is_restricted {
            let alive = usable.filter(|line| line.is_alive());
            if let Some(line) = alive.min_by_key(|line| line.connection.open_streams()) {
                line.lease.serve();
                return Step::Take(Arc::clone(line));
            }
        }
        if slot.speaks_http1 {
            return match self.http1.take(key) {
                Some(upstream) => Step::Reuse(Box::new(upstream)),
                None => Step::OpenAlone,
            };
        }
        let (sender, opening) = watch::channel(None);
        slot.opening = Some(opening);
        Step::Open(sender)
    }

    fn sweep(&mut self) {
        self.http1.prune();
        let now = Instant::now();
        for slot in &mut self.slots {
            let is_late = |line: &Line| {
                let since = line.idle_since();
                since.is_some_and(|since| since + line.lease.idle() <= now)
            };
            slot.lines.retain(|line| !is_late(line));
        }
        self.slots
            .retain(|slot| slot.is_used() || slot.last_use + KEEP_IDLE > now);
    }

    fn give_way(&mut self) {
        self.http1.prune();
        for slot in &mut self.slots {
            slot.lines.retain(|line| !line.is_to_give_way());
        }
    }

    /// Gives up those that have been idle for the longest time, where there are many.
    fn trim(&mut self, max_idle: usize) {
        let lines = self.slots.iter().flat_map(|slot| &slot.lines);
        if lines.clone().count() <= max_idle {
            return;
        }
        let mut idle: Vec<_> = lines
            .filter_map(|line| Some((line.idle_since()?, Arc::clone(line))))
            .collect();
        idle.sort_by_key(|(since, _)| *since);
        idle.truncate(idle.len().saturating_sub(max_idle));
        for slot in &mut self.slots {
            slot.lines
                .retain(|line| !idle.iter().any(|(_, one)| Arc::ptr_eq(one, line)));
        }
    }
}

/// A connection that is being opened for all who come meanwhile. Dropped, it lets the next try.
struct Opening<'a> {
    targets: &'a Targets,
    key: &'a Key,
    shared: watch::Sender<Option<Opened>>,
}

impl Opening<'_> {
    fn tell(self, opened: Opened) {
        self.shared.send_replace(Some(opened));
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.targets.state.lock().slot(self.key).opening = None;
    }
}
