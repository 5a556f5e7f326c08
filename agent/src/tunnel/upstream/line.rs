//! Connections to the endpoints of a proxy, ready to be spoken on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::addresses::Addresses;
use super::endpoint::{Connection, Endpoint};
use crate::dns::Resolver;
use crate::name::Host;
use crate::policy::Proxy;
use crate::sockets::SocketFactory;
use crate::tls::ClientTls;
use crate::tunnel::dial::{DialError, DialErrorKind, dial};
use crate::tunnel::timings::{Timings, timed};
use crate::tunnel::{Attempt, Cause, Stream};

/// What all connections to a proxy have in common.
#[derive(Debug)]
pub(super) struct Line {
    sockets: Arc<dyn SocketFactory>,
    resolver: Resolver,
    host: Host,
    tls: Option<Arc<ClientTls>>,
    connect_timeout: Option<Duration>,
    permits: Option<Arc<Semaphore>>,
}

impl Line {
    pub(super) fn new(sockets: Arc<dyn SocketFactory>, resolver: Resolver, proxy: &Proxy) -> Self {
        let permits = proxy.settings.max_connections;
        Self {
            sockets,
            resolver,
            host: proxy.host.clone(),
            tls: proxy.tls.clone(),
            connect_timeout: proxy.settings.connect_timeout,
            permits: permits.map(|max| Arc::new(Semaphore::new(max as usize))),
        }
    }

    pub(super) fn tls(&self) -> Option<&Arc<ClientTls>> {
        self.tls.as_ref()
    }

    /// Connects to `endpoint`, and shakes hands if TLS is spoken, until `deadline`.
    pub(super) async fn connect(
        &self,
        endpoint: &Arc<Endpoint>,
        deadline: Instant,
        attempt: &mut Attempt,
    ) -> Result<Stream, Cause> {
        let permit = self.permit()?;
        let addresses = &endpoint.addresses;
        let reaching = self.reach(addresses, deadline, &mut attempt.timings);
        let (stream, addr) = reaching.await?;
        attempt.address = Some(addr);
        let connection = Connection::new(endpoint, addr, permit);
        let stream = match &self.tls {
            None => stream.into(),
            Some(tls) => {
                // One that gets stuck leaves time for another address.
                let now = Instant::now();
                let deadline = match addresses.count() {
                    0 | 1 => deadline,
                    _ => now + deadline.saturating_duration_since(now) / 2,
                };
                let shaking = tls.connect(stream, &self.host, deadline);
                match timed(&mut attempt.timings.tls, shaking).await {
                    Ok(stream) => stream.into(),
                    Err(error) => {
                        addresses.failed(addr);
                        return Err(error.into());
                    }
                }
            }
        };
        Ok(Stream::of_connection(stream, connection))
    }

    /// Connects to the first address that answers.
    async fn reach(
        &self,
        addresses: &Arc<Addresses>,
        deadline: Instant,
        timings: &mut Timings,
    ) -> Result<(TcpStream, SocketAddr), Cause> {
        let resolver = &self.resolver;
        let order = addresses.get(resolver, deadline, &mut timings.dns).await?;
        let are_fresh = timings.dns.is_some();
        let error = match self.dial(addresses, &order, deadline, timings).await {
            Ok(connected) => return Ok(connected),
            Err(error) => error,
        };
        // The name may have others by now, or may have had: part of an answer can be lost.
        addresses.doubt();
        if are_fresh {
            return Err(error.into());
        }
        let mut others = addresses.get(resolver, deadline, &mut timings.dns).await?;
        others.retain(|addr| !order.contains(addr));
        if others.is_empty() {
            return Err(error.into());
        }
        Ok(self.dial(addresses, &others, deadline, timings).await?)
    }

    async fn dial(
        &self,
        addresses: &Addresses,
        order: &[SocketAddr],
        deadline: Instant,
        timings: &mut Timings,
    ) -> Result<(TcpStream, SocketAddr), DialError> {
        let until = self.connect_timeout.map(|time| Instant::now() + time);
        let until = until.map_or(deadline, |until| until.min(deadline));
        let dialling = dial(&self.sockets, order.to_vec(), until);
        let dialled = timed(&mut timings.tcp, dialling).await;
        match &dialled {
            Ok((_, addr)) => addresses.won(order, *addr),
            Err(error) => {
                for (addr, error) in error.attempts() {
                    if DialErrorKind::from(error) != DialErrorKind::NoSocket {
                        addresses.failed(*addr);
                    }
                }
            }
        }
        dialled
    }

    fn permit(&self) -> Result<Option<OwnedSemaphorePermit>, Cause> {
        let Some(permits) = &self.permits else {
            return Ok(None);
        };
        let permit = Arc::clone(permits).try_acquire_owned();
        permit.map(Some).map_err(|_| Cause::TooManyConnections)
    }
}
