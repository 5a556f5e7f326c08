//! Tunnels through a forward proxy.
//!
//! [`Tunneler::open`] resolves the proxy, connects to it, by TLS if it is configured so, and asks
//! it, by HTTP/1.1 CONNECT, for a stream to the target. [`connect`] is the exchange on any stream;
//! [`answer`] is its parser alone. [`originate`] adds TLS with the target, inside the tunnel.

pub mod answer;
pub mod connect;
mod dial;
mod error;
pub mod http2;
mod stream;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use tokio::time::Instant;

use crate::dns::Resolver;
use crate::name::Target;
use crate::policy::Proxy;
use crate::sockets::SocketFactory;

pub use dial::DialError;
pub use error::{Cause, Side, TunnelError};
pub use stream::{Stream, originate};

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

/// Opens tunnels. Clones share the resolver's cache.
#[derive(Clone, Debug)]
pub struct Tunneler {
    sockets: Arc<dyn SocketFactory>,
    resolver: Resolver,
    config: TunnelConfig,
}

impl Tunneler {
    /// Opens tunnels on sockets of `sockets` to proxies that `resolver` finds.
    pub fn new(sockets: Arc<dyn SocketFactory>, resolver: Resolver, config: TunnelConfig) -> Self {
        Self {
            sockets,
            resolver,
            config,
        }
    }

    /// Opens a tunnel to `target` through `proxy`. `headers` go to the proxy with the request,
    /// see [`connect::request`].
    ///
    /// Nothing of the workload is sent before the proxy has agreed, so after an error it may be
    /// tried elsewhere.
    ///
    /// # Errors
    /// Whatever keeps the tunnel from being there in time; see [`Cause`]. The connection to the
    /// proxy is closed then.
    pub async fn open(
        &self,
        proxy: &Proxy,
        target: &Target,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Tunnel, TunnelError> {
        let deadline = Instant::now() + self.config.deadline;
        let mut attempt = Attempt::default();
        let request = connect::request(target, headers, proxy.credentials.as_ref());
        match self.try_open(proxy, &request, deadline, &mut attempt).await {
            Ok((stream, opened, endpoint)) => Ok(Tunnel {
                stream,
                early: opened.early,
                code: opened.code,
                endpoint,
                timings: attempt.timings,
            }),
            Err(cause) => {
                let error = TunnelError::new(proxy, target, attempt, cause);
                Err(error)
            }
        }
    }

    async fn try_open(
        &self,
        proxy: &Proxy,
        request: &[u8],
        deadline: Instant,
        attempt: &mut Attempt,
    ) -> Result<(Stream, connect::Opened, SocketAddr), Cause> {
        let (mut stream, endpoint) = self.reach(proxy, deadline, attempt).await?;
        let exchange = connect::exchange(&mut stream, request, deadline);
        let opened = timed(&mut attempt.timings.connect, exchange).await?;
        Ok((stream, opened, endpoint))
    }

    /// Where `proxy` is: every address of each of its endpoints. One that cannot be resolved is a
    /// failure only if no other can.
    async fn addresses(
        &self,
        proxy: &Proxy,
        deadline: Instant,
        attempt: &mut Attempt,
    ) -> Result<Vec<SocketAddr>, Cause> {
        let mut addrs = Vec::new();
        let mut failure = None;
        for endpoint in shuffled(&proxy.endpoints, |endpoint| endpoint.weight) {
            let Some(name) = endpoint.host.name() else {
                let found = self.resolver.resolve(&endpoint.host).await?;
                addrs.extend(found.iter().map(|ip| SocketAddr::new(*ip, endpoint.port)));
                continue;
            };
            let lookup = tokio::time::timeout_at(deadline, self.resolver.lookup(name));
            match timed(&mut attempt.timings.dns, lookup).await {
                Ok(Ok(found)) => {
                    let found = found.addrs.iter();
                    addrs.extend(found.map(|ip| SocketAddr::new(*ip, endpoint.port)));
                }
                Ok(Err(error)) => failure = Some(error.into()),
                Err(_) => failure = Some(Cause::DnsTimeout),
            }
        }
        match failure {
            Some(cause) if addrs.is_empty() => Err(cause),
            _ => Ok(addrs),
        }
    }

    /// Connects to `proxy`, so that it can be spoken to.
    async fn reach(
        &self,
        proxy: &Proxy,
        deadline: Instant,
        attempt: &mut Attempt,
    ) -> Result<(Stream, SocketAddr), Cause> {
        let addrs = self.addresses(proxy, deadline, attempt).await?;
        let timings = &mut attempt.timings;
        let dialing = dial::dial(&self.sockets, addrs, deadline);
        let (stream, endpoint) = timed(&mut timings.tcp, dialing).await?;
        attempt.endpoint = Some(endpoint);
        let Some(tls) = &proxy.tls else {
            return Ok((stream.into(), endpoint));
        };
        let shaking = tls.connect(stream, &proxy.host, deadline);
        let stream = timed(&mut timings.tls, shaking).await?;
        Ok((stream.into(), endpoint))
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
#[derive(Clone, Copy, Debug, Default)]
struct Attempt {
    endpoint: Option<SocketAddr>,
    timings: Timings,
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
    pub endpoint: SocketAddr,
    /// What took how long.
    pub timings: Timings,
}

/// How long each phase took, the failed one included. A phase that was not reached, or not
/// needed (an address needs no DNS), is `None`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Timings {
    /// Resolving the proxy's name.
    pub dns: Option<Duration>,
    /// Connecting to the proxy.
    pub tcp: Option<Duration>,
    /// The TLS handshake with the proxy.
    pub tls: Option<Duration>,
    /// From the request to the end of the answer's head.
    pub connect: Option<Duration>,
}

async fn timed<F: Future>(slot: &mut Option<Duration>, phase: F) -> F::Output {
    let start = Instant::now();
    let output = phase.await;
    *slot = Some(start.elapsed());
    output
}
