//! The two ends of a tunnel.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;

use crate::sockets::{Side, reset_on_close};
use crate::tunnel;

/// The client's end of a tunnel.
pub(super) trait End: Side + Send {
    /// Ends it so that the peer sees an error and not the end of the data.
    fn abort(&mut self);
}

/// The way to a target.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) stream: tunnel::Stream,
    /// What the target said before anything that `stream` has still to give.
    pub(super) early: Bytes,
}

impl From<TcpStream> for Upstream {
    fn from(stream: TcpStream) -> Self {
        Self {
            stream: stream.into(),
            early: Bytes::new(),
        }
    }
}

/// The connection of a client, in the clear or over TLS.
#[derive(Debug)]
pub(super) struct ClientStream {
    io: Io,
    /// Read to find out the protocol, and to be read again.
    ahead: Bytes,
    stalled: Option<Pin<Box<Sleep>>>,
    patience: Duration,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl ClientStream {
    /// A client in the clear, who may take nothing for as long as `patience`.
    pub(super) fn plain(stream: TcpStream, patience: Duration) -> Self {
        Self::new(Io::Plain(stream), patience)
    }

    /// The same over TLS.
    pub(super) fn tls(stream: TlsStream<TcpStream>, patience: Duration) -> Self {
        Self::new(Io::Tls(Box::new(stream)), patience)
    }

    fn new(io: Io, patience: Duration) -> Self {
        Self {
            io,
            ahead: Bytes::new(),
            stalled: None,
            patience,
        }
    }

    /// Whether the client begins with the preface of HTTP/2 (RFC 9113 section 3.4). Waits for no
    /// more bytes than tell.
    pub(super) async fn begins_http2(&mut self) -> io::Result<bool> {
        let mut begin = BytesMut::with_capacity(PREFACE.len());
        while begin.len() < PREFACE.len() && PREFACE.starts_with(&begin) {
            let room = PREFACE.len() - begin.len();
            let mut io = (&mut *self).take(room as u64);
            if io.read_buf(&mut begin).await? == 0 {
                break;
            }
        }
        let is_http2 = *begin == *PREFACE;
        self.ahead = begin.freeze();
        Ok(is_http2)
    }

    fn tcp(&self) -> &TcpStream {
        match &self.io {
            Io::Plain(stream) => stream,
            Io::Tls(stream) => stream.get_ref().0,
        }
    }

    /// A client that never takes what it is sent is given up.
    fn poll_stalled<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Side for ClientStream {
    fn socket(&self) -> Option<&TcpStream> {
        // What was read ahead is not in it, and who takes nothing is found out by writing.
        None
    }
}

impl End for ClientStream {
    fn abort(&mut self) {
        reset_on_close(self.tcp());
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let length = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead[..length]);
            self.ahead.advance(length);
            return Poll::Ready(Ok(()));
        }
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        self.poll_stalled(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        };
        self.poll_stalled(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        };
        self.poll_stalled(cx, shut)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        };
        self.poll_stalled(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
