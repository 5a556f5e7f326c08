//! Connections to the endpoints of a proxy, ready to be spoken on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::endpoint::{Connection, Endpoint};
use crate::dns::Resolver;
use crate::name::Host;
use crate::policy::Proxy;
use crate::sockets::SocketFactory;
use crate::tls::ClientTls;
use crate::tunnel::dial::{DialErrorKind, dial};
use crate::tunnel::timings::timed;
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
        let Attempt { timings, .. } = attempt;
        let addresses = &endpoint.addresses;
        let found = addresses.get(&self.resolver, deadline, &mut timings.dns);
        let order = found.await?;
        // A handshake that gets stuck leaves time for another address.
        let deadline = match order.len() {
            1 => deadline,
            _ => Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2,
        };
        let until = self.connect_timeout.map(|time| Instant::now() + time);
        let until = until.map_or(deadline, |until| until.min(deadline));
        let dialling = dial(&self.sockets, order.clone(), until);
        let (stream, addr) = match timed(&mut timings.tcp, dialling).await {
            Ok(connected) => connected,
            Err(error) => {
                for (addr, error) in error.attempts() {
                    if DialErrorKind::from(error) != DialErrorKind::NoSocket {
                        addresses.failed(*addr);
                    }
                }
                return Err(error.into());
            }
        };
        addresses.won(&order, addr);
        attempt.address = Some(addr);
        let connection = Connection::new(endpoint, addr, permit);
        let stream = match &self.tls {
            None => stream.into(),
            Some(tls) => {
                let shaking = tls.connect(stream, &self.host, deadline);
                match timed(&mut timings.tls, shaking).await {
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

    fn permit(&self) -> Result<Option<OwnedSemaphorePermit>, Cause> {
        let Some(permits) = &self.permits else {
            return Ok(None);
        };
        let permit = Arc::clone(permits).try_acquire_owned();
        permit.map(Some).map_err(|_| Cause::TooManyConnections)
    }
}
