//! The endpoints of a running agent: metrics, readiness, and what an operator asks.
//!
//! Three listeners, because three kinds of client reach them: Prometheus, the kubelet, and
//! somebody logged in on the node. They are served by a thread and runtime of their own, so that
//! they answer while the data plane is busy. Each takes requests of bounded size, in bounded
//! time, from a bounded number of connections, one request per connection.

mod readiness;
mod routes;
mod server;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use prometheus::Registry;
use serde_json::Value;
use tokio::runtime;
use tokio_util::sync::CancellationToken;

use crate::telemetry::{ConnectionTable, LogHandle};

pub use readiness::{Check, Readiness};
use routes::Room;

/// How long an address may be in use by somebody else. Where an agent was killed, its sockets live on
/// for a moment in a helper that it was about to start.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between two attempts to get an address that is in use.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Where to listen, or where it is listened; nowhere for `None`. Port 0 takes any free one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Endpoints {
    /// `/metrics` and `/stats/prometheus`; `--metrics-addr`.
    pub metrics: Option<SocketAddr>,
    /// `/healthz/ready` and `/healthz/live`; `--ready-addr`.
    pub ready: Option<SocketAddr>,
    /// `/status`, `/config_dump`, `/connections` and `/logging`; `--admin-addr`. It shows what the node's
    /// workloads do, so it belongs on loopback.
    pub admin: Option<SocketAddr>,
}

/// What the endpoints show.
#[derive(Clone)]
pub struct AdminState {
    /// The metrics.
    pub registry: Registry,
    /// Whether the agent does its job.
    pub readiness: Readiness,
    /// Makes what `/config_dump` shows, secrets masked. Called on the admin thread.
    pub config_dump: Arc<dyn Fn() -> Value + Send + Sync>,
    /// Makes what `/status` shows besides readiness: an object. Called on the admin thread.
    pub status: Arc<dyn Fn() -> Value + Send + Sync>,
    /// The connections that live now.
    pub connections: ConnectionTable,
    /// The log, to change its filter.
    pub log: LogHandle,
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminState").finish_non_exhaustive()
    }
}

/// Why there are no endpoints.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// An address cannot be listened on.
    #[error("{flag} {addr}: {}", bind_hint(source, flag))]
    Bind {
        /// The flag that gives the address.
        flag: &'static str,
        /// The address.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// There is no thread or runtime to be had.
    #[error("the admin thread cannot be started, is the limit of threads or files reached? {0}")]
    Start(#[source] io::Error),
}

/// The endpoints, bound but not served.
#[derive(Debug)]
pub struct AdminServer {
    addrs: Endpoints,
    listeners: Vec<(Room, TcpListener)>,
}

impl AdminServer {
    /// Binds all of `endpoints`. Blocks for up to a second where an address is in use.
    ///
    /// # Errors
    /// [`AdminError::Bind`] when one cannot be bound.
    pub fn bind(endpoints: Endpoints) -> Result<Self, AdminError> {
        let mut listeners = Vec::new();
        let mut bind = |addr: Option<SocketAddr>, room: Room| {
            let Some(addr) = addr else {
                return Ok(None);
            };
            let (listener, bound) = listen(addr).map_err(|source| AdminError::Bind {
                flag: room.flag(),
                addr,
                source,
            })?;
            tracing::info!(addr = %bound, "listening for {}", room.name());
            listeners.push((room, listener));
            Ok(Some(bound))
        };
        let addrs = Endpoints {
            metrics: bind(endpoints.metrics, Room::Metrics)?,
            ready: bind(endpoints.ready, Room::Ready)?,
            admin: bind(endpoints.admin, Room::Admin)?,
        };
        if let Some(addr) = addrs.admin
            && !addr.ip().to_canonical().is_loopback()
        {
            tracing::warn!(
                %addr,
                "--admin-addr is not on loopback: whoever reaches it sees the connections of this \
                 node and can change what is logged"
            );
        }
        Ok(Self { addrs, listeners })
    }

    /// The addresses really bound.
    pub fn addrs(&self) -> Endpoints {
        self.addrs
    }

    /// Serves until `shutdown`; answers on their way then are cut off.
    ///
    /// # Errors
    /// When the listeners cannot be handed to the runtime.
    pub async fn serve(
        self,
        state: AdminState,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), AdminError> {
        server::serve(self.listeners, Arc::new(state), shutdown)
            .await
            .map_err(AdminError::Start)
    }

    /// Serves on a thread and runtime of its own, until the handle is dropped.
    ///
    /// # Errors
    /// When there is no thread or runtime to be had.
    pub fn spawn_thread(self, state: AdminState) -> Result<AdminThread, AdminError> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(AdminError::Start)?;
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let addrs = self.addrs;
        let thread = thread::Builder::new()
            .name("underpass-admin".to_owned())
            .spawn(move || {
                if let Err(error) = runtime.block_on(self.serve(state, stopped)) {
                    tracing::error!(%error, "the endpoints are not served");
                }
            })
            .map_err(AdminError::Start)?;
        Ok(AdminThread {
            addrs,
            stop,
            thread,
        })
    }
}

/// The endpoints, served by a thread of their own until this is dropped.
#[derive(Debug)]
#[must_use = "the endpoints are served only as long as this is held"]
pub struct AdminThread {
    addrs: Endpoints,
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

impl AdminThread {
    /// The addresses really bound.
    pub fn addrs(&self) -> Endpoints {
        self.addrs
    }

    /// Whether the thread still serves; it ends by itself only if it panicked or could not start.
    pub fn is_serving(&self) -> bool {
        !self.thread.is_finished()
    }
}

impl Drop for AdminThread {
    fn drop(&mut self) {
        // Not joined: what `config_dump` waits for must not hold up the end of the process.
        self.stop.cancel();
    }
}

fn listen(addr: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let since = Instant::now();
    let listener = loop {
        match TcpListener::bind(addr) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && since.elapsed() < PATIENCE =>
            {
                thread::sleep(RETRY_INTERVAL);
            }
            bound => break bound?,
        }
    };
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

fn bind_hint(error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("the address is in use, choose another with {flag}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("this host has no such address, choose another with {flag}")
        }
        io::ErrorKind::PermissionDenied => format!(
            "not permitted; a port below 1024 needs CAP_NET_BIND_SERVICE, or choose another with \
             {flag}"
        ),
        _ => format!("cannot be listened on: {error}"),
    }
}

#[cfg(test)]
mod tests;
