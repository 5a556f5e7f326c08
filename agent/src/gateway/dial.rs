//! The way out: to exactly the address that was checked.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Version};
use tokio::time::{Instant, timeout, timeout_at};

use super::access::{Record, Route};
use super::request::Wish;
use super::resolve::{Resolve, ResolveError};
use super::rules::{Forbidden, Permit, Rules};
use super::stream::Upstream;
use crate::name::{Host, Target};
use crate::policy::DenyReason;
use crate::sockets::{PlainSockets, SocketFactory};
use crate::tls::TlsError;
use crate::tunnel::TunnelError;

/// A way to targets.
pub(super) trait Dial: Send + Sync {
    /// Connects to what is asked for, as far as `rules` let it, and notes in `record` how.
    fn dial<'a>(
        &'a self,
        rules: &'a Rules,
        asked: Asked<'a>,
        record: &'a mut Record,
    ) -> Dialing<'a>;
}

/// The future of [`Dial::dial`].
pub(super) type Dialing<'a> =
    Pin<Box<dyn Future<Output = Result<Upstream, DialError>> + Send + 'a>>;

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) wish: Wish,
    pub(super) target: &'a Target,
    /// What the rules said of it.
    pub(super) permit: Permit,
    pub(super) version: Version,
    /// The fields of the request.
    pub(super) fields: &'a HeaderMap,
}

/// Straight to the target. Of the addresses that it has, those that may be reached are tried one
/// after the other; each gets an equal share of the time that is left.
pub(super) struct Direct {
    pub(super) resolver: Box<dyn Resolve>,
    /// For resolving and connecting together.
    pub(super) timeout: Duration,
}

impl Dial for Direct {
    fn dial<'a>(
        &'a self,
        rules: &'a Rules,
        asked: Asked<'a>,
        record: &'a mut Record,
    ) -> Dialing<'a> {
        record.goes(Route::Direct, None);
        Box::pin(async move {
            let deadline = Instant::now() + self.timeout;
            let addresses = self.resolve(asked, self.timeout).await?;
            let allowed = allowed(rules, asked, &addresses)?;
            self.connect(&allowed, asked.target.port, deadline).await
        })
    }
}

impl Direct {
    /// The addresses of the target, at least one.
    pub(super) async fn resolve(
        &self,
        asked: Asked<'_>,
        patience: Duration,
    ) -> Result<Vec<IpAddr>, DialError> {
        let name = match &asked.target.host {
            Host::Addr(addr) => return Ok(vec![addr.to_canonical()]),
            Host::Name(name) => name,
        };
        let found = match timeout(patience, self.resolver.resolve(name).0).await {
            Err(_) => Err(DialError::Unresolved(patience)),
            Ok(Err(error)) => Err(error.into()),
            Ok(Ok(addresses)) if addresses.is_empty() => Err(DialError::NoAddress),
            Ok(Ok(addresses)) => Ok(addresses.iter().map(IpAddr::to_canonical).collect()),
        };
        // A name is covered by a rule about addresses only through an address it has.
        found.map_err(|error| match error {
            DialError::Resolve(_) | DialError::NoAddress if !asked.permit.by_host => {
                Forbidden::NoRule.into()
            }
            error => error,
        })
    }

    /// Connects to the first of `addresses` that answers.
    pub(super) async fn connect(
        &self,
        addresses: &[IpAddr],
        port: u16,
        deadline: Instant,
    ) -> Result<Upstream, DialError> {
        let expired = || DialError::Timeout(self.timeout);
        let mut failure = expired();
        for (addr, left) in addresses.iter().zip((1..=addresses.len() as u32).rev()) {
            let now = Instant::now();
            let share = deadline.saturating_duration_since(now) / left;
            let sockets: &dyn SocketFactory = &PlainSockets;
            let connecting = sockets.connect(SocketAddr::new(*addr, port));
            failure = match timeout_at(now + share, connecting).await {
                Ok(Ok(stream)) => return Ok(stream.into()),
                Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => expired(),
                Ok(Err(error)) => DialError::Connect(error),
                Err(_) => expired(),
            };
        }
        Err(failure)
    }
}

/// The addresses that may be reached; none is an error that says why.
pub(super) fn allowed(
    rules: &Rules,
    asked: Asked<'_>,
    addresses: &[IpAddr],
) -> Result<Vec<IpAddr>, Forbidden> {
    let mut forbidden = Forbidden::NoRule;
    let mut allowed = Vec::new();
    for addr in addresses {
        match rules.judge_address(asked.permit, *addr, asked.target.port) {
            Ok(()) if allowed.len() < MAX_ADDRESSES => allowed.push(*addr),
            Ok(()) => {}
            Err(reason) => forbidden = reason,
        }
    }
    if allowed.is_empty() {
        return Err(forbidden);
    }
    Ok(allowed)
}

/// Why there is no connection to a target.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("it could not be connected to: {0}")]
    Connect(#[source] io::Error),
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    #[error("its name has no address")]
    NoAddress,
    #[error("{policy} of this gateway's policy denies it: {reason}")]
    Policy {
        policy: Arc<str>,
        reason: DenyReason,
    },
    #[error("its name could not be resolved: {0}")]
    Resolve(#[from] ResolveError),
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("no TLS with it inside the tunnel: {0}")]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    #[error("its name was not resolved within {0:?}")]
    Unresolved(Duration),
}

/// Addresses that are tried: a name may have any number of them.
const MAX_ADDRESSES: usize = 8;
