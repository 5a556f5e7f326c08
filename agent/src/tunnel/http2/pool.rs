//! Streams over as few connections as they need.

mod error;
mod state;

use std::error::Error;
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::Request;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::error::{Ended, NotTaken, OpenError};
use super::{Config, Connection, Opened, Status, TunnelRequest, TunnelStream};
pub use error::{NoConnection, PoolError};
use state::{Groups, Lease, Waiter};

/// Connections on which one request is tried.
const MAX_TRIES: usize = 3;

/// Makes the transports of a [`Pool`].
pub trait Dial: Send + Sync + 'static {
    /// What connections are shared for: an endpoint of a proxy, and all that makes connections to
    /// it different, as the settings of TLS do.
    type Key: Clone + Eq + Hash + Send + Sync + 'static;
    /// A connection on which HTTP/2 can begin.
    type Transport: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    /// What is told of a connection to each who gets a stream on it: its address, what took how
    /// long.
    type Info: Clone + Send + Sync + 'static;
    /// Why there is none. Every waiting request gets it, so one that ALPN led to HTTP/1.1 says so
    /// here.
    type Error: Error + Send + Sync + 'static;

    /// Connects for `key`, until `deadline` at the latest.
    fn dial(
        &self,
        key: &Self::Key,
        deadline: Instant,
    ) -> impl Future<Output = Result<(Self::Transport, Self::Info), Self::Error>> + Send;

    /// Learns of each connection that came to its end otherwise than by being idle, for records
    /// and counters.
    fn ended(&self, key: &Self::Key, info: &Self::Info, ended: &Ended) {
        let _ = (key, info, ended);
    }
}

/// Limits of a [`Pool`].
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// How each connection is spoken on.
    pub connection: Config,
    /// Connections per key that take new streams. Those that have been told to go away are not
    /// counted, as their streams may last for days. Default: 64.
    pub max_connections: usize,
    /// Requests per key that wait for a connection or for a place on one. Default: 8192.
    pub max_waiting: usize,
    /// From the first packet of a connection to the proxy's SETTINGS. Default: 10 s.
    pub dial_timeout: Duration,
    /// A connection without streams is closed after this time, and before twice of it.
    /// Default: 60 s.
    pub idle_timeout: Duration,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            connection: Config::default(),
            max_connections: 64,
            max_waiting: 8192,
            dial_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
        }
    }
}

/// Connections to proxies, and their streams. Clones are the same pool.
///
/// A request takes a place on the first connection that has one; else it waits, in turn. As many
/// connections are made as the waiting ones need by what the proxy lately allowed, so however many
/// wait for a first connection, it is one. A request that was refused before the proxy looked at
/// it (GOAWAY, REFUSED_STREAM), or that met a connection which had died while idle, goes to
/// another connection: nothing of the workload has been sent by then.
///
/// Its methods are called on a tokio runtime. When the pool and its streams are gone, the
/// connections are closed.
pub struct Pool<D: Dial>(Arc<Inner<D>>);

struct Inner<D: Dial> {
    dial: D,
    config: PoolConfig,
    groups: Mutex<Groups<D>>,
    /// For connections and tickets. A group may be gone and come again while a stream still has
    /// a connection of the first, so they are unique in the pool.
    next_id: AtomicU64,
}

/// A tunnel, and the connection that carries it.
#[derive(Debug)]
pub struct PoolOpened<I> {
    /// The tunnel.
    pub stream: TunnelStream,
    /// The status code, 200 to 299.
    pub code: u16,
    /// What [`Dial`] told of the connection.
    pub info: I,
    /// Whether the connection had carried streams before.
    pub reused: bool,
    /// How long was waited for a connection with a place, dialling included.
    pub waited: Duration,
    /// From the request to the answer, on the connection that gave it.
    pub took: Duration,
}

