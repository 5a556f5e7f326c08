//! The agent's own sockets, marked so that the programs leave them alone.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya::maps::{MapData, SkStorage};
use parking_lot::Mutex;
use underpass_abi::{SocketRole, map};

use super::CaptureError;
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

    /// Takes a listener's role away: the programs redirect nothing to it any more.
    pub(super) fn retire(&self, listener: &impl AsRawFd) -> io::Result<()> {
        self.mark_as(listener, SocketRole::Dialer)
    }
}

impl SocketFactory for MarkedSockets {
    fn mark(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.mark_as(&socket, SocketRole::Dialer)
    }
}
