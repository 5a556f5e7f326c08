//! The way out: to exactly the address that was checked.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::resolve::{Resolve, ResolveError};
use super::rules::{Forbidden, Permit, Rules};
use super::stream::Upstream;
use crate::name::{Host, Target};
use crate::sockets::{PlainSockets, SocketFactory};

/// A way to targets.
pub(super) trait Dial: Send + Sync {
    /// Connects to `target`, as far as `rules` and the `permit` that they gave let it.
    fn dial<'a>(&'a self, rules: &'a Rules, target: &'a Target, permit: Permit) -> Dialing<'a>;
}

/// The future of [`Dial::dial`].
pub(super) type Dialing<'a> =
    Pin<Box<dyn Future<Output = Result<Upstream, DialError>> + Send + 'a>>;

/// Straight to the target. Of the addresses that it has, those that may be reached are tried one
/// after the other; each gets an equal share of the time that is left.
pub(super) struct Direct {
    pub(super) resolver: Box<dyn Resolve>,
    /// For resolving and connecting together.
    pub(super) timeout: Duration,
}

impl Dial for Direct {
    fn dial<'a>(&'a self, rules: &'a Rules, target: &'a Target, permit: Permit) -> Dialing<'a> {
        Box::pin(self.connect(rules, target, permit))
    }
}

impl Direct {
    async fn connect(
        &self,
        rules: &Rules,
        target: &Target,
        permit: Permit,
    ) -> Result<Upstream, DialError> {
        let deadline = Instant::now() + self.timeout;
        let expired = || DialError::Timeout(self.timeout);
        let addresses = match &target.host {
            Host::Addr(addr) => vec![*addr],
            Host::Name(name) => {
                let resolving = self.resolver.resolve(name).0;
                let resolved = timeout_at(deadline, resolving).await;
                resolved.map_err(|_| expired())?.map_err(|error| {
                    // A name is covered by a rule about addresses only through an address it has.
                    if permit.by_host {
                        DialError::from(error)
                    } else {
                        Forbidden::NoRule.into()
                    }
                })?
            }
        };
        let allowed = allowed(rules, target, permit, addresses)?;
        let mut failure = expired();
        for (addr, left) in allowed.iter().zip((1..=allowed.len() as u32).rev()) {
            let now = Instant::now();
            let share = deadline.saturating_duration_since(now) / left;
            let sockets: &dyn SocketFactory = &PlainSockets;
            let connecting = sockets.connect(SocketAddr::new(*addr, target.port));
            failure = match timeout_at(now + share, connecting).await {
                Ok(Ok(stream)) => return Ok(Upstream(stream)),
                Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => expired(),
                Ok(Err(error)) => DialError::Connect(error),
                Err(_) => expired(),
            };
        }
        Err(failure)
    }
}

/// The addresses that may be reached; none is an error that says why.
fn allowed(
    rules: &Rules,
    target: &Target,
    permit: Permit,
    addresses: Vec<IpAddr>,
) -> Result<Vec<IpAddr>, DialError> {
    let mut forbidden = None;
    let mut allowed = Vec::new();
    for addr in addresses {
        let addr = addr.to_canonical();
        match rules.judge_address(permit, addr, target.port) {
            Ok(()) if allowed.len() < MAX_ADDRESSES => allowed.push(addr),
            Ok(()) => {}
            Err(reason) => forbidden = Some(reason),
        }
    }
    match forbidden {
        _ if !allowed.is_empty() => Ok(allowed),
        Some(reason) => Err(reason.into()),
        None if permit.by_host => Err(DialError::NoAddress),
        None => Err(Forbidden::NoRule.into()),
    }
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
    #[error("its name could not be resolved: {0}")]
    Resolve(#[from] ResolveError),
    #[error("no connection within {0:?}")]
    Timeout(Duration),
}

/// Addresses that are tried: a name may have any number of them.
const MAX_ADDRESSES: usize = 8;
