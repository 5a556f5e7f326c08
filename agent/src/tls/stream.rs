//! An established TLS connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::HandshakeKind;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::error::TlsError;
use crate::sockets::Carrier;

/// A stream inside TLS.
///
/// Each direction ends by itself, as in TCP: shutting it down sends close_notify and then ends
/// the direction of the stream below (FIN), and what the peer sends is read on (RFC 8446 section
/// 6.1). A peer that closes both directions when it reads close_notify, as TLS 1.2 has it, may do
/// so. The peer's close_notify is the end of its data; the end of the stream below without it is
/// [`io::ErrorKind::UnexpectedEof`], because anybody on the way could have made it.
///
/// It buffers: what is written leaves at the latest with a flush.
#[derive(Debug)]
pub struct TlsStream<S>(tokio_rustls::client::TlsStream<S>);

impl<S> TlsStream<S> {
    pub(super) fn new(stream: tokio_rustls::client::TlsStream<S>) -> Self {
        Self(stream)
    }

    /// The protocol that was agreed upon (ALPN).
    pub fn alpn(&self) -> Option<&[u8]> {
        self.0.get_ref().1.alpn_protocol()
    }

    /// Whether an earlier session was taken up again.
    pub fn is_resumed(&self) -> bool {
        self.0.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The stream below.
    pub fn get_ref(&self) -> &S {
        self.0.get_ref().0
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        read.map_err(TlsError::explain)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl<S: Carrier> Carrier for TlsStream<S> {
    fn abort_on_drop(&mut self) {
        self.0.get_mut().0.abort_on_drop();
    }

    fn finish_on_drop(&mut self) {
        self.0.get_mut().0.finish_on_drop();
    }
}
