//! What a captured connection is, from its first bytes.
//!
//! The workload does not know that we are here, so everything it sent is kept in
//! [`Inspected::bytes`] for the relay, and what is not recognised is [`Seen::Opaque`], which is no
//! fault. Only after the method of an HTTP request is there a wrong and a right: a malformed
//! request is refused ([`InspectError::status`]), because we could not say whose it is.
//!
//! Nothing here is trusted: names are what the workload *claims*.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::timeout;

pub mod client_hello;
mod detect;
pub mod http_head;
#[cfg(test)]
mod sample;
#[cfg(test)]
mod tests;

pub use client_hello::{Alpn, ClientHello};
use detect::{Detector, Stop, Verdict};
pub use http_head::{Form, RequestHead};

use crate::name::Host;

/// The most that is read before a connection must be decided, in bytes.
pub const MAX_BYTES: usize = 16 * 1024;

/// How much one read takes at most, in bytes: more than the ClientHello of a browser.
const CHUNK: usize = 4 * 1024;

/// Reads from `stream` until it is clear what it carries.
///
/// Not cancel safe: what was read is lost with the future.
///
/// # Errors
/// [`InspectError`], when reading fails or an HTTP request cannot be served.
pub async fn inspect<S: AsyncRead + Unpin>(
    stream: &mut S,
    limits: &Limits,
) -> Result<Inspected, InspectError> {
    inspect_by(Detector::default(), stream, limits).await
}

/// As [`inspect`], for a connection that does not carry plain HTTP, whatever it looks like.
///
/// # Errors
/// [`InspectError::Read`].
pub async fn inspect_for_tls<S: AsyncRead + Unpin>(
    stream: &mut S,
    limits: &Limits,
) -> Result<Inspected, InspectError> {
    inspect_by(Detector::for_tls(), stream, limits).await
}

async fn inspect_by<S: AsyncRead + Unpin>(
    mut detector: Detector,
    stream: &mut S,
    limits: &Limits,
) -> Result<Inspected, InspectError> {
    let mut bytes = BytesMut::new();
    // With no time at all the stream is not touched: whether bytes happened to be there already
    // would decide by chance between two treatments of the same workload.
    if limits.first_byte.is_zero() {
        return Ok(Inspected::new(bytes, Seen::Silent));
    }
    match timeout(limits.first_byte, read_more(stream, &mut bytes)).await {
        Err(_) => return Ok(Inspected::new(bytes, Seen::Silent)),
        Ok(Err(error)) => return Err(InspectError::Read(error)),
        Ok(Ok(0)) => return Ok(Inspected::new(bytes, Seen::Closed)),
        Ok(Ok(_)) => {}
    }
    let in_time = timeout(limits.rest, decide(stream, &mut bytes, &mut detector)).await;
    let seen = match in_time {
        Ok(seen) => seen?,
        Err(_) => detector.give_up(Stop::TimedOut(limits.rest))?,
    };
    Ok(Inspected::new(bytes, seen))
}

/// How long [`inspect`] waits. A server that speaks first delays its client by `first_byte`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// For the first byte; zero reads nothing and says [`Seen::Silent`] at once.
    pub first_byte: Duration,
    /// After the first byte, for all the rest of a ClientHello or request head.
    pub rest: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_millis(300),
            rest: Duration::from_secs(5),
        }
    }
}

/// What [`inspect`] found.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// Everything that was read, at most [`MAX_BYTES`]; the relay sends it first.
    pub bytes: Bytes,
    /// What it is.
    pub seen: Seen,
}

impl Inspected {
    fn new(bytes: BytesMut, seen: Seen) -> Self {
        Self {
            bytes: bytes.freeze(),
            seen,
        }
    }

