//! A small forward proxy: HTTP/1.1 CONNECT and nothing else.
//!
//! It is the other end of a tunnel where no proxy is at hand. Clients reach what an allow-list
//! names; the gateway's own machine, link and cloud metadata only where a rule names the address.
//! Its sockets are not marked as the agent's own: it belongs where nothing is captured.

mod access;
mod answer;
mod connection;
mod credentials;
mod dial;
mod rules;

use std::error::Error;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::dns::Resolver;
use crate::name::HostName;
use crate::relay::Timeouts;
use connection::Stop;
use rules::Rules;

pub use credentials::{CredentialError, CredentialFile};
pub use rules::{AllowRule, InvalidRule};

/// What a gateway is to do.
#[derive(Debug)]
pub struct GatewayConfig {
    /// Where to accept clients; port 0 takes a free port.
    pub listen: Vec<SocketAddr>,
    /// Where clients may go; empty stands for [`AllowRule::https_everywhere`].
    pub allow: Vec<AllowRule>,
    /// Who may use it; `None` is everybody.
    pub credentials: Option<CredentialFile>,
    /// Clients served at a time; those above are answered 503.
    pub max_connections: usize,
    /// How long a client may take for the head of a request, waiting for it included.
    pub head_timeout: Duration,
    /// How long resolving and connecting may take together.
    pub connect_timeout: Duration,
    /// How long an established tunnel may be silent.
    pub relay: Timeouts,
    /// How long tunnels may go on after the gateway was told to stop; then they are reset.
    pub drain: Duration,
}

impl Default for GatewayConfig {
    /// No address to listen on, HTTPS to everywhere for everybody.
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            allow: Vec::new(),
            credentials: None,
            max_connections: 4096,
            head_timeout: Duration::from_secs(15),
            // Below what clients give a proxy, so that they hear 504 and not their own timer.
            connect_timeout: Duration::from_secs(10),
            relay: Timeouts::default(),
            drain: Duration::from_secs(10),
        }
    }
}

/// Finds the addresses of a name.
pub trait Resolve: Send + Sync {
    /// The addresses of `name`, best first. An error says why in words for the client.
    fn resolve<'a>(&'a self, name: &'a HostName) -> Resolving<'a>;
}

impl Resolve for Resolver {
    fn resolve<'a>(&'a self, name: &'a HostName) -> Resolving<'a> {
        Resolving::new(async move { self.lookup(name).await.map(|found| found.addrs) })
    }
}

/// The future of [`Resolve::resolve`].
pub struct Resolving<'a>(
    Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, ResolveError>> + Send + 'a>>,
);

impl<'a> Resolving<'a> {
    /// Wraps a future that finds the addresses.
    pub fn new<E: Error + Send + Sync + 'static>(
        future: impl Future<Output = Result<Vec<IpAddr>, E>> + Send + 'a,
    ) -> Self {
        Self(Box::pin(async {
            future.await.map_err(|error| ResolveError(Box::new(error)))
        }))
    }
}

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct ResolveError(Box<dyn Error + Send + Sync>);

/// A forward proxy whose listeners are bound.
#[derive(Debug)]
pub struct Gateway {
    listeners: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    drain: Duration,
}

impl Gateway {
    /// Binds the listeners. Connections wait in their queues until [`Gateway::serve`].
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub async fn bind(
        config: GatewayConfig,
        resolver: impl Resolve + 'static,
    ) -> Result<Self, GatewayError> {
        let mut listeners = Vec::with_capacity(config.listen.len());
        let mut addresses = Vec::with_capacity(config.listen.len());
        for address in config.listen {
            let failed = |source| GatewayError::listen(address, source);
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            addresses.push(listener.local_addr().map_err(failed)?);
            listeners.push(listener);
        }
        if listeners.is_empty() {
            return Err(GatewayError::NoListener);
        }
        let slots = config.max_connections.min(Semaphore::MAX_PERMITS);
        Ok(Self {
            listeners,
            addresses,
            shared: Arc::new(Shared {
                rules: Rules::new(config.allow),
                credentials: config.credentials,
                resolver: Box::new(resolver),
                slots: Arc::new(Semaphore::new(slots)),
                refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
                head_timeout: config.head_timeout,
                connect_timeout: config.connect_timeout,
                relay: config.relay,
            }),
            drain: config.drain,
        })
    }

    /// The addresses that are listened on, with their real ports, in the order of
    /// [`GatewayConfig::listen`].
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Serves clients until `shutdown` is ready, then accepts no more and returns when the last
    /// tunnel has ended, at the latest after [`GatewayConfig::drain`].
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let stop = Stop::default();
        let mut accepting = JoinSet::new();
        for listener in self.listeners {
            let shared = Arc::clone(&self.shared);
            accepting.spawn(connection::accept(listener, shared, stop.clone()));
        }
        shutdown.await;
        stop.gracefully();
        let drained = async { while accepting.join_next().await.is_some() {} };
        if timeout(self.drain, drained).await.is_err() {
            stop.now();
            while accepting.join_next().await.is_some() {}
        }
    }
}

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Something else has the address.
    #[error(
        "cannot listen on {0}: the address is in use; stop the program that has it \
         (`ss -ltnp` shows it) or listen on another"
    )]
    AddressInUse(SocketAddr),
    /// No interface has the address.
    #[error("cannot listen on {0}: no interface of this machine has the address; see `ip address`")]
    AddressNotHere(SocketAddr),
    /// Listening fails for another reason.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// There is no address to listen on.
    #[error("no address to listen on; name one, such as 127.0.0.1:3128")]
    NoListener,
    /// The process may not take the address.
    #[error(
        "cannot listen on {0}: permission denied; a port below 1024 needs root or \
         CAP_NET_BIND_SERVICE, so grant it or choose a higher port"
    )]
    NotPermitted(SocketAddr),
}

impl GatewayError {
    fn listen(address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::AddressInUse(address),
            io::ErrorKind::AddrNotAvailable => Self::AddressNotHere(address),
            io::ErrorKind::PermissionDenied => Self::NotPermitted(address),
            _ => Self::Listen { address, source },
        }
    }
}

/// What all connections of a gateway need.
struct Shared {
    rules: Rules,
    credentials: Option<CredentialFile>,
    resolver: Box<dyn Resolve>,
    slots: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    head_timeout: Duration,
    connect_timeout: Duration,
    relay: Timeouts,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("rules", &self.rules)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

/// Clients above the limit that are answered 503 at the same time; more are reset.
const MAX_REFUSALS: usize = 64;

#[cfg(test)]
mod tests;
