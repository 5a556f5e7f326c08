//! Network namespaces.

mod ask;
mod file;

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::libc;

use super::object::Object;
use super::{CaptureError, MarkedSockets};

pub use file::{Netns, NetnsId};

/// The cookie of the calling thread's network namespace: the kernel's own name for it, never
/// used twice.
pub(super) fn cookie(object: &mut Object, sockets: &MarkedSockets) -> Result<u64, CaptureError> {
    match option()? {
        Some(cookie) => Ok(cookie),
        None => ask::cookie(object, sockets),
    }
}

/// The cookie by socket option; `None` before Linux 5.14, which has none.
#[expect(unsafe_code, reason = "no library knows SO_NETNS_COOKIE")]
fn option() -> Result<Option<u64>, CaptureError> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(CaptureError::NetnsCookie)?;
    let mut cookie = 0u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and both pointers are to locals of the size they claim.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    if result == 0 {
        return Ok(Some(cookie));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
        error => Err(CaptureError::NetnsCookie(error)),
    }
}

#[cfg(test)]
mod tests;
