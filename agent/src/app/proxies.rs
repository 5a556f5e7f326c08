//! Keeps the programs informed of whom they must leave alone: the proxies, and what the node needs.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use crate::capture::Capture;
use crate::connection::{InForce, Way};
use crate::name::{Host, Target};
use crate::policy::Policy;

/// Bounds on the time between two look-ups, whatever the records say.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);

/// For one look-up, and for all those that a new policy waits for; a name server that does not
/// answer must not hold up the start, nor a policy.
const DEADLINE: Duration = Duration::from_secs(5);

/// Where the proxies are, as far as the agent and the programs are told.
pub(super) struct Proxies {
    way: Arc<Way>,
    capture: Arc<Mutex<Capture>>,
    /// What is left alone whatever policy says.
    never: Vec<Target>,
    /// Of a policy that is about to be in force; told besides those of the one that is.
    upcoming: Mutex<HashSet<SocketAddr>>,
    changed: Notify,
}

impl Proxies {
    pub(super) fn new(way: Arc<Way>, capture: Arc<Mutex<Capture>>, never: Vec<Target>) -> Self {
        Self {
            way,
            capture,
            never,
            upcoming: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Resolves every proxy once and tells the programs; returns when to do it again. The last good
    /// addresses of a name that cannot be resolved now stay.
    pub(super) async fn refresh(&self) -> Instant {
        let now = Instant::now();
        let mut again = now + LONGEST;
        let known = self.way.proxies.load_full();
        let mut addresses: HashSet<SocketAddr> = HashSet::new();
        let policy = self.way.policy.load_full();
        for (host, port) in self.endpoints(&policy) {
            let name = match host {
                Host::Addr(ip) => {
                    addresses.insert(SocketAddr::new(*ip, port));
                    continue;
                }
                Host::Name(name) => name,
            };
            let last_known = known.iter().filter(|known| known.port() == port);
            match timeout(DEADLINE, self.way.resolver.lookup(name)).await {
                Ok(Ok(found)) => {
                    again = again.min(found.valid_until.into());
                    let found = found.addrs.iter();
                    addresses.extend(found.map(|ip| SocketAddr::new(*ip, port)));
                }
                Ok(Err(error)) => {
                    tracing::warn!(%name, port, %error, "cannot resolve what is not to be captured");
                    addresses.extend(last_known);
                    again = now;
                }
                Err(_) => {
                    tracing::warn!(
                        %name,
                        port,
                        "no answer from the name servers about what is not to be captured"
                    );
                    addresses.extend(last_known);
                    again = now;
                }
            }
        }
        // Held, so that no other policy comes into force between the question and what follows.
        let upcoming = self.upcoming.lock();
        if Arc::ptr_eq(&policy, &self.way.policy.load_full()) {
            addresses.extend(&*upcoming);
            self.tell(addresses);
        }
        again.clamp(now + SHORTEST, now + LONGEST)
    }

    /// Does it again and again, for ever, and at once when there is another policy.
    pub(super) async fn keep_fresh(self: Arc<Self>, first: Instant) {
        let mut again = first;
        loop {
            // Whichever it is, there is a reason to look.
            let _ = timeout_at(again, self.changed.notified()).await;
            again = self.refresh().await;
        }
    }

    /// Tells where the proxies of a policy are that is about to be in force. Those of them that
    /// cannot be resolved now are told later.
    pub(super) async fn prepare(&self, policy: &Policy) {
        let current = self.way.policy.load_full();
        let mut upcoming = HashSet::new();
        let mut names = Vec::new();
        for (host, port) in self.endpoints(policy) {
            match host {
                Host::Addr(ip) => {
                    upcoming.insert(SocketAddr::new(*ip, port));
                }
                // What the policy in force has is kept fresh already.
                Host::Name(name) => {
                    let mut known = self.endpoints(&current);
                    if !known.any(|known| known == (host, port)) {
                        names.push((name, port));
                    }
                }
            }
        }
        let deadline = Instant::now() + DEADLINE;
        for (name, port) in names {
            if let Ok(Ok(found)) = timeout_at(deadline, self.way.resolver.lookup(name)).await {
                upcoming.extend(found.addrs.iter().map(|ip| SocketAddr::new(*ip, port)));
            }
        }
        let mut told = self.upcoming.lock();
        *told = upcoming;
        let known = self.way.proxies.load();
        self.tell(known.union(&told).copied().collect());
    }

    /// Has a policy be in force, which may have been [`prepare`](Self::prepare)d. What only the last
    /// one needed is forgotten soon.
    pub(super) fn put_into_force(&self, policy: InForce) {
        self.way.policy.store(Arc::new(policy));
        self.abandon();
    }

    /// What was prepared does not come into force.
    pub(super) fn abandon(&self) {
        self.upcoming.lock().clear();
        self.changed.notify_one();
    }

    /// Every place where a proxy listens, or what else is left alone.
    fn endpoints<'a>(&'a self, policy: &'a Policy) -> impl Iterator<Item = (&'a Host, u16)> {
        let proxies = policy.proxies().flat_map(|proxy| &proxy.endpoints);
        let proxies = proxies.map(|endpoint| (&endpoint.host, endpoint.port));
        let never = self.never.iter().map(|never| (&never.host, never.port));
        proxies.chain(never)
    }

    fn tell(&self, addresses: HashSet<SocketAddr>) {
        if addresses == **self.way.proxies.load() {
            return;
        }
        self.way.proxies.store(Arc::new(addresses.clone()));
        if let Err(error) = self.capture.lock().rules().set_proxies(addresses) {
            tracing::error!(%error, "cannot tell the programs where the proxies are");
        }
    }
}