/// How many connections and streams there are for one key.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    /// Connections, those that are going away included.
    pub connections: usize,
    /// Connections that take no new streams.
    pub going_away: usize,
    /// Connections being made.
    pub dialing: usize,
    /// Streams, those not answered yet included.
    pub streams: usize,
    /// Requests that wait for a place.
    pub waiting: usize,
}

impl<D: Dial> Pool<D> {
    /// An empty pool.
    pub fn new(dial: D, config: PoolConfig) -> Self {
        Self(Arc::new(Inner {
            dial,
            config,
            groups: Mutex::default(),
            next_id: AtomicU64::new(1),
        }))
    }

    /// Opens a tunnel on a connection for `key`, all until `deadline`.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub async fn open(
        &self,
        key: &D::Key,
        request: &TunnelRequest<'_>,
        deadline: Instant,
    ) -> Result<PoolOpened<D::Info>, PoolError<D::Error>> {
        let request = request.build()?;
        let mut avoid = Vec::new();
        let mut waited = Duration::ZERO;
        loop {
            let begin = Instant::now();
            let lease = self.lease(key, avoid.clone(), deadline).await?;
            waited += begin.elapsed();
            match self.try_open(&lease, request.clone(), deadline).await {
                Ok(opened) => {
                    let Opened {
                        mut stream,
                        code,
                        took,
                    } = opened;
                    let info = lease.info().clone();
                    let reused = lease.reused();
                    stream.hold(Box::new(lease));
                    return Ok(PoolOpened {
                        stream,
                        code,
                        info,
                        reused,
                        waited,
                        took,
                    });
                }
                Err(error) => {
                    let elsewhere = match error {
                        OpenError::NotTaken(_) => true,
                        OpenError::Lost(_) => lease.reused(),
                        _ => false,
                    };
                    avoid.push(lease.id());
                    if !elsewhere || avoid.len() == MAX_TRIES {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    async fn try_open(
        &self,
        lease: &Lease<D>,
        request: Request<()>,
        deadline: Instant,
    ) -> Result<Opened, OpenError> {
        let result = lease.connection().open(request, deadline).await;
        let is_over = |error: &OpenError| {
            matches!(
                error,
                OpenError::Lost(_) | OpenError::NotTaken(NotTaken::GoAway(_) | NotTaken::Gone(_))
            )
        };
        if result.as_ref().is_err_and(is_over) {
            // Whoever watches the connection will learn of it too, but maybe later than the next
            // request asks for a place.
            self.0
                .with_group(lease.key(), |group| group.retire(lease.id()));
        }
        result
    }

    /// Gets a place on a connection, but on none to `avoid` if others can be had.
    async fn lease(
        &self,
        key: &D::Key,
        avoid: Vec<u64>,
        deadline: Instant,
    ) -> Result<Lease<D>, PoolError<D::Error>> {
        let (place, places) = oneshot::channel();
        let max_waiting = self.0.config.max_waiting;
        let ticket = self.0.with_group(key, |group| {
            let waiting = group.waiting();
            if waiting >= max_waiting {
                return Err(PoolError::Busy { waiting });
            }
            // Taken under the lock, so that the order is that of the tickets.
            let ticket = self.0.new_id();
            group.enqueue(ticket, Waiter { place, avoid });
            Ok(ticket)
        })?;
        let _waiting = Waiting {
            pool: &self.0,
            key,
            ticket,
        };
        match timeout_at(deadline, places).await {
            Ok(Ok(result)) => result.map_err(PoolError::Connect),
            // A waiter is not forgotten: its ticket is answered, or it gives up.
            Ok(Err(_)) | Err(_) => Err(PoolError::Wait(self.stats(key))),
        }
    }

    /// What there is for `key` now.
    pub fn stats(&self, key: &D::Key) -> Stats {
        let groups = self.0.groups.lock();
        groups.get(key).map(state::Group::stats).unwrap_or_default()
    }

    /// What there is for each key that has anything.
    pub fn all_stats(&self) -> Vec<(D::Key, Stats)> {
        let groups = self.0.groups.lock();
        let each = groups.iter();
        each.map(|(key, group)| (key.clone(), group.stats()))
            .collect()
    }
}

impl<D: Dial> Clone for Pool<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<D: Dial> fmt::Debug for Pool<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}

/// Leaves the queue when nobody waits any more.
struct Waiting<'a, D: Dial> {
    pool: &'a Arc<Inner<D>>,
    key: &'a D::Key,
    ticket: u64,
}

impl<D: Dial> Drop for Waiting<'_, D> {
    fn drop(&mut self) {
        if let Some(group) = self.pool.groups.lock().get_mut(self.key) {
            group.leave(self.ticket);
        }
    }
}

impl<D: Dial> Inner<D> {
    fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Changes the group of `key`, then gives away the places there are and dials for who waits.
    fn with_group<T>(
        self: &Arc<Self>,
        key: &D::Key,
        change: impl FnOnce(&mut state::Group<D>) -> T,
    ) -> T {
        let mut groups = self.groups.lock();
        let group = groups.entry(key.clone()).or_default();
        let result = change(group);
        group.serve(self, key);
        // There is no runtime when a last stream is dropped after it.
        if let Ok(runtime) = Handle::try_current() {
            for _ in 0..group.start_dials(&self.config) {
                runtime.spawn(connect(Arc::downgrade(self), key.clone()));
            }
        }
        if group.is_empty() {
            groups.remove(key);
        }
        result
    }
}

/// Makes one connection and hands it to the pool.
async fn connect<D: Dial>(pool: Weak<Inner<D>>, key: D::Key) {
    let Some(inner) = pool.upgrade() else { return };
    let after = inner.config.dial_timeout;
    let deadline = Instant::now() + after;
    let connected = async {
        let dialled = timeout_at(deadline, inner.dial.dial(&key, deadline)).await;
        let (transport, info) = dialled
            .map_err(|_| NoConnection::Timeout { after })?
            .map_err(|error| NoConnection::Dial(Arc::new(error)))?;
        let config = &inner.config.connection;
        let handshake = Connection::handshake(transport, config, deadline).await;
        let connection = handshake.map_err(|error| NoConnection::Handshake(Arc::new(error)))?;
        Ok((connection, info))
    };
    match connected.await {
        Ok((connection, info)) => {
            let status = connection.status();
            let id = inner.new_id();
            inner.with_group(&key, |group| group.add(id, connection, info.clone()));
            drop(inner);
            watch(pool, key, info, id, status).await;
        }
        Err(error) => inner.with_group(&key, |group| group.dial_failed(&error)),
    }
}

/// Tells the pool what becomes of one of its connections, until it has ended or been idle.
async fn watch<D: Dial>(
    pool: Weak<Inner<D>>,
    key: D::Key,
    info: D::Info,
    id: u64,
    mut status: watch::Receiver<Status>,
) {
    let mut idle_check = Instant::now();
    loop {
        {
            let Some(inner) = pool.upgrade() else { return };
            let now = Instant::now();
            let idle = inner.config.idle_timeout;
            let status = status.borrow_and_update().clone();
            let gone = inner.with_group(&key, |group| {
                group.update(id, &status);
                if status.ended.is_none() && !group.is_idle(id, idle, now) {
                    return false;
                }
                group.remove(id);
                true
            });
            if let Some(ended) = &status.ended {
                inner.dial.ended(&key, &info, ended);
            }
            if gone {
                return;
            }
            if idle_check <= now {
                idle_check = now + idle;
            }
        }
        tokio::select! {
            changed = status.changed() => {
                if changed.is_err() {
                    // The connection is gone without a word, as when the runtime ends.
                    if let Some(inner) = pool.upgrade() {
                        inner.with_group(&key, |group| group.remove(id));
                    }
                    return;
                }
            }
            () = sleep_until(idle_check) => {}
        }
    }
}
