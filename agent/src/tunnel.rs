//! Tunnels through a forward proxy.
//!
//! [`Tunneler::open`] resolves the proxy, connects to it and asks it, by HTTP/1.1 CONNECT, for a
//! stream to the target. [`connect`] is the exchange on any stream, so that one inside TLS is
//! spoken to in the same way; [`answer`] is its parser alone.

pub mod answer;
pub mod connect;
mod dial;
mod error;
pub mod http2;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::dns::Resolver;
use crate::name::Target;
use crate::policy::Proxy;
use crate::sockets::SocketFactory;

pub use dial::DialError;
pub use error::{Cause, Side, TunnelError};

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

    /// Opens a tunnel to `target` through `proxy`.
    ///
    /// Nothing of the workload is sent before the proxy has agreed, so after an error it may be
    /// tried elsewhere.
    ///
    /// # Errors
    /// Whatever keeps the tunnel from being there in time; see [`Cause`]. The connection to the
    /// proxy is closed then.
    pub async fn open(&self, proxy: &Proxy, target: &Target) -> Result<Tunnel, TunnelError> {
        let deadline = Instant::now() + self.config.deadline;
        let mut attempt = Attempt::default();
        match self.try_open(proxy, target, deadline, &mut attempt).await {
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
        target: &Target,
        deadline: Instant,
        attempt: &mut Attempt,
    ) -> Result<(TcpStream, connect::Opened, SocketAddr), Cause> {
        let timings = &mut attempt.timings;
        let addrs = match proxy.host.name() {
            None => self.resolver.resolve(&proxy.host).await?,
            Some(name) => {
                let lookup = self.resolver.lookup(name);
                let lookup = timed(&mut timings.dns, tokio::time::timeout_at(deadline, lookup));
                match lookup.await {
                    Ok(found) => found?.addrs,
                    Err(_) => return Err(Cause::DnsTimeout),
                }
            }
        };
        let dialing = dial::dial(&self.sockets, &addrs, proxy.port, deadline);
        let (mut stream, endpoint) = timed(&mut timings.tcp, dialing).await?;
        attempt.endpoint = Some(endpoint);
        let request = connect::request(target, proxy.credentials.as_ref());
        let exchange = connect::exchange(&mut stream, &request, deadline);
        let opened = timed(&mut timings.connect, exchange).await?;
        Ok((stream, opened, endpoint))
    }
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
    /// The connection to the proxy; what is written to it goes to the target.
    pub stream: TcpStream,
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
    /// From the request to the end of the answer's head.
    pub connect: Option<Duration>,
}

async fn timed<F: Future>(slot: &mut Option<Duration>, phase: F) -> F::Output {
    let start = Instant::now();
    let output = phase.await;
    *slot = Some(start.elapsed());
    output
}
