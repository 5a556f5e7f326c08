//! Keeps the programs informed of where the proxies are.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use crate::capture::Capture;
use crate::connection::Way;
use crate::name::Host;

/// Bounds on the time between two look-ups, whatever the records say.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);

/// For one look-up; a name server that does not answer must not hold up the start.
const DEADLINE: Duration = Duration::from_secs(5);

/// Resolves every proxy once and tells the programs; returns when to do it again. The last good
/// addresses of a name that cannot be resolved now stay.
pub(super) async fn refresh(way: &Way, capture: &Mutex<Capture>) -> Instant {
    let now = Instant::now();
    let mut again = now + LONGEST;
    let known = way.proxies.load_full();
    let mut addresses: HashSet<SocketAddr> = HashSet::new();
    let policy = way.policy.load_full();
    for proxy in policy.proxies().flat_map(|proxy| &proxy.endpoints) {
        let name = match &proxy.host {
            Host::Addr(ip) => {
                addresses.insert(SocketAddr::new(*ip, proxy.port));
                continue;
            }
            Host::Name(name) => name,
        };
        match timeout(DEADLINE, way.resolver.lookup(name)).await {
            Ok(Ok(found)) => {
                again = again.min(found.valid_until.into());
                addresses.extend(
                    found
                        .addrs
                        .iter()
                        .map(|ip| SocketAddr::new(*ip, proxy.port)),
                );
            }
            Ok(Err(error)) => {
                tracing::warn!(%proxy, %error, "cannot resolve the proxy");
                addresses.extend(known.iter().filter(|known| known.port() == proxy.port));
                again = now;
            }
            Err(_) => {
                tracing::warn!(%proxy, "no answer from the name servers about the proxy");
                addresses.extend(known.iter().filter(|known| known.port() == proxy.port));
                again = now;
            }
        }
    }
    if addresses != *known {
        way.proxies.store(Arc::new(addresses.clone()));
        if let Err(error) = capture.lock().rules().set_proxies(addresses) {
            tracing::error!(%error, "cannot tell the programs where the proxies are");
        }
    }
    again.clamp(now + SHORTEST, now + LONGEST)
}

/// Does it again and again, for ever, and at once when policy has `changed`.
pub(super) async fn keep_fresh(
    way: Arc<Way>,
    capture: Arc<Mutex<Capture>>,
    first: Instant,
    changed: Arc<Notify>,
) {
    let mut again = first;
    loop {
        // Whichever it is, there is a reason to look.
        let _ = timeout_at(again, changed.notified()).await;
        again = refresh(&way, &capture).await;
    }
}
