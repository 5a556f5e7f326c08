//! Network namespaces.

#![expect(unsafe_code, reason = "no library knows SO_NETNS_COOKIE")]

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::libc;

use super::CaptureError;

/// The cookie of the calling thread's network namespace: the kernel's own name for it, never
/// used twice. Since Linux 5.14.
pub(super) fn cookie() -> Result<u64, CaptureError> {
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
    if result != 0 {
        return Err(CaptureError::NetnsCookie(io::Error::last_os_error()));
    }
    Ok(cookie)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_namespace_has_one_cookie() {
        let first = super::cookie().unwrap();
        assert_eq!(first, super::cookie().unwrap());
    }
}
