//! The agent's own sockets, marked so that the programs leave them alone.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd};
use std::sync::Arc;

use aya::maps::{MapData, SkStorage};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};
use underpass_abi::{SocketRole, map};

use super::CaptureError;
use super::netns::Netns;
use super::object::Object;
use crate::sockets::SocketFactory;

/// Marks sockets in the socket storage that the programs consult. It takes the map to do that, so
/// no workload can pass for the agent, as it could with a socket mark or a process id.
#[derive(Debug)]
pub struct MarkedSockets {
    roles: Mutex<SkStorage<MapData, u32>>,
}

impl MarkedSockets {
    pub(super) fn new(object: &mut Object) -> Result<Self, CaptureError> {
        Ok(Self {
            roles: Mutex::new(object.map(map::ROLES)?),
        })
    }

    pub(super) fn mark_as(&self, socket: &impl AsRawFd, role: SocketRole) -> io::Result<()> {
        self.roles
            .lock()
            .insert(socket, role as u32, 0)
            .map_err(|error| io::Error::other(format!("cannot mark the agent's socket: {error}")))
    }

    /// Takes the mark off, so that nothing is redirected to the socket any more.
    pub(super) fn unmark(&self, socket: &impl AsRawFd) -> io::Result<()> {
        self.roles
            .lock()
            .remove(socket)
            .map_err(|error| io::Error::other(format!("cannot unmark the socket: {error}")))
    }
}

impl SocketFactory for MarkedSockets {
    fn mark(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.mark_as(&socket, SocketRole::Dialer)
    }
}

/// The same in another network namespace, which exists as long as this does.
#[derive(Debug)]
pub struct SocketsWithin {
    namespace: Arc<Netns>,
    marked: Arc<MarkedSockets>,
}

impl SocketsWithin {
    /// Makes sockets in `namespace`.
    pub fn new(namespace: Arc<Netns>, marked: Arc<MarkedSockets>) -> Self {
        Self { namespace, marked }
    }
}

impl SocketFactory for SocketsWithin {
    fn mark(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.marked.mark(socket)
    }

    /// On a thread of its own that ends there, in a tenth of a millisecond.
    fn open(&self, domain: Domain, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let made = self.namespace.within(|| {
            let made = Socket::new(domain, kind, Some(protocol));
            made.map_err(|source| CaptureError::Netns {
                action: "make a socket there",
                source,
            })
        });
        let socket = made.map_err(|error| match error {
            CaptureError::Netns { source, .. } if source.raw_os_error().is_some() => source,
            error => io::Error::other(error.to_string()),
        })?;
        self.mark(socket.as_fd())?;
        Ok(socket)
    }
}
