//! A connection on which the peer has said everything beforehand.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What comes after the last piece.
#[derive(Clone, Copy)]
pub(super) enum End {
    Closed,
    Reset,
    Silent,
}

/// Gives its pieces one per read, and remembers each write.
pub(super) struct Wire {
    pieces: VecDeque<Vec<u8>>,
    end: End,
    pub(super) written: Vec<Vec<u8>>,
    pub(super) read: usize,
}

impl Wire {
    pub(super) fn new<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, end: End) -> Self {
        Self {
            // An empty read would say that the connection is closed.
            pieces: pieces
                .into_iter()
                .filter(|piece| !piece.is_empty())
                .map(<[u8]>::to_vec)
                .collect(),
            end,
            written: Vec::new(),
            read: 0,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(mut piece) = self.pieces.pop_front() else {
            return match self.end {
                End::Closed => Poll::Ready(Ok(())),
                End::Reset => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                End::Silent => Poll::Pending,
            };
        };
        let rest = piece.split_off(piece.len().min(buf.remaining()));
        buf.put_slice(&piece);
        self.read += piece.len();
        if !rest.is_empty() {
            self.pieces.push_front(rest);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written.push(buf.to_vec());
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
