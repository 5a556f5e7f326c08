//! Where an endpoint is: the addresses of its name, and which of them answer.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use crate::dns::{DnsError, Resolver};
use crate::name::{Host, HostName};
use crate::policy::Endpoint;
use crate::tunnel::Cause;
use crate::tunnel::timings::{Took, timed};

/// How long a tunnel waits for news of a name whose last addresses are known. Name servers that
/// are silent cost no more than this, once in [`RETRY`].
const NEWS: Duration = Duration::from_millis(250);

/// Until a name is asked for again that could not be resolved.
const RETRY: Duration = Duration::from_secs(5);

/// How long an address that failed comes after those that did not, at first and at most.
const FAILING: Duration = Duration::from_secs(5);
const FAILING_LONGEST: Duration = Duration::from_secs(300);

/// The addresses of one endpoint.
#[derive(Debug)]
pub(super) struct Addresses {
    host: Host,
    port: u16,
    known: Mutex<Known>,
    states: Mutex<HashMap<SocketAddr, AddressState>>,
}

/// What is known of a name.
#[derive(Debug)]
struct Known {
    addrs: Vec<IpAddr>,
    until: Instant,
    is_asked: bool,
    /// The last question came to nothing.
    is_stale: bool,
}

#[derive(Debug, Default)]
struct AddressState {
    connections: usize,
    failures: u32,
    failing_until: Option<Instant>,
}

impl Addresses {
    pub(super) fn new(endpoint: &Endpoint) -> Self {
        let addrs = match endpoint.host {
            Host::Addr(addr) => vec![addr],
            Host::Name(_) => Vec::new(),
        };
        Self {
            host: endpoint.host.clone(),
            port: endpoint.port,
            known: Mutex::new(Known {
                addrs,
                until: Instant::now(),
                is_asked: false,
                is_stale: false,
            }),
            states: Mutex::default(),
        }
    }

    /// How many addresses there are, as far as is known.
    pub(super) fn count(&self) -> usize {
        self.known.lock().addrs.len()
    }

    /// Every address, those first that are likely to answer: of those that have not failed lately
    /// the one with the fewest connections, and among equals as the name servers have them. The
    /// last good ones go on while the name cannot be resolved.
    pub(super) async fn get(
        self: &Arc<Self>,
        resolver: &Resolver,
        deadline: Instant,
        took: &mut Option<Took>,
    ) -> Result<Vec<SocketAddr>, Cause> {
        if let Host::Name(name) = &self.host {
            self.refresh(name, resolver, deadline, took).await?;
        }
        let addrs = self.known.lock().addrs.clone();
        Ok(self.ordered(addrs, Instant::now()))
    }

    async fn refresh(
        self: &Arc<Self>,
        name: &HostName,
        resolver: &Resolver,
        deadline: Instant,
        took: &mut Option<Took>,
    ) -> Result<(), Cause> {
        {
            let mut known = self.known.lock();
            if !known.addrs.is_empty() {
                if Instant::now() < known.until || known.is_asked {
                    return Ok(());
                }
                known.is_asked = true;
            }
        }
        if self.count() == 0 {
            let asking = timeout_at(deadline, resolver.lookup(name));
            let found = timed(took, asking).await.map_err(|_| Cause::DnsTimeout)?;
            let found = found?;
            self.learn(&found.addrs, found.valid_until.into());
            return Ok(());
        }
        // It goes on when nobody waits for it any more.
        let (this, resolver, name) = (Arc::clone(self), resolver.clone(), name.clone());
        let asking = tokio::spawn(async move {
            match resolver.lookup(&name).await {
                Ok(found) => this.learn(&found.addrs, found.valid_until.into()),
                Err(error) => this.keep(&name, &error),
            }
        });
        // Whatever comes of it, there are addresses.
        let _ = timed(took, timeout(NEWS, asking)).await;
        Ok(())
    }

    /// None of the addresses answers: whoever wants them next asks for them anew.
    pub(super) fn doubt(&self) {
        self.known.lock().until = Instant::now();
    }

    fn learn(&self, addrs: &[IpAddr], until: Instant) {
        let mut known = self.known.lock();
        if known.is_stale {
            tracing::info!(proxy = %self.host, ?addrs, "the proxy's name can be resolved again");
        }
        known.addrs = addrs.to_vec();
        known.until = until;
        known.is_asked = false;
        known.is_stale = false;
        let gone = |addr: &SocketAddr| !addrs.contains(&addr.ip());
        let mut states = self.states.lock();
        states.retain(|addr, state| state.connections > 0 || !gone(addr));
    }

    fn keep(&self, name: &HostName, error: &DnsError) {
        let mut known = self.known.lock();
        if !known.is_stale {
            let addrs = &known.addrs;
            tracing::warn!(%name, ?addrs, %error, "going on with the proxy's last addresses");
        }
        known.until = Instant::now() + RETRY;
        known.is_asked = false;
        known.is_stale = true;
    }

    fn ordered(&self, addrs: Vec<IpAddr>, now: Instant) -> Vec<SocketAddr> {
        let port = self.port;
        let mut addrs: Vec<_> = addrs
            .into_iter()
            .map(|addr| SocketAddr::new(addr, port))
            .collect();
        let states = self.states.lock();
        addrs.sort_by_key(|addr| {
            states.get(addr).map_or((None, 0), |state| {
                let failing = state.failing_until.filter(|until| now < *until);
                (failing, state.connections)
            })
        });
        addrs
    }

    /// `winner`, of `order`, was connected to. Whichever had a head start and lost is as bad as
    /// one that fails.
    pub(super) fn won(&self, order: &[SocketAddr], winner: SocketAddr) {
        for addr in order.iter().take_while(|addr| **addr != winner) {
            self.failed(*addr);
        }
    }

    pub(super) fn failed(&self, addr: SocketAddr) {
        let mut states = self.states.lock();
        let state = states.entry(addr).or_default();
        let time = FAILING * 2_u32.pow(state.failures.min(10));
        state.failures = state.failures.saturating_add(1);
        state.failing_until = Some(Instant::now() + time.min(FAILING_LONGEST));
    }

    pub(super) fn worked(&self, addr: SocketAddr) {
        if let Some(state) = self.states.lock().get_mut(&addr) {
            state.failures = 0;
            state.failing_until = None;
        }
    }

    /// There is a connection more.
    pub(super) fn opened(&self, addr: SocketAddr) {
        self.states.lock().entry(addr).or_default().connections += 1;
    }

    /// There is a connection less.
    pub(super) fn closed(&self, addr: SocketAddr) {
        let mut states = self.states.lock();
        if let Some(state) = states.get_mut(&addr) {
            state.connections = state.connections.saturating_sub(1);
            if state.connections == 0 && state.failures == 0 {
                states.remove(&addr);
            }
        }
    }
}
