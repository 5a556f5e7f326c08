//! Where redirected connections arrive.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::setsockopt;
use nix::{libc, setsockopt_impl, sockopt_impl};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use underpass_abi::SocketRole;

use super::{CaptureError, Flows, MarkedSockets};
use crate::name::OriginalDst;

/// Connections that the kernel holds for us, established and not accepted. The kernel caps it at
/// net.core.somaxconn.
const BACKLOG: i32 = 4096;

sockopt_impl!(
    /// Whether a SYN may bring data that is taken at once.
    FastOpen,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_FASTOPEN,
    bool
);

/// One listener in one network namespace.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    netns_cookie: u64,
    flows: Arc<Flows>,
    sockets: Arc<MarkedSockets>,
}

/// A redirected connection.
#[derive(Debug)]
pub struct Accepted {
    /// The connection from the workload; closing it resets it, until
    /// [`finish_on_close`](crate::sockets::finish_on_close).
    pub stream: TcpStream,
    /// The workload's address and port.
    pub client: SocketAddr,
    /// Where it wanted to go.
    pub original_dst: OriginalDst,
    /// Cgroup v2 id of the process that called `connect`.
    pub cgroup_id: u64,
    /// That process, in the initial pid namespace.
    pub pid: u32,
    /// When it was accepted.
    pub at: Instant,
}

/// What came to a listener.
#[derive(Debug)]
pub enum Incoming {
    /// A connection that the programs sent here.
    Redirected(Accepted),
    /// One that came by itself, or whose entry is lost. It has been reset: its destination is not
    /// known, and a guess could deliver to the wrong one.
    Stranger(SocketAddr),
}

impl Listener {
    /// Waits for the next connection.
    ///
    /// # Errors
    /// As `accept(2)`: those of one connection and, when descriptors run out, of the process.
    pub async fn accept(&self) -> io::Result<Incoming> {
        let (stream, client) = self.socket.accept().await?;
        let at = Instant::now();
        let flow = self.flows.take(self.netns_cookie, client);
        let Ok(Some(flow)) = flow.inspect_err(|error| tracing::error!(%error, "flow lost")) else {
            return Ok(Incoming::Stranger(client));
        };
        Ok(Incoming::Redirected(Accepted {
            stream,
            client: SocketAddr::new(client.ip().to_canonical(), client.port()),
            original_dst: OriginalDst(flow.original_dst.into()),
            cgroup_id: flow.cgroup_id,
            pid: flow.pid,
            at,
        }))
    }

    /// Has the programs redirect nothing more here. What they already did still arrives.
    ///
    /// # Errors
    /// The mark cannot be taken off.
    pub fn retire(&self) -> io::Result<()> {
        self.sockets.unmark(&self.socket)
    }

    /// The loopback address it listens on.
    ///
    /// # Errors
    /// As `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// Opens the listeners of the calling thread's network namespace, whose cookie that is: on
/// 127.0.0.1, and on ::1 where there is IPv6. To be called on a tokio runtime.
///
/// Gives their ports as well, 0 where there is none.
pub(super) fn open(
    netns_cookie: u64,
    sockets: &Arc<MarkedSockets>,
    flows: &Arc<Flows>,
) -> Result<(Vec<Listener>, [u16; 2]), CaptureError> {
    let bind = |address: IpAddr| {
        let (socket, port) =
            bind(address, sockets).map_err(|source| CaptureError::Listen { address, source })?;
        let listener = Listener {
            socket,
            netns_cookie,
            flows: Arc::clone(flows),
            sockets: Arc::clone(sockets),
        };
        Ok((listener, port))
    };
    let (v4, port_v4) = bind(Ipv4Addr::LOCALHOST.into())?;
    match bind(Ipv6Addr::LOCALHOST.into()) {
        Ok((v6, port_v6)) => Ok((vec![v4, v6], [port_v4, port_v6])),
        Err(CaptureError::Listen { source, .. }) if is_family_missing(&source) => {
            tracing::info!("no IPv6 in this network namespace: external IPv6 is refused");
            Ok((vec![v4], [port_v4, 0]))
        }
        Err(error) => Err(error),
    }
}

fn bind(address: IpAddr, sockets: &MarkedSockets) -> io::Result<(TcpListener, u16)> {
    let local = SocketAddr::new(address, 0);
    let socket = Socket::new(
        Domain::for_address(local),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    prepare(&socket, address)?;
    // Accepted sockets inherit it, so that there is no moment in which a crash of the agent would
    // look to a workload like the end of the data.
    socket.set_linger(Some(Duration::ZERO))?;
    // This as well, which saves a call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&local.into())?;
    // Before it listens: the programs redirect to nothing that is not marked.
    sockets.mark_as(&socket, SocketRole::Listener)?;
    socket.listen(BACKLOG)?;
    // Once it listens, for that is when a sysctl may turn it on: with it a connection could be accepted
    // before its handshake is done, which is when its entry is written.
    setsockopt(&socket, FastOpen, &false)?;
    let listener = TcpListener::from_std(socket.into())?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// What a socket needs before it is bound to a loopback address.
///
/// A namespace that is still being made has its loopback down. Then the addresses are not there
/// yet, and can be bound all the same, so that the sockets are there when they come.
pub(super) fn prepare(socket: &Socket, address: IpAddr) -> io::Result<()> {
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if loopback_is_down() {
        match address {
            IpAddr::V4(_) => socket.set_freebind_v4(true)?,
            IpAddr::V6(_) if is_ipv6_off() => return Err(Errno::EADDRNOTAVAIL.into()),
            IpAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
    }
    socket.set_nonblocking(true)
}

/// Of the calling thread's network namespace.
fn loopback_is_down() -> bool {
    getifaddrs().is_ok_and(|interfaces| {
        !interfaces.into_iter().any(|interface| {
            let wanted = InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_UP;
            interface.flags.contains(wanted)
        })
    })
}

/// Whether the loopback of the calling thread's network namespace will get no IPv6 address when it
/// comes up.
fn is_ipv6_off() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
        .map_or(true, |off| off.trim() != "0")
}

pub(super) fn is_family_missing(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does for us, and POSIX does not promise.
    #[test]
    fn accepted_sockets_inherit_options() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        listener.set_linger(Some(Duration::ZERO)).unwrap();
        listener.set_tcp_nodelay(true).unwrap();
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        listener.bind(&local.into()).unwrap();
        listener.listen(1).unwrap();
        let local = listener.local_addr().unwrap().as_socket().unwrap();
        let _client = std::net::TcpStream::connect(local).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(accepted.linger().unwrap(), Some(Duration::ZERO));
        assert!(accepted.tcp_nodelay().unwrap());
    }
}
