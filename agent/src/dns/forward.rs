//! Passes queries on to the servers they were meant for.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::query::answers;
use crate::capture::MAX_MESSAGE;
use crate::sockets::SocketFactory;

/// How long a server is waited for: as long as resolvers of workloads do, who then ask again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Queries that wait for an answer at a time; each takes a socket.
const MAX_IN_FLIGHT: usize = 1024;

/// Asks servers over UDP. A query has a socket of its own, whose port nobody can guess, and which
/// hears its server only.
#[derive(Debug)]
pub struct Forwarder {
    places: Semaphore,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The server cannot be asked, or there is none.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server is silent.
    #[error("no answer within {PATIENCE:?}")]
    Silence,
    /// Too many others wait for theirs.
    #[error("{MAX_IN_FLIGHT} other queries wait for an answer")]
    TooMany,
}

impl Default for Forwarder {
    fn default() -> Self {
        Self {
            places: Semaphore::new(MAX_IN_FLIGHT),
        }
    }
}

impl Forwarder {
    /// The answer of `server` to a query, byte for byte. The socket is one of `sockets`.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn ask(
        &self,
        server: SocketAddr,
        query: &[u8],
        sockets: &Arc<dyn SocketFactory>,
    ) -> Result<Vec<u8>, ForwardError> {
        let _place = self
            .places
            .try_acquire()
            .map_err(|_| ForwardError::TooMany)?;
        let any = match server {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = sockets.bind_udp(any)?;
        socket.connect(server).await?;
        socket.send(query).await?;
        let mut answer = Vec::with_capacity(MAX_MESSAGE);
        let asking = async {
            loop {
                answer.clear();
                socket.recv_buf(&mut answer).await?;
                if answers(&answer, query) {
                    return Ok(());
                }
            }
        };
        match timeout(PATIENCE, asking).await {
            Ok(Ok(())) => Ok(answer),
            Ok(Err(error)) => Err(ForwardError::Io(error)),
            Err(_) => Err(ForwardError::Silence),
        }
    }
}
