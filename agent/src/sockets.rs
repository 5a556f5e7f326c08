//! The seam through which every socket of the agent's own is made.
//!
//! A socket that the hooks do not know as the agent's would be captured and sent back to the
//! agent, so nothing in this crate opens one any other way. `capture` has the factory that marks
//! them; [`PlainSockets`] serves where nothing is captured: the gateway, and unit tests.

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

/// Makes sockets that may leave the node.
pub trait SocketFactory: Debug + Send + Sync {
    /// Does to a socket, not yet connected, what makes it the agent's own.
    fn mark(&self, socket: BorrowedFd<'_>) -> io::Result<()>;

    /// A socket of the agent's own, not yet bound or connected.
    fn open(&self, domain: Domain, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let socket = Socket::new(domain, kind, Some(protocol))?;
        self.mark(socket.as_fd())?;
        Ok(socket)
    }
}

impl dyn SocketFactory {
    /// Connects to `addr`; the caller sets the deadline. Nagle's algorithm is off.
    pub async fn connect(&self, addr: SocketAddr) -> io::Result<TcpStream> {
        self.stream_to(addr)?.connect(addr).await
    }

    /// As `connect`, where we speak first and at once: the last packet of the handshake is the one
    /// with our first bytes, which saves all of one. A peer that is to speak first would learn of the
    /// connection late.
    pub async fn connect_to_speak(&self, addr: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.stream_to(addr)?;
        // Without it there is one packet more.
        let _ = SockRef::from(&socket).set_tcp_quickack(false);
        socket.connect(addr).await
    }

    fn stream_to(&self, addr: SocketAddr) -> io::Result<TcpSocket> {
        let kind = Type::STREAM.nonblocking();
        let socket = self.open(Domain::for_address(addr), kind, Protocol::TCP)?;
        let socket = TcpSocket::from_std_stream(socket.into());
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    /// A UDP socket, not yet bound, for what is of the same family as `addr`.
    pub fn open_udp(&self, addr: SocketAddr) -> io::Result<UdpSocket> {
        let kind = Type::DGRAM.nonblocking();
        let socket = self.open(Domain::for_address(addr), kind, Protocol::UDP)?;
        UdpSocket::from_std(socket.into())
    }

    /// Binds a UDP socket to `local`.
    pub fn bind_udp(&self, local: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.open_udp(local)?;
        SockRef::from(&socket).bind(&local.into())?;
        Ok(socket)
    }
}

/// A network namespace, other than the agent's own, from which connections can be made.
#[derive(Debug)]
pub struct Vantage {
    id: u64,
    sockets: Arc<dyn SocketFactory>,
    is_left: AtomicBool,
}

impl Vantage {
    /// The namespace in which `sockets` makes sockets. `id` is never used for another one.
    pub fn new(id: u64, sockets: Arc<dyn SocketFactory>) -> Self {
        Self {
            id,
            sockets,
            is_left: AtomicBool::new(false),
        }
    }

    /// Which one it is.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Makes sockets in it.
    pub fn sockets(&self) -> &Arc<dyn SocketFactory> {
        &self.sockets
    }

    /// Nobody lives there any more: nothing is to be kept that keeps it.
    pub fn leave(&self) {
        self.is_left.store(true, Ordering::Release);
    }

    /// Whether somebody lives there, as far as is known.
    pub fn is_lived_in(&self) -> bool {
        !self.is_left.load(Ordering::Acquire)
    }
}

/// Sockets as they come, unmarked.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainSockets;

impl SocketFactory for PlainSockets {
    fn mark(&self, _socket: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// One side of a relay.
pub trait Side: AsyncRead + AsyncWrite + Unpin {
    /// The socket, where what is read and written is what passes it: the kernel may move it then.
    /// Always the same answer.
    fn socket(&self) -> Option<&TcpStream>;
}

impl Side for TcpStream {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

/// A stream that can be dropped in two ways, of which the peer sees one as an error and the other
/// as the end of the data.
pub trait Carrier: AsyncRead + AsyncWrite + Unpin {
    /// From now on dropping it is an error to the peer: a reset, of the connection or, where
    /// several streams share one, of the stream.
    fn abort_on_drop(&mut self);

    /// Undoes [`Self::abort_on_drop`]: dropping it delivers what was written, and then ends it. To
    /// end a stream of TLS in order, shut it down first.
    fn finish_on_drop(&mut self);
}

impl Carrier for TcpStream {
    fn abort_on_drop(&mut self) {
        reset_on_close(self);
    }

    fn finish_on_drop(&mut self) {
        finish_on_close(self);
    }
}

/// Ends the handshake of `connect_to_speak` now, where nothing is to be said yet after all.
pub fn end_handshake(stream: &TcpStream) {
    // Without it the kernel does so a fifth of a second later.
    let _ = SockRef::from(stream).set_tcp_quickack(true);
}

/// Makes closing `stream` send a reset instead of a FIN, so that the peer sees an error and not
/// the end of the data.
pub fn reset_on_close(stream: &TcpStream) {
    // Without it the peer merely gets a FIN: worse for it, but nothing to fail over.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Undoes [`reset_on_close`]: closing `stream` delivers what was written and then a FIN.
pub fn finish_on_close(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(None);
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Tries of what a machine that stands still for long enough hides.
    const TRIES: usize = 20;

    #[tokio::test]
    async fn who_speaks_first_ends_the_handshake_with_the_first_bytes() {
        let sockets: &dyn SocketFactory = &PlainSockets;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut seen = false;
        for _ in 0..TRIES {
            let mut stream = sockets.connect_to_speak(addr).await.unwrap();
            // The kernel sends it after a fifth of a second if nothing else is to be sent.
            if listener.accept().is_ok() {
                continue;
            }
            seen = true;
            stream.write_all(b"first").await.unwrap();
            listener.accept().expect("the handshake is over");
            let stream = sockets.connect_to_speak(addr).await.unwrap();
            end_handshake(&stream);
            listener.accept().expect("it is over without a word");
        }
        assert!(seen, "the handshake was over before anything was said");
    }
}
