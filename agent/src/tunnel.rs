//! Tunnels through a forward proxy.
//!
//! [`Tunneler::open`] chooses an endpoint of the proxy, connects to it, by TLS if it is configured
//! so, and asks it for a stream to the target; when that fails and another endpoint may do better,
//! it is tried there. [`Tunneler::connect`] stops at the connection,
//! for requests that the proxy gets as they are. [`connect`] is the exchange of HTTP/1.1 on any stream, [`answer`] its parser
//! alone; [`http2`] has tunnels that share connections. [`originate`] adds TLS with the target,
//! inside the tunnel.

pub mod answer;
pub mod connect;
mod dial;
mod error;
mod forward;
pub mod http2;
mod observer;
mod stream;
#[cfg(test)]
mod tests;
mod timings;
mod upstream;
mod walk;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::dns::Resolver;
use crate::name::Target;
use crate::policy::{DialFrom, Proxy};
use crate::sockets::{SocketFactory, Vantage};
use crate::trace::Span;
use upstream::Upstream;
use walk::{Try, Walk};

pub use dial::DialError;
pub(crate) use dial::HEAD_START;
pub use error::{Cause, Side, TunnelError};
pub use forward::{Line, Trial};
pub use observer::{NoObserver, Observer, Place, Spoken};
pub use stream::{Early, Stream, originate};
pub use timings::{Timings, Took};
pub use upstream::NotMade;

/// Limits of opening a tunnel.
#[derive(Clone, Copy, Debug)]
pub struct TunnelConfig {
    /// From the first question about the proxy's name to the head of its answer. Default: 15 s.
    pub deadline: Duration,
}

impl Default for TunnelConfig {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(15),
        }
    }
}

/// Opens tunnels. Clones are the same.
#[derive(Clone, Debug)]
pub struct Tunneler {
    inner: Arc<Inner>,
    /// Where workloads are for whom it opens them; `None`: where the agent is.
    from: Option<Arc<Vantage>>,
}

#[derive(Debug)]
struct Inner {
    sockets: Arc<dyn SocketFactory>,
    resolver: Resolver,
    config: TunnelConfig,
    observer: Arc<dyn Observer>,
    upstreams: Mutex<Upstreams>,
}

/// What is known of the proxies that policy has. There are few.
#[derive(Debug, Default)]
struct Upstreams {
    /// Seen from the agent's own network namespace: all.
    own: Vec<Arc<Upstream>>,
    /// Seen from another one: those that were wanted there. What a connection leads to, which
    /// endpoints can be reached and where names are ends at its borders, so it shares nothing.
    elsewhere: HashMap<u64, Vec<Arc<Upstream>>>,
}

impl Tunneler {
    /// Opens tunnels on sockets of `sockets` to proxies that `resolver` finds, and tells
    /// `observer` of them.
    pub fn new(
        sockets: Arc<dyn SocketFactory>,
        resolver: Resolver,
        config: TunnelConfig,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let inner = Inner {
            sockets,
            resolver,
            config,
            observer,
            upstreams: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
            from: None,
        }
    }

