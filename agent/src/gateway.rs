//! A forward proxy of our own: the other end of a tunnel.
//!
//! It speaks HTTP/1.1 and HTTP/2, in the clear and over TLS, opens tunnels (CONNECT, and POST where
//! that is wanted) and forwards plain HTTP. Clients reach what an allow-list names and no
//! deny-list does; the gateway's own machine, link, network and cloud only where a rule names the
//! address. A policy may lead through further proxies ([`Chain`]). Its sockets are not marked as the agent's own: it belongs where nothing is captured.

mod accept;
mod access;
mod chain;
mod control;
mod credentials;
mod dial;
mod error;
mod followed;
mod http1;
mod http2;
mod metrics;
mod refusal;
mod request;
mod resolve;
mod rules;
mod stream;
mod tls;
mod tunnel;
mod via;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::relay::Timeouts;
use chain::Chained;
use dial::{Dial, Direct};
use followed::Refresh;
use rules::Rules;
use via::Pseudonym;

pub use chain::{Chain, follow_policy};
pub use control::Control;
pub use credentials::{CredentialError, CredentialFile, Scheme};
pub use error::GatewayError;
pub use followed::Followed;
pub use metrics::GatewayMetrics;
pub use resolve::{Resolve, Resolving};
pub use rules::{AllowRule, DenyRule, InvalidRule};
pub use tls::{TlsError, TlsFiles, TlsSettings};

/// What a gateway is to do.
#[derive(Debug)]
pub struct GatewayConfig {
    /// Where to accept clients; port 0 takes a free port.
    pub listen: Vec<SocketAddr>,
    /// Where clients may go; empty stands for [`AllowRule::https_everywhere`].
    pub allow: Vec<AllowRule>,
    /// Where they may not go, whatever allows it.
    pub deny: Vec<DenyRule>,
    /// Who may use it, each file for another scheme; empty is everybody.
    pub users: Vec<Followed<CredentialFile>>,
    /// What is reached through further proxies; `None` is nothing.
    pub chain: Option<Chain>,
    /// TLS with clients, on all listeners; `None` is in the clear.
    pub tls: Option<Followed<TlsSettings>>,
    /// Whether POST over HTTP/2 asks for a tunnel, as CONNECT does, instead of being forwarded.
    pub post_tunnels: bool,
    /// Clients served at a time, each HTTP/2 stream counting as one more; those above are answered
    /// 503.
    pub max_connections: usize,
    /// Streams of one HTTP/2 connection at a time (SETTINGS_MAX_CONCURRENT_STREAMS).
    pub max_streams: u32,
    /// How long a client may take for TLS and, again, for the head of a request, waiting for it
    /// included.
    pub head_timeout: Duration,
    /// How long resolving and connecting may take together.
    pub connect_timeout: Duration,
    /// How long neither side of a forwarded request may say anything.
    pub exchange_timeout: Duration,
    /// How long an established tunnel may be silent.
    pub relay: Timeouts,
    /// How long tunnels may go on after the gateway was told to drain; then they are reset.
    pub drain: Duration,
}

impl Default for GatewayConfig {
    /// No address to listen on, HTTPS to everywhere for everybody.
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            users: Vec::new(),
            chain: None,
            tls: None,
            post_tunnels: false,
            max_connections: 4096,
            max_streams: 256,
            head_timeout: Duration::from_secs(15),
            // Below what clients give a proxy, so that they hear 504 and not their own timer.
            connect_timeout: Duration::from_secs(10),
            exchange_timeout: Duration::from_secs(5 * 60),
            relay: Timeouts::default(),
            drain: Duration::from_secs(10),
        }
    }
}

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
        metrics: GatewayMetrics,
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
        let direct = Direct {
            resolver: Box::new(resolver),
            timeout: config.connect_timeout,
        };
        let name = Pseudonym::random();
        let chain = config.chain.map(Arc::new);
        if let Some(chain) = &chain {
            chain.serve_proxies();
        }
        let way: Box<dyn Dial> = match &chain {
            None => Box::new(direct),
            Some(chain) => Box::new(Chained {
                direct,
                chain: Arc::clone(chain),
                name: name.clone(),
            }),
        };
        Ok(Self {
            listeners,
            addresses,
            shared: Arc::new(Shared {
                rules: Rules::new(config.allow, config.deny),
                users: config.users,
                tls: config.tls,
                chain,
                way,
                name,
                metrics: Arc::new(metrics),
                slots: Arc::new(Semaphore::new(slots)),
                refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
                post_tunnels: config.post_tunnels,
                max_streams: config.max_streams,
                head_timeout: config.head_timeout,
                exchange_timeout: config.exchange_timeout,
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

    /// Serves clients until `control` says to drain, then accepts no more and returns when the
    /// last tunnel has ended, at the latest after [`GatewayConfig::drain`].
    pub async fn serve(self, control: Control) {
        let following = follow(Arc::clone(&self.shared), control.clone());
        let _following = AbortOnDropHandle::new(tokio::spawn(following));
        let mut accepting = JoinSet::new();
        for listener in self.listeners {
            let shared = Arc::clone(&self.shared);
            accepting.spawn(accept::accept(listener, shared, control.clone()));
        }
        control.drained().await;
        let drained = async { while accepting.join_next().await.is_some() {} };
        if timeout(self.drain, drained).await.is_err() {
            control.stop();
            while accepting.join_next().await.is_some() {}
        }
    }
}

/// Keeps up with the files of the configuration.
async fn follow(shared: Arc<Shared>, control: Control) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let forced = tokio::select! {
            _ = look.tick() => false,
            () = control.reloaded() => true,
        };
        let shared = Arc::clone(&shared);
        // A file may be on a slow disk or network.
        let looked = spawn_blocking(move || shared.refresh(forced)).await;
        if let Err(error) = looked {
            tracing::error!(%error, "files were not read again");
        }
    }
}

/// What all connections of a gateway need.
struct Shared {
    rules: Rules,
    users: Vec<Followed<CredentialFile>>,
    tls: Option<Followed<TlsSettings>>,
    chain: Option<Arc<Chain>>,
    way: Box<dyn Dial>,
    /// Of this gateway, for requests that come back.
    name: Pseudonym,
    metrics: Arc<GatewayMetrics>,
    slots: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    post_tunnels: bool,
    max_streams: u32,
    head_timeout: Duration,
    exchange_timeout: Duration,
    relay: Timeouts,
}

impl Shared {
    fn refresh(&self, forced: bool) {
        let users = self.users.iter().map(|users| users as &dyn Refresh);
        let tls = self.tls.iter().map(|tls| tls as &dyn Refresh);
        let chain = self.chain.iter().map(|chain| &**chain as &dyn Refresh);
        for files in users.chain(tls).chain(chain) {
            if let Some(result) = files.refresh(forced) {
                self.metrics.reloaded(files.what(), result);
            }
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("rules", &self.rules)
            .field("users", &self.users)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// Clients above the limit that are answered 503 at the same time; more are reset.
const MAX_REFUSALS: usize = 64;

/// The longest head of a request, and the most that is read ahead of a tunnel.
const MAX_HEAD: usize = 16 * 1024;

/// How often the files of the configuration are looked at.
const LOOK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