    /// The host that the workload says it wants to speak to, and where it says so. Only the
    /// workload vouches for it, and with [`ClientHello::ech`] it may be a front for another.
    pub fn claimed_host(&self) -> Option<(Host, Source)> {
        match &self.seen {
            Seen::Tls(hello) => {
                let name = hello.server_name.clone()?;
                Some((Host::Name(name), Source::Sni))
            }
            Seen::Http(head) => Some((head.host.clone()?, Source::HttpHost)),
            Seen::Http2 | Seen::Opaque | Seen::Silent | Seen::Closed => None,
        }
    }
}

/// What the first bytes of a connection are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Seen {
    /// A TLS ClientHello.
    Tls(ClientHello),
    /// The head of an HTTP/1 request, not necessarily the only one on this connection.
    Http(RequestHead),
    /// The preface of HTTP/2 in cleartext with prior knowledge (RFC 9113 section 3.4).
    Http2,
    /// Anything else, broken or unfinished TLS included: the server will judge.
    Opaque,
    /// No byte came in time.
    Silent,
    /// The workload ended its sending side before any byte.
    Closed,
}

/// Where a claimed host stood.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Source {
    /// The server name of a ClientHello (RFC 6066 section 3).
    Sni,
    /// The Host field of an HTTP/1 request (RFC 9112 section 3.2).
    HttpHost,
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The connection ended within the head of a request.
    #[error("the HTTP request ended within its head")]
    HeadCutShort,
    /// The head of a request did not come within [`Limits::rest`].
    #[error("the HTTP request head was not complete within {0:?}")]
    HeadTimeout(Duration),
    /// The head of a request is longer than [`MAX_BYTES`].
    #[error("the HTTP request head is longer than {MAX_BYTES} bytes")]
    HeadTooLong,
    /// A request that RFC 9112 does not allow.
    #[error("the HTTP request is malformed: {0}")]
    Malformed(&'static str),
    /// Reading failed, mostly because the workload reset the connection.
    #[error("reading from the workload failed: {0}")]
    Read(#[source] io::Error),
    /// The head of a request has more than [`http_head::MAX_FIELDS`] fields.
    #[error("the HTTP request head has more than {max} fields", max = http_head::MAX_FIELDS)]
    TooManyFields,
}

impl InspectError {
    /// The status to answer the workload's request with; none where nobody is left to hear it.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::HeadCutShort | Self::Malformed(_) => Some(StatusCode::BAD_REQUEST),
            Self::HeadTimeout(_) => Some(StatusCode::REQUEST_TIMEOUT),
            Self::HeadTooLong | Self::TooManyFields => {
                Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
            }
            Self::Read(_) => None,
        }
    }
}

/// Reads on until the detector has come to a verdict. `bytes` is not empty.
async fn decide<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes: &mut BytesMut,
    detector: &mut Detector,
) -> Result<Seen, InspectError> {
    loop {
        let at_least = match detector.look(bytes)? {
            Verdict::Is(seen) => return Ok(seen),
            Verdict::Needs(at_least) => at_least,
        };
        if at_least > MAX_BYTES {
            return detector.give_up(Stop::TooLong);
        }
        while bytes.len() < at_least {
            match read_more(stream, bytes).await {
                Ok(0) => return detector.give_up(Stop::Ended),
                Ok(_) => {}
                Err(error) => return Err(InspectError::Read(error)),
            }
        }
    }
}

/// Appends what one read gives, and says how much that was; 0 is the end. `bytes` stays within
/// [`MAX_BYTES`], and gets its memory only when something has come: most of the time of a silent
/// connection is spent here.
async fn read_more<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes: &mut BytesMut,
) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut chunk = [const { MaybeUninit::uninit() }; CHUNK];
        let room = CHUNK.min(MAX_BYTES.saturating_sub(bytes.len()));
        let mut chunk = ReadBuf::uninit(&mut chunk[..room]);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut chunk))?;
        bytes.extend_from_slice(chunk.filled());
        Poll::Ready(Ok(chunk.filled().len()))
    })
    .await
}
