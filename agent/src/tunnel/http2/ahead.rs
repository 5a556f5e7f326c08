//! A transport that is read far at a time.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Reads all that there is, up to a bound, for whoever asks for less: the codec of HTTP/2 asks for
/// half a frame at a time. The buffer belongs to the thread; a connection has one only until what
/// is in it has been read.
pub(super) struct ReadAhead<S> {
    transport: S,
    ahead: Option<Ahead>,
}

struct Ahead {
    buffer: Box<[u8]>,
    unread: Range<usize>,
}

impl<S> ReadAhead<S> {
    pub(super) fn new(transport: S) -> Self {
        Self {
            transport,
            ahead: None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut ahead = match this.ahead.take() {
            Some(ahead) => ahead,
            None => {
                let mut buffer = BUFFER
                    .take()
                    .unwrap_or_else(|| vec![0; BUFFER_SIZE].into_boxed_slice());
                let mut read = ReadBuf::new(&mut buffer);
                let polled = Pin::new(&mut this.transport).poll_read(cx, &mut read);
                let unread = 0..read.filled().len();
                if unread.is_empty() {
                    BUFFER.set(Some(buffer));
                    return polled;
                }
                ready!(polled)?;
                Ahead { buffer, unread }
            }
        };
        let len = ahead.unread.len().min(buf.remaining());
        let begin = ahead.unread.start;
        buf.put_slice(&ahead.buffer[begin..begin + len]);
        ahead.unread.start += len;
        if ahead.unread.is_empty() {
            BUFFER.set(Some(ahead.buffer));
        } else {
            this.ahead = Some(ahead);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().transport).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().transport).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_shutdown(cx)
    }
}

/// The size of a thread's buffer: a quarter of it costs a twentieth more.
const BUFFER_SIZE: usize = 256 * 1024;

thread_local! {
    static BUFFER: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, join};

    use super::*;

    #[tokio::test]
    async fn two_on_one_thread_keep_their_bytes_apart() {
        let bytes: Vec<u8> = (0..2 * BUFFER_SIZE).map(|at| (at % 251) as u8).collect();
        let reversed: Vec<u8> = bytes.iter().rev().copied().collect();
        let mut one = ReadAhead::new(join(&bytes[..], tokio::io::sink()));
        let mut other = ReadAhead::new(join(&reversed[..], tokio::io::sink()));
        let (mut from_one, mut from_other) = (Vec::new(), Vec::new());
        let mut some = [0; 5000];
        loop {
            let len = one.read(&mut some[..777]).await.unwrap();
            from_one.extend_from_slice(&some[..len]);
            let other_len = other.read(&mut some).await.unwrap();
            from_other.extend_from_slice(&some[..other_len]);
            if len + other_len == 0 {
                break;
            }
        }
        assert!(from_one == bytes);
        assert!(from_other == reversed);
    }

    #[tokio::test]
    async fn a_buffer_is_held_only_with_bytes_in_it() {
        let (near, mut far) = duplex(100);
        let mut near = ReadAhead::new(near);
        far.write_all(b"three").await.unwrap();
        let mut some = [0; 3];
        near.read_exact(&mut some).await.unwrap();
        assert!(near.ahead.is_some());
        near.read_exact(&mut some[..2]).await.unwrap();
        assert!(near.ahead.is_none());
        drop(far);
        assert_eq!(near.read(&mut some).await.unwrap(), 0);
    }
}
