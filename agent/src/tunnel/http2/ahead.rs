//! Reading far at a time.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Reads all that a transport has, up to a bound, for whoever asks for less: the codec of HTTP/2 asks
/// for half a frame at a time. The buffer belongs to the thread; a connection has one only until what
/// is in it has been read.
#[derive(Default)]
pub(super) struct ReadAhead(Option<Ahead>);

struct Ahead {
    buffer: Box<[u8]>,
    unread: Range<usize>,
}

impl ReadAhead {
    /// As `poll_read` of the transport, which is always the same.
    pub(super) fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        transport: &mut S,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut ahead = match self.0.take() {
            Some(ahead) => ahead,
            None => {
                let mut buffer = BUFFER
                    .take()
                    .unwrap_or_else(|| vec![0; BUFFER_SIZE].into_boxed_slice());
                let mut read = ReadBuf::new(&mut buffer);
                let polled = Pin::new(transport).poll_read(cx, &mut read);
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
            self.0 = Some(ahead);
        }
        Poll::Ready(Ok(()))
    }
}

/// The size of a thread's buffer: a quarter of it costs a twentieth more.
const BUFFER_SIZE: usize = 256 * 1024;

thread_local! {
    static BUFFER: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncWriteExt as _, duplex};

    use super::*;

    /// How much was read into `some`.
    async fn read<S: AsyncRead + Unpin>(
        ahead: &mut ReadAhead,
        transport: &mut S,
        some: &mut [u8],
    ) -> usize {
        let mut buf = ReadBuf::new(some);
        let reading = poll_fn(|cx| ahead.poll_read(transport, cx, &mut buf));
        reading.await.unwrap();
        buf.filled().len()
    }

    #[tokio::test]
    async fn two_on_one_thread_keep_their_bytes_apart() {
        let bytes: Vec<u8> = (0..2 * BUFFER_SIZE).map(|at| (at % 251) as u8).collect();
        let reversed: Vec<u8> = bytes.iter().rev().copied().collect();
        let (mut one, mut other) = (ReadAhead::default(), ReadAhead::default());
        let (mut to_one, mut to_other) = (&bytes[..], &reversed[..]);
        let (mut from_one, mut from_other) = (Vec::new(), Vec::new());
        let mut some = [0; 5000];
        loop {
            let len = read(&mut one, &mut to_one, &mut some[..777]).await;
            from_one.extend_from_slice(&some[..len]);
            let other_len = read(&mut other, &mut to_other, &mut some).await;
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
        let (mut near, mut far) = duplex(100);
        let mut ahead = ReadAhead::default();
        far.write_all(b"three").await.unwrap();
        let mut some = [0; 3];
        assert_eq!(read(&mut ahead, &mut near, &mut some).await, 3);
        assert!(ahead.0.is_some());
        assert_eq!(read(&mut ahead, &mut near, &mut some[..2]).await, 2);
        assert!(ahead.0.is_none());
        drop(far);
        assert_eq!(read(&mut ahead, &mut near, &mut some).await, 0);
    }
}
