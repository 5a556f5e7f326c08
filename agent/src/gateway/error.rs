//! Why there is no gateway.

use std::io;
use std::net::SocketAddr;

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Something else has the address.
    #[error(
        "cannot listen on {0}: the address is in use; stop the program that has it \
         (`ss -ltnp` shows it) or listen on another"
    )]
    AddressInUse(SocketAddr),
    /// No interface has the address.
    #[error("cannot listen on {0}: no interface of this machine has the address; see `ip address`")]
    AddressNotHere(SocketAddr),
    /// Listening fails for another reason.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// There is no address to listen on.
    #[error("no address to listen on; name one, such as 127.0.0.1:3128")]
    NoListener,
    /// The process may not take the address.
    #[error(
        "cannot listen on {0}: permission denied; a port below 1024 needs root or \
         CAP_NET_BIND_SERVICE, so grant it or choose a higher port"
    )]
    NotPermitted(SocketAddr),
}

impl GatewayError {
    pub(super) fn listen(address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::AddressInUse(address),
            io::ErrorKind::AddrNotAvailable => Self::AddressNotHere(address),
            io::ErrorKind::PermissionDenied => Self::NotPermitted(address),
            _ => Self::Listen { address, source },
        }
    }
}
