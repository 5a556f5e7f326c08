//! Passes queries on to the servers they were meant for.

mod spare;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::query::answers;
use crate::capture::MAX_MESSAGE;
use crate::sockets::{SocketFactory, Vantage};
use spare::{Place, Spare};

/// How long a server is waited for: as long as resolvers of workloads do, who then ask again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Queries that wait for an answer at a time; each has a socket.
const MAX_IN_FLIGHT: usize = 1024;

/// Asks servers over UDP. A query has a socket, whose port nobody can guess, and which hears its server
/// only. Sockets are used again, each time from another port, since making one in the network namespace
/// of a workload takes a thread.
#[derive(Debug)]
pub struct Forwarder {
    places: Semaphore,
    spare: Spare,
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
            spare: Spare::default(),
        }
    }
}

impl Forwarder {
    /// The answer of a server to a query, byte for byte. It is asked on a socket of `sockets`, which
    /// are those of `there` if that is given, else the agent's own.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn ask(
        &self,
        (server, query): (SocketAddr, &[u8]),
        sockets: &Arc<dyn SocketFactory>,
        there: Option<&Arc<Vantage>>,
    ) -> Result<Vec<u8>, ForwardError> {
        let _place = self
            .places
            .try_acquire()
            .map_err(|_| ForwardError::TooMany)?;
        let place = Place::new(there, server);
        let socket = match self.spare.take(&place) {
            Some(socket) => socket,
            None => sockets.open_udp(server)?,
        };
        // Connecting binds it, to a port that the kernel chooses at random.
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
            Ok(Ok(())) => {
                self.spare.give_back(place, there, socket);
                Ok(answer)
            }
            Ok(Err(error)) => Err(ForwardError::Io(error)),
            Err(_) => Err(ForwardError::Silence),
        }
    }

    /// Nobody [lives there](Vantage::leave) any more.
    pub fn leave(&self, vantage: &Vantage) {
        self.spare.leave(vantage);
    }
}

#[cfg(test)]
mod tests;
