//! A tunnel: one stream of a connection.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::OpenStream;
use super::error::StreamError;

/// How much one write hands on. It is copied; more would only wait longer in one piece.
const MAX_WRITE: usize = 32 * 1024;

/// A tunnel over HTTP/2.
///
/// Reads end where the target ended (END_STREAM); shutting down sends our end of the data. A
/// stream that is dropped before both ends is reset (CANCEL), so that neither peer takes what it
/// has for all there is. A reset by the proxy is an error of kind `ConnectionReset`, except after
/// the end of its data: then it only says that it wants no more of ours (RFC 9113 section 8.1).
///
/// Flushing does nothing: what a write has taken is on its way, as with a TCP socket.
pub struct TunnelStream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// What was taken from `recv` and is not read yet: at most the stream's window.
    chunks: VecDeque<Bytes>,
    /// The end has come, after what is in `chunks`.
    read_end: bool,
    write_end: bool,
    // Both let go of a place, so they must be dropped after the stream has been.
    open: OpenStream,
    lease: Option<Box<dyn Any + Send + Sync>>,
}

impl TunnelStream {
    pub(super) fn new(send: SendStream<Bytes>, recv: RecvStream, open: OpenStream) -> Self {
        Self {
            send,
            recv,
            chunks: VecDeque::new(),
            read_end: false,
            write_end: false,
            open,
            lease: None,
        }
    }

    /// Keeps `lease` until the stream is gone.
    pub(super) fn hold(&mut self, lease: Box<dyn Any + Send + Sync>) {
        self.lease = Some(lease);
    }

    /// Resets the stream (CANCEL), unless it has ended both ways: the peers see an error.
    pub fn abort(&mut self) {
        self.send.send_reset(Reason::CANCEL);
    }

    /// Ready as soon as the stream is broken, also while nobody reads or writes.
    pub fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match ready!(self.reset_reason(cx)) {
            Ok(_) if self.has_all(cx) => Poll::Pending,
            Ok(reason) => Poll::Ready(StreamError::Reset(reason).into()),
            Err(error) => Poll::Ready(error),
        }
    }

    /// Whether the peer has sent the end of its data. Asked after a reset: whatever came before
    /// that is at hand, and nothing more comes.
    fn has_all(&mut self, cx: &mut Context<'_>) -> bool {
        while !self.read_end {
            match self.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(chunk))) => self.chunks.push_back(chunk),
                Poll::Ready(None) => self.read_end = true,
                Poll::Ready(Some(Err(_))) | Poll::Pending => return false,
            }
        }
        true
    }

    /// Takes all that has come; ready when that is something, or there is nothing more to come.
    fn poll_chunks(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.read_end {
            match self.recv.poll_data(cx) {
                // An empty chunk is not the end: proxies send empty DATA frames.
                Poll::Ready(Some(Ok(chunk))) if chunk.is_empty() => {}
                Poll::Ready(Some(Ok(chunk))) => self.chunks.push_back(chunk),
                // The end, or trailers, which mean nothing in a tunnel.
                Poll::Ready(None) => self.read_end = true,
                // An error is told again once what came before it has been read.
                _ if !self.chunks.is_empty() => break,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(self.broken(error))),
                Poll::Pending => return Poll::Pending,
            }
            // Noticed now, the end survives whatever befalls the connection before the next read.
            self.read_end |= self.recv.is_end_stream();
        }
        Poll::Ready(Ok(()))
    }

    fn reset_reason(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Reason>> {
        let polled = self.send.poll_reset(cx);
        polled.map_err(|error| self.broken(error))
    }

    fn broken(&self, error: h2::Error) -> io::Error {
        StreamError::new(error, self.open.ended()).into()
    }

    /// Why nothing more can be sent.
    fn unwritable(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.reset_reason(cx) {
            Poll::Ready(Ok(reason)) if self.wants_no_more(reason, cx) => {
                io::Error::new(io::ErrorKind::BrokenPipe, StreamError::Reset(reason))
            }
            Poll::Ready(Ok(reason)) => StreamError::Reset(reason).into(),
            Poll::Ready(Err(error)) => error,
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }

    /// Whether a reset only means that the peer, which has sent all it had, reads no further.
    fn wants_no_more(&mut self, reason: Reason, cx: &mut Context<'_>) -> bool {
        matches!(reason, Reason::NO_ERROR | Reason::CANCEL) && self.has_all(cx)
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_chunks(cx))?;
        // As many as there are: what they are handed on with costs more than to copy them.
        let room = buf.remaining();
        while let Some(chunk) = this.chunks.front_mut() {
            let len = chunk.len().min(buf.remaining());
            buf.put_slice(&chunk[..len]);
            chunk.advance(len);
            if !chunk.is_empty() {
                break;
            }
            this.chunks.pop_front();
            if this.chunks.is_empty() {
                // A tunnel that is idle holds no room for others.
                this.chunks = VecDeque::new();
            }
        }
        // The one failure would be to release more than came.
        let read = room - buf.remaining();
        let _ = this.recv.flow_control().release_capacity(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.write_end {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.send.reserve_capacity(buf.len().min(MAX_WRITE));
        let mut room = this.send.capacity();
        // Capacity is told of when it grows only, so what is there already comes first.
        while room == 0 {
            room = match ready!(this.send.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                Some(Err(error)) => return Poll::Ready(Err(this.broken(error))),
                None => return Poll::Ready(Err(this.unwritable(cx))),
            };
        }
        let len = room.min(buf.len()).min(MAX_WRITE);
        let data = Bytes::copy_from_slice(&buf[..len]);
        Poll::Ready(match this.send.send_data(data, false) {
            Ok(()) => Ok(len),
            Err(_) => Err(this.unwritable(cx)),
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.write_end {
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(reason) = this.reset_reason(cx) {
            return Poll::Ready(match reason? {
                reason if this.wants_no_more(reason, cx) => {
                    this.write_end = true;
                    Ok(())
                }
                reason => Err(StreamError::Reset(reason).into()),
            });
        }
        if this.send.send_data(Bytes::new(), true).is_err() {
            return Poll::Ready(Err(this.unwritable(cx)));
        }
        this.write_end = true;
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for TunnelStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelStream")
            .field("id", &self.send.stream_id())
            .field("read_end", &self.read_end)
            .field("write_end", &self.write_end)
            .finish_non_exhaustive()
    }
}
