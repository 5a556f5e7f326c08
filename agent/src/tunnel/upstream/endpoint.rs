//! One endpoint of a proxy, as long as policy has it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::addresses::Addresses;
use super::warm::Warm;
use crate::policy;
use crate::tunnel::observer::{Observer, Place};

/// How long an endpoint is spoken to by HTTP/1.1 at once that has chosen it before.
const HTTP1_FOR: Duration = Duration::from_secs(600);

/// An endpoint and what is known of it.
#[derive(Debug)]
pub(in crate::tunnel) struct Endpoint {
    pub(in crate::tunnel) place: Place,
    pub(super) weight: u16,
    pub(super) addresses: Arc<Addresses>,
    pub(super) warm: Warm,
    pub(super) observer: Arc<dyn Observer>,
    tunnels: AtomicUsize,
    /// Until when it counts as one that does not speak HTTP/2.
    http1_until: Mutex<Option<Instant>>,
}

impl Endpoint {
    pub(super) fn new(
        proxy: &Arc<str>,
        endpoint: &policy::Endpoint,
        warm: bool,
        observer: &Arc<dyn Observer>,
    ) -> Self {
        let place = Place {
            proxy: Arc::clone(proxy),
            endpoint: endpoint.to_string().into(),
        };
        observer.appeared(&place);
        observer.healthy(&place, true);
        Self {
            place,
            weight: endpoint.weight,
            addresses: Arc::new(Addresses::new(endpoint)),
            warm: Warm::new(warm),
            observer: Arc::clone(observer),
            tunnels: AtomicUsize::new(0),
            http1_until: Mutex::default(),
        }
    }

    /// Tunnels that stand or are being opened.
    pub(super) fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::Relaxed)
    }

    /// Whether it has lately chosen HTTP/1.1 where HTTP/2 was offered.
    pub(super) fn speaks_http1(&self) -> bool {
        let until = *self.http1_until.lock();
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Takes note that it chose HTTP/1.1, or HTTP/2 after all.
    pub(super) fn chose_http1(&self, chose: bool) {
        let mut until = self.http1_until.lock();
        if chose && until.is_none() {
            tracing::warn!(
                proxy = %self.place.proxy,
                endpoint = %self.place.endpoint,
                "the proxy should speak HTTP/2 and does not: tunnels are asked for by HTTP/1.1"
            );
        }
        *until = chose.then(|| Instant::now() + HTTP1_FOR);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.observer.gone(&self.place);
    }
}

/// Counts a TCP connection to an endpoint.
#[derive(Debug)]
pub(in crate::tunnel) struct Connection {
    endpoint: Arc<Endpoint>,
    addr: SocketAddr,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Connection {
    pub(super) fn new(
        endpoint: &Arc<Endpoint>,
        addr: SocketAddr,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        endpoint.addresses.opened(addr);
        endpoint.observer.connected(&endpoint.place);
        Self {
            endpoint: Arc::clone(endpoint),
            addr,
            _permit: permit,
        }
    }

    /// The address that was connected to.
    pub(in crate::tunnel) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.endpoint.addresses.closed(self.addr);
        self.endpoint.observer.disconnected(&self.endpoint.place);
    }
}

/// Counts a tunnel of an endpoint's, from the try to open it to its end.
#[derive(Debug)]
pub(in crate::tunnel) struct Active(Arc<Endpoint>);

impl Active {
    pub(super) fn new(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.tunnels.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(endpoint))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.tunnels.fetch_sub(1, Ordering::Relaxed);
    }
}
