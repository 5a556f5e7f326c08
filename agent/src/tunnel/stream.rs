//! What carries a tunnel, whatever lies between us and the proxy.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::http2::TunnelStream;
use super::upstream::{Active, Connection};
use crate::name::Host;
use crate::sockets::{Carrier, Side};
use crate::tls::{ClientTls, TlsError, TlsStream};

/// A byte stream to the far side. Which kind it is is decided once; over HTTP/1.1 no read or write
/// allocates.
#[derive(Debug)]
pub struct Stream {
    // First, so that it is closed before it is told to be.
    kind: Kind,
    connection: Option<Connection>,
    active: Option<Active>,
    aborts: bool,
    finishes: bool,
}

#[derive(Debug)]
enum Kind {
    /// A stream of an HTTP/2 connection to the proxy.
    Http2(Box<Http2>),
    /// TLS with the target, inside a tunnel.
    Originated(Box<TlsStream<Early>>),
    Plain(TcpStream),
    /// TLS with the proxy.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// `stream`, which is all of `connection`.
    pub(super) fn of_connection(mut stream: Self, connection: Connection) -> Self {
        stream.connection = Some(connection);
        stream
    }

    /// Counts as a tunnel for as long as it lives.
    pub(super) fn hold(&mut self, active: Active) {
        self.active = Some(active);
    }

    /// The address at the other end of the connection that is its own.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.connection.as_ref().map(Connection::addr)
    }

    /// The protocol agreed upon by the innermost TLS (ALPN).
    pub fn alpn(&self) -> Option<&[u8]> {
        match &self.kind {
            Kind::Originated(stream) => stream.alpn(),
            Kind::Http2(_) | Kind::Plain(_) => None,
            Kind::Tls(stream) => stream.alpn(),
        }
    }

    #[cfg(test)]
    pub(super) fn tcp(&self) -> &TcpStream {
        match &self.kind {
            Kind::Http2(_) => panic!("it is one stream of many"),
            Kind::Originated(stream) => stream.get_ref().stream.tcp(),
            Kind::Plain(stream) => stream,
            Kind::Tls(stream) => stream.get_ref(),
        }
    }
}

impl From<Kind> for Stream {
    fn from(kind: Kind) -> Self {
        Self {
            kind,
            connection: None,
            active: None,
            aborts: false,
            finishes: false,
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Kind::Plain(stream).into()
    }
}

impl From<TunnelStream> for Stream {
    fn from(stream: TunnelStream) -> Self {
        let aborts = false;
        Kind::Http2(Box::new(Http2 { stream, aborts })).into()
    }
}

impl From<TlsStream<TcpStream>> for Stream {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        Kind::Tls(Box::new(stream)).into()
    }
}

/// Speaks TLS to `target` over an open tunnel, so that the workload need not. `early` came out of
/// the tunnel before anything that `stream` has still to give.
///
/// # Errors
/// See [`ClientTls::connect`]. The tunnel is closed then.
pub async fn originate(
    stream: Stream,
    early: Bytes,
    tls: &ClientTls,
    target: &Host,
    deadline: Instant,
) -> Result<Stream, TlsError> {
    let inner = tls.connect(Early { early, stream }, target, deadline);
    Ok(Kind::Originated(Box::new(inner.await?)).into())
}

/// Runs `$call` on whichever stream it is, as `$stream`.
macro_rules! whichever {
    ($this:expr, $stream:ident => $call:expr) => {
        match &mut $this.get_mut().kind {
            Kind::Http2($stream) => {
                let $stream = &mut $stream.stream;
                $call
            }
            Kind::Originated($stream) => $call,
            Kind::Plain($stream) => $call,
            Kind::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        whichever!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        whichever!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        whichever!(self, stream => Pin::new(stream).poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        // TLS writes its records so; sockets take it, and what does not takes the first part.
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        whichever!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        whichever!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

impl Side for Stream {
    fn socket(&self) -> Option<&TcpStream> {
        match &self.kind {
            Kind::Plain(stream) => Some(stream),
            Kind::Http2(_) | Kind::Originated(_) | Kind::Tls(_) => None,
        }
    }
}

/// Each costs a call of the kernel, and a connection that serves one request after another is told
/// both each time: so what is not needed before the end is done at the end.
impl Carrier for Stream {
    fn abort_on_drop(&mut self) {
        self.finishes = false;
        if std::mem::replace(&mut self.aborts, true) {
            return;
        }
        match &mut self.kind {
            Kind::Http2(stream) => stream.aborts = true,
            Kind::Originated(stream) => stream.abort_on_drop(),
            Kind::Plain(stream) => stream.abort_on_drop(),
            Kind::Tls(stream) => stream.abort_on_drop(),
        }
    }

    fn finish_on_drop(&mut self) {
        self.finishes = self.aborts;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.finishes {
            return;
        }
        match &mut self.kind {
            Kind::Http2(stream) => stream.aborts = false,
            Kind::Originated(stream) => stream.finish_on_drop(),
            Kind::Plain(stream) => stream.finish_on_drop(),
            Kind::Tls(stream) => stream.finish_on_drop(),
        }
    }
}

/// A stream of HTTP/2. Dropped, it is reset unless both directions have ended; what it still has to
/// send then is sent, unless it `aborts`.
#[derive(Debug)]
struct Http2 {
    stream: TunnelStream,
    aborts: bool,
}

impl Drop for Http2 {
    fn drop(&mut self) {
        if self.aborts {
            self.stream.abort();
        }
    }
}

/// A stream of which the first bytes have been read already.
#[derive(Debug)]
pub struct Early {
    early: Bytes,
    stream: Stream,
}

impl Early {
    /// `stream`, of which `early` was read before.
    pub fn new(stream: Stream, early: Bytes) -> Self {
        Self { early, stream }
    }
}

impl AsyncRead for Early {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let len = self.early.len().min(buf.remaining());
        buf.put_slice(&self.early[..len]);
        self.early.advance(len);
        if self.early.is_empty() {
            // Gives back what held them.
            self.early = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Early {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Carrier for Early {
    fn abort_on_drop(&mut self) {
        self.stream.abort_on_drop();
    }

    fn finish_on_drop(&mut self) {
        self.stream.finish_on_drop();
    }
}
