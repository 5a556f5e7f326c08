//! TCP connections to one of several addresses.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::dns::first_success;
use crate::sockets::SocketFactory;

/// The head start of each address before the next (RFC 8305 section 8).
pub(crate) const HEAD_START: Duration = Duration::from_millis(250);

/// Addresses tried at most; of a name with more the rest is not looked at.
const MAX_ADDRESSES: usize = 16;

/// A proxy that vanished without a word is found out after this silence and 6 probes, 10 s apart.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;

/// Connects to the first of `addrs` that answers, each tried in turn after a head start for the
/// one before (happy eyeballs, RFC 8305 section 5). `addrs` is not empty.
pub(super) async fn dial(
    sockets: &Arc<dyn SocketFactory>,
    mut addrs: Vec<SocketAddr>,
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), DialError> {
    addrs.truncate(MAX_ADDRESSES);
    first_success(addrs, HEAD_START, |endpoint| async move {
        let connected = tokio::time::timeout_at(deadline, sockets.connect_to_speak(endpoint))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .and_then(|stream| keep_alive(&stream).map(|()| stream));
        match connected {
            Ok(stream) => Ok((stream, endpoint)),
            Err(error) => Err((endpoint, error)),
        }
    })
    .await
    .map_err(DialError)
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// What went wrong with each address of a proxy.
#[derive(Debug)]
pub struct DialError(Vec<(SocketAddr, io::Error)>);

impl DialError {
    /// The failures, in the order of time.
    pub fn attempts(&self) -> &[(SocketAddr, io::Error)] {
        &self.0
    }

    /// The kind of the most telling failure: one that came from the proxy's own host says more
    /// than the lack of a route, as hosts without IPv6 have it.
    pub(super) fn kind(&self) -> DialErrorKind {
        self.0
            .iter()
            .map(|(_, error)| DialErrorKind::from(error))
            .min()
            .unwrap_or(DialErrorKind::Failed)
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (endpoint, error)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{endpoint}: ")?;
            match DialErrorKind::from(error) {
                DialErrorKind::Refused => f.write_str("connection refused: nothing listens there"),
                DialErrorKind::Timeout => f.write_str(
                    "no answer in time: is the address right, does a firewall drop packets?",
                ),
                _ => write!(f, "{error}"),
            }?;
        }
        Ok(())
    }
}

impl std::error::Error for DialError {}

/// Kinds of failure to connect, the most telling first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum DialErrorKind {
    /// The agent has no socket to connect with: limits, memory, or marking failed.
    NoSocket,
    Refused,
    Reset,
    Timeout,
    /// A local rule forbids it.
    Denied,
    Failed,
    Unreachable,
}

impl From<&io::Error> for DialErrorKind {
    fn from(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::TimedOut {
            return Self::Timeout;
        }
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => Self::NoSocket,
            Some(Errno::ECONNREFUSED) => Self::Refused,
            Some(Errno::ECONNRESET) => Self::Reset,
            Some(Errno::EACCES | Errno::EPERM) => Self::Denied,
            Some(
                Errno::ENETUNREACH
                | Errno::EHOSTUNREACH
                | Errno::ENETDOWN
                | Errno::EHOSTDOWN
                | Errno::EADDRNOTAVAIL
                | Errno::EAFNOSUPPORT,
            ) => Self::Unreachable,
            _ => Self::Failed,
        }
    }
}