    /// The same for workloads that are there: a proxy for which policy says so is connected to from
    /// their network namespace.
    #[must_use]
    pub fn from(&self, vantage: Option<&Arc<Vantage>>) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            from: vantage.cloned(),
        }
    }

    /// Nobody lives there any more. What was known is forgotten, and connections that are shared or
    /// kept end with the last tunnel on them.
    pub fn leave(&self, vantage: &Vantage) {
        let mut upstreams = self.inner.upstreams.lock();
        vantage.leave();
        upstreams.elsewhere.remove(&vantage.id());
    }

    /// Serves `proxies` from now on. What is known of one that is among them, or that differs from
    /// one in credentials or headers alone, is kept, its connections with it; that of any other is
    /// forgotten, once its last connection has ended. Called within a runtime, which checks those
    /// that policy wants checked.
    pub fn serve<'a>(&self, proxies: impl IntoIterator<Item = &'a Arc<Proxy>>) {
        let mut upstreams = self.inner.upstreams.lock();
        let Upstreams { own, elsewhere } = &mut *upstreams;
        let mut kept: Vec<Arc<Upstream>> = Vec::new();
        for proxy in proxies {
            if kept.iter().any(|upstream| upstream.serves(proxy)) {
                continue;
            }
            let known = own.iter().find(|upstream| upstream.serves(proxy));
            let observer = &self.inner.observer;
            let sockets = &self.inner.sockets;
            let upstream =
                known.map_or_else(|| self.upstream_for(proxy, sockets, observer), Arc::clone);
            upstream.renew(proxy);
            kept.push(upstream);
        }
        *own = kept;
        elsewhere.retain(|_, wanted| {
            wanted.retain(|upstream| own.iter().any(|kept| kept.serves(upstream.proxy())));
            !wanted.is_empty()
        });
    }

    fn upstream_for(
        &self,
        proxy: &Arc<Proxy>,
        sockets: &Arc<dyn SocketFactory>,
        observer: &Arc<dyn Observer>,
    ) -> Arc<Upstream> {
        let resolver = &self.inner.resolver;
        Arc::new(Upstream::new(proxy, sockets, resolver, observer))
    }

    /// From where connections to `proxy` are made, if not from where the agent is.
    fn vantage_for(&self, proxy: &Proxy) -> Option<&Arc<Vantage>> {
        let from = self.from.as_ref();
        from.filter(|_| proxy.settings.dial_from == DialFrom::Workload)
    }

    /// What is known of `proxy`. Of one that has just left policy nothing is, nor is it kept.
    fn upstream(&self, proxy: &Arc<Proxy>) -> Arc<Upstream> {
        let vantage = self.vantage_for(proxy);
        let sockets = vantage.map_or(&self.inner.sockets, |vantage| vantage.sockets());
        let mut upstreams = self.inner.upstreams.lock();
        let Upstreams { own, elsewhere } = &mut *upstreams;
        let in_policy = own.iter().find(|known| known.serves(proxy)).cloned();
        match (in_policy, vantage) {
            (Some(known), None) => known,
            (Some(_), Some(vantage)) if vantage.is_lived_in() => {
                let wanted = elsewhere.entry(vantage.id()).or_default();
                if let Some(known) = wanted.iter().find(|known| known.serves(proxy)) {
                    return Arc::clone(known);
                }
                let made = self.upstream_for(proxy, sockets, &self.inner.observer);
                wanted.push(Arc::clone(&made));
                made
            }
            _ => {
                let nobody: Arc<dyn Observer> = Arc::new(NoObserver);
                self.upstream_for(proxy, sockets, &nobody)
            }
        }
    }

    /// Whether it is worth trying `proxy` now, as far as is known: some endpoint of it has not kept
    /// failing, or is due to be tried again.
    pub fn is_available(&self, proxy: &Arc<Proxy>) -> bool {
        let upstreams = self.inner.upstreams.lock();
        let known = match self.vantage_for(proxy) {
            None => Some(&upstreams.own),
            Some(vantage) => upstreams.elsewhere.get(&vantage.id()),
        };
        let mut known = known.into_iter().flatten();
        let known = known.find(|known| known.serves(proxy));
        known.is_none_or(|upstream| upstream.is_available())
    }

    /// When a tunnel that is wanted now has to be there.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.inner.config.deadline
    }

    /// Opens a tunnel through `request.proxy`, at whichever of its endpoints can.
    ///
    /// Nothing of the workload is sent before the proxy has agreed, so after an error it may be
    /// tried elsewhere.
    ///
    /// # Errors
    /// Whatever keeps the tunnel from being there in time; see [`Cause`]. It is the last that was
    /// met; every connection of its own is closed then.
    pub async fn open(&self, request: &Request<'_>, time: Time) -> Result<Tunnel, TunnelError> {
        let mut walk = self.walk(request, time);
        while let Some(mut step) = walk.next() {
            let Try {
                turn,
                deadline,
                attempt,
            } = &mut step;
            // On the heap: all ways to a tunnel together are large, and soon behind it.
            let opening = Box::pin(turn.open(request, *deadline, attempt)).await;
            walk.took(attempt, opening.as_ref().err());
            match opening {
                Ok((stream, opened)) => {
                    let Try { turn, attempt, .. } = step;
                    turn.worked(attempt.address);
                    return Ok(Tunnel {
                        stream,
                        early: opened.early,
                        code: opened.code,
                        address: attempt.address,
                        endpoint: attempt.endpoint,
                        spoken: attempt.spoken,
                        timings: attempt.timings,
                    });
                }
                Err(cause) => walk.failed(step, cause),
            }
        }
        Err(walk.into_error())
    }

    /// Connects to `request.proxy`, at whichever of its endpoints can, for requests in absolute
    /// form. Nothing has been sent on the connection.
    ///
    /// # Errors
    /// As [`open`](Self::open), as far as it comes.
    pub async fn connect(&self, request: &Request<'_>, time: Time) -> Result<Line, TunnelError> {
        let mut walk = self.walk(request, time);
        while let Some(mut step) = walk.next() {
            let Try {
                turn,
                deadline,
                attempt,
            } = &mut step;
            let connecting = Box::pin(turn.connect(*deadline, attempt)).await;
            walk.took(attempt, connecting.as_ref().err());
            match connecting {
                Ok(stream) => {
                    let Try { turn, attempt, .. } = step;
                    return Ok(Line {
                        stream,
                        address: attempt.address,
                        endpoint: attempt.endpoint,
                        trial: Trial {
                            turn,
                            address: attempt.address,
                            observer: Arc::clone(&self.inner.observer),
                        },
                    });
                }
                Err(cause) => walk.failed(step, cause),
            }
        }
        Err(walk.into_error())
    }

    fn walk<'a>(&'a self, request: &'a Request<'a>, time: Time) -> Walk<'a> {
        let upstream = self.upstream(request.proxy);
        Walk::new(request, time, upstream, &self.inner.observer)
    }
}

