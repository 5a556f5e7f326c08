//! The client's end of a tunnel that is a stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::gateway::stream::End;
use crate::sockets::Side;

/// DATA frames both ways; END_STREAM is the end of the data and RST_STREAM a failure (RFC 9113
/// section 8.5). Room in the client's windows is taken only for what is there to be sent, and the
/// client is given room only for what was read, so that each stream waits for its own ends.
pub(super) struct Stream {
    recv: RecvStream,
    /// Shared with whoever watches for a reset; never locked for longer than a call.
    send: Arc<Mutex<SendStream<Bytes>>>,
    unread: Bytes,
    finished: bool,
}

impl Stream {
    pub(super) fn new(recv: RecvStream, send: Arc<Mutex<SendStream<Bytes>>>) -> Self {
        Self {
            recv,
            send,
            unread: Bytes::new(),
            finished: false,
        }
    }
}

impl Side for Stream {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

impl End for Stream {
    fn abort(&mut self) {
        self.send.lock().send_reset(Reason::CONNECT_ERROR);
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => self.unread = data,
                None => return Poll::Ready(Ok(())),
                // It has everything and wants to send no more: as good as an end.
                Some(Err(error)) if self.finished && error.reason() == Some(Reason::NO_ERROR) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(failure(error))),
            }
        }
        let length = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        // Fails only if more is given back than was there.
        let _ = self.recv.flow_control().release_capacity(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut send = self.send.lock();
        send.reserve_capacity(buf.len());
        // Polling tells changes only, so what is there already is to be asked for first.
        while send.capacity() == 0 {
            match ready!(send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(failure(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let length = send.capacity().min(buf.len());
        send.send_data(Bytes::copy_from_slice(&buf[..length]), false)
            .map_err(failure)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection sends what it was given.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.finished {
            let ended = self.send.lock().send_data(Bytes::new(), true);
            ended.map_err(failure)?;
            self.finished = true;
        }
        Poll::Ready(Ok(()))
    }
}

fn failure(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
