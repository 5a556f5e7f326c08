//! What carries a tunnel, whatever lies between us and the proxy.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::name::Host;
use crate::sockets::Carrier;
use crate::tls::{ClientTls, TlsError, TlsStream};

/// A byte stream to the far side. Which kind it is is decided once; no read or write allocates.
#[derive(Debug)]
pub struct Stream(Kind);

#[derive(Debug)]
enum Kind {
    /// TLS with the target, inside a tunnel.
    Originated(Box<TlsStream<Early>>),
    Plain(TcpStream),
    /// TLS with the proxy.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// The protocol agreed upon by the innermost TLS (ALPN).
    pub fn alpn(&self) -> Option<&[u8]> {
        match &self.0 {
            Kind::Originated(stream) => stream.alpn(),
            Kind::Plain(_) => None,
            Kind::Tls(stream) => stream.alpn(),
        }
    }

    #[cfg(test)]
    pub(super) fn tcp(&self) -> &TcpStream {
        match &self.0 {
            Kind::Originated(stream) => stream.get_ref().stream.tcp(),
            Kind::Plain(stream) => stream,
            Kind::Tls(stream) => stream.get_ref(),
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self(Kind::Plain(stream))
    }
}

impl From<TlsStream<TcpStream>> for Stream {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        Self(Kind::Tls(Box::new(stream)))
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
    Ok(Stream(Kind::Originated(Box::new(inner.await?))))
}

/// Runs `$call` on whichever stream it is, as `$stream`.
macro_rules! whichever {
    ($this:expr, $stream:ident => $call:expr) => {
        match &mut $this.get_mut().0 {
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
        // TLS writes its records so; sockets take it.
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        whichever!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        whichever!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

impl Carrier for Stream {
    fn abort_on_drop(&mut self) {
        match &mut self.0 {
            Kind::Originated(stream) => stream.abort_on_drop(),
            Kind::Plain(stream) => stream.abort_on_drop(),
            Kind::Tls(stream) => stream.abort_on_drop(),
        }
    }

    fn finish_on_drop(&mut self) {
        match &mut self.0 {
            Kind::Originated(stream) => stream.finish_on_drop(),
            Kind::Plain(stream) => stream.finish_on_drop(),
            Kind::Tls(stream) => stream.finish_on_drop(),
        }
    }
}

/// A stream of which the first bytes have been read already.
#[derive(Debug)]
struct Early {
    early: Bytes,
    stream: Stream,
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