/// What a proxy is wanted for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Through which proxy.
    pub proxy: &'a Arc<Proxy>,
    /// Where to.
    pub target: &'a Target,
    /// What goes to the proxy with the request, see [`connect::request`].
    pub headers: &'a [(HeaderName, HeaderValue)],
    /// Below which each phase of each try is told.
    pub span: &'a Span,
}

/// How long opening a tunnel may take.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// When all has to be done.
    pub deadline: Instant,
    /// Whether there are other proxies to try, for which time is to be left.
    pub has_others: bool,
}

impl Time {
    /// When a try has to be done: one that has others after it leaves half of the time to them.
    fn share(&self, has_others: bool) -> Instant {
        if !has_others {
            return self.deadline;
        }
        let now = Instant::now();
        now + self.deadline.saturating_duration_since(now) / 2
    }
}

/// `items` in an order by chance, in which each comes first as often as its weight has it.
pub(crate) fn shuffled<T>(items: &[T], weight: impl Fn(&T) -> u16) -> Vec<&T> {
    if let [only] = items {
        return vec![only];
    }
    // Each draws a time until its turn, the shorter the heavier it is.
    let turn = |item: &T| -fastrand::f64().ln() / f64::from(weight(item));
    let mut turns: Vec<_> = items.iter().map(|item| (turn(item), item)).collect();
    turns.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    turns.into_iter().map(|(_, item)| item).collect()
}

/// How far an attempt came.
#[derive(Clone, Debug, Default)]
struct Attempt {
    address: Option<SocketAddr>,
    endpoint: Option<Arc<str>>,
    spoken: Spoken,
    timings: Timings,
}

impl Attempt {
    /// Tells its phases, of which the last one failed if there is a cause.
    fn tell(&self, span: &Span, cause: Option<&Cause>) {
        if !span.is_recorded() {
            return;
        }
        let mut phases = self.timings.phases().peekable();
        while let Some((name, took)) = phases.next() {
            let mut phase = span.past(name, took.start.into_std(), took.time);
            phase.text("underpass.proxy.endpoint", self.endpoint.as_deref());
            if name != "dns" {
                phase.text("network.peer.address", self.address.map(|addr| addr.ip()));
                phase.number(
                    "network.peer.port",
                    self.address.map(|addr| addr.port().into()),
                );
            }
            if let Some(cause) = cause.filter(|_| phases.peek().is_none()) {
                phase.failed(cause.reason(), cause);
            }
        }
    }
}

/// An open tunnel.
#[derive(Debug)]
pub struct Tunnel {
    /// What is written to it goes to the target.
    pub stream: Stream,
    /// What the target has sent already, to be read before anything from the stream.
    pub early: Bytes,
    /// The proxy's status code, 200 to 299.
    pub code: u16,
    /// The address of the proxy that was connected to.
    pub address: Option<SocketAddr>,
    /// The endpoint that it belongs to, as policy has it.
    pub endpoint: Option<Arc<str>>,
    /// How it was asked for in the end: a proxy that should speak HTTP/2 may not.
    pub spoken: Spoken,
    /// What took how long.
    pub timings: Timings,
}
