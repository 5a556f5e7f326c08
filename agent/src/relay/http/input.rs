//! A stream that is read through a buffer, and the head of the next request on it.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::timeout;

use super::head::Request;
use crate::inspect::http_head::find_end;
use crate::inspect::{InspectError, MAX_BYTES};

/// How much one read takes at most, in bytes.
const CHUNK: usize = 16 * 1024;

/// A stream and what has been read of it, but not yet used.
#[derive(Debug)]
pub struct Input<R> {
    io: R,
    buffer: BytesMut,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Input<R> {
    /// `early` was read from `io` before.
    pub fn new(io: R, early: Bytes) -> Self {
        Self {
            io,
            buffer: early.into(),
            ended: false,
        }
    }

    /// The stream, and what has been read of it.
    pub fn into_parts(self) -> (R, Bytes) {
        (self.io, self.buffer.freeze())
    }

    /// What has been read.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer
    }

    /// Whether nothing will come any more.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes out what has been read.
    pub fn take(&mut self) -> Bytes {
        self.buffer.split().freeze()
    }

    pub(in crate::relay) fn consume(&mut self, len: usize) {
        self.buffer.advance(len);
    }

    pub(in crate::relay) fn split_to(&mut self, len: usize) -> Bytes {
        self.buffer.split_to(len).freeze()
    }

    /// Reads once more, and says how much came; 0 is the end. Cancel safe.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// As [`Self::fill`]. The buffer gets its memory only when something has come: most of the
    /// time of an idle connection is spent here.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut chunk = [const { MaybeUninit::uninit() }; CHUNK];
        let mut chunk = ReadBuf::uninit(&mut chunk);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut chunk))?;
        self.buffer.extend_from_slice(chunk.filled());
        self.ended = chunk.filled().is_empty();
        Poll::Ready(Ok(chunk.filled().len()))
    }
}

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the first byte of the next request.
    pub idle: Duration,
    /// From there to the end of its head.
    pub head: Duration,
}

/// Reads the head of the next request. `None`: the client has no more, or has been idle too long.
///
/// # Errors
/// As those of the first request of a connection.
pub async fn next_request<R: AsyncRead + Unpin>(
    input: &mut Input<R>,
    patience: &Patience,
) -> Result<Option<Request>, InspectError> {
    // RFC 9112 section 2.2: an empty line may stand before a request.
    let mut may_skip = true;
    loop {
        if input.buffer.is_empty() {
            // Between requests a connection holds no memory.
            input.buffer = BytesMut::new();
            match timeout(patience.idle, input.fill()).await {
                Err(_) | Ok(Ok(0)) => return Ok(None),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(InspectError::Read(error)),
            }
        }
        if !(may_skip && input.buffer.starts_with(b"\r\n")) {
            break;
        }
        input.consume(2);
        may_skip = false;
    }
    if !input.buffer.first().is_some_and(|first| is_token(*first)) {
        // Another protocol, as a rule, of which no end would come.
        return Err(InspectError::Malformed("the request begins with no method"));
    }
    match timeout(patience.head, rest_of_head(input)).await {
        Ok(head) => Request::parse(&input.split_to(head?)).map(Some),
        Err(_) => Err(InspectError::HeadTimeout(patience.head)),
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Reads until a whole head is there, and says how long it is.
async fn rest_of_head<R: AsyncRead + Unpin>(input: &mut Input<R>) -> Result<usize, InspectError> {
    let mut searched = 0;
    loop {
        if let Some(end) = find_end(&input.buffer, searched) {
            return if end > MAX_BYTES {
                Err(InspectError::HeadTooLong)
            } else {
                Ok(end)
            };
        }
        if input.buffer.len() >= MAX_BYTES {
            return Err(InspectError::HeadTooLong);
        }
        // The last line feed may be one byte back, before a CR.
        searched = input.buffer.len().saturating_sub(2);
        match input.fill().await {
            Ok(0) => return Err(InspectError::HeadCutShort),
            Ok(_) => {}
            Err(error) => return Err(InspectError::Read(error)),
        }
    }
}
