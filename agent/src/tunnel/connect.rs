//! The HTTP/1.1 CONNECT exchange (RFC 9110 section 9.3.6) on any stream.

mod page;

use std::fmt::Write;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderName, HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::answer::{self, Answer, BadAnswer, BodyLength, MAX_HEAD, Scanner};
use crate::name::Target;
use crate::policy::Credentials;

/// Room for the first read: an ordinary answer fits.
const FIRST_READ: usize = 1024;

/// Interim answers (100 to 199) that are passed over.
pub(super) const MAX_INTERIM: usize = 16;

/// How much of the body of a refusal is read, and for how long.
const MAX_BODY: usize = 16 * 1024;
pub(super) const BODY_TIME: Duration = Duration::from_secs(1);

/// How much is kept of what the body says.
const MAX_TEXT: usize = 1024;

/// The request for a tunnel to `target`, to be sent as it is.
///
/// `headers` are sent as well, in this order. They are none of those that stand here already, and
/// none that frames a message; policy sees to that.
pub fn request(
    target: &Target,
    headers: &[(HeaderName, HeaderValue)],
    credentials: Option<&Credentials>,
) -> Vec<u8> {
    let version = env!("CARGO_PKG_VERSION");
    let mut request = format!(
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: underpass/{version}\r\n"
    )
    .into_bytes();
    let mut add = |name: &[u8], value: &[u8]| {
        for part in [name, b": ", value, b"\r\n"] {
            request.extend_from_slice(part);
        }
    };
    for (name, value) in headers {
        add(name.as_ref(), value.as_bytes());
    }
    if let Some(credentials) = credentials {
        add(b"Proxy-Authorization", credentials.header().as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request
}

/// What a proxy says that opens a tunnel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Opened {
    /// The status code, 200 to 299.
    pub code: u16,
    /// What came after the head: it is the target's. `Content-Length` and `Transfer-Encoding` of
    /// such an answer mean nothing.
    pub early: Bytes,
}

/// Sends `request` in one write and reads the answer, all until `deadline`.
///
/// # Errors
/// See [`ExchangeError`]; `stream` is of no use afterwards.
pub async fn exchange<S>(
    stream: &mut S,
    request: &[u8],
    deadline: Instant,
) -> Result<Opened, ExchangeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buf = BytesMut::with_capacity(FIRST_READ);
    let mut received = 0;
    let head = async {
        stream
            .write_all(request)
            .await
            .map_err(ExchangeError::Write)?;
        stream.flush().await.map_err(ExchangeError::Write)?;
        final_answer(stream, &mut buf, &mut received).await
    };
    let Ok(answer) = timeout_at(deadline, head).await else {
        return Err(ExchangeError::Timeout { received });
    };
    let answer = answer?;
    if (200..300).contains(&answer.code) {
        // An empty part of a buffer holds the buffer, as long as the tunnel stands.
        let early = if buf.is_empty() {
            Bytes::new()
        } else {
            buf.freeze()
        };
        return Ok(Opened {
            code: answer.code,
            early,
        });
    }
    let body_deadline = deadline.min(Instant::now() + BODY_TIME);
    let body = body_text(stream, buf, answer.body, body_deadline).await;
    Err(ExchangeError::Refused(Box::new(Refusal {
        code: answer.code,
        reason: answer.reason,
        schemes: answer.schemes,
        body,
    })))
}

/// Reads until an answer that is not interim; what follows its head stays in `buf`.
async fn final_answer<S: AsyncRead + Unpin>(
    stream: &mut S,
    buf: &mut BytesMut,
    received: &mut usize,
) -> Result<Answer, ExchangeError> {
    let mut scanner = Scanner::default();
    let mut passed_over = 0;
    let mut interim = 0;
    loop {
        if !buf.is_empty()
            && let Some(answer) = scanner.parse(buf)?
        {
            buf.advance(answer.len);
            passed_over += answer.len;
            if passed_over > MAX_HEAD {
                return Err(BadAnswer::TooLong.into());
            }
            // 101 is final: nothing of HTTP follows it (RFC 9110 section 15.2.2).
            if answer.code >= 200 || answer.code == 101 {
                return Ok(answer);
            }
            interim += 1;
            if interim > MAX_INTERIM {
                return Err(ExchangeError::TooManyInterim);
            }
            scanner = Scanner::default();
            continue;
        }
        if buf.capacity() == buf.len() {
            // Doubles, and no further than a head may grow.
            buf.reserve(buf.len().clamp(FIRST_READ, MAX_HEAD));
        }
        match stream.read_buf(buf).await {
            Ok(read) if read > 0 => *received += read,
            // In TLS an end without close_notify; the answer is not complete either way.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(ExchangeError::Read(error));
            }
            _ => {
                return Err(ExchangeError::ClosedEarly {
                    received: *received,
                });
            }
        }
    }
}

/// What the body of a refusal says, as one printable line. Whatever keeps it from being read
/// takes nothing from the refusal.
pub(super) async fn body_text<S: AsyncRead + Unpin>(
    stream: &mut S,
    mut raw: BytesMut,
    length: BodyLength,
    deadline: Instant,
) -> String {
    while raw.len() < MAX_BODY && !is_complete(&raw, length) {
        let room = MAX_BODY - raw.len();
        raw.reserve(room);
        let mut limited = (&mut *stream).take(room as u64);
        match timeout_at(deadline, limited.read_buf(&mut raw)).await {
            Ok(Ok(read)) if read > 0 => {}
            _ => break,
        }
    }
    raw.truncate(MAX_BODY);
    let body = match length {
        BodyLength::Chunked => dechunked(&raw).0,
        BodyLength::Known(length) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            raw[..raw.len().min(length)].to_vec()
        }
        BodyLength::UntilClose => raw.to_vec(),
    };
    let text = page::text(&String::from_utf8_lossy(&body));
    let mut line = String::new();
    for word in text.split_whitespace() {
        if line.len() >= MAX_TEXT {
            break;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        for c in word.chars().take(MAX_TEXT - line.len()) {
            match c {
                '"' | '\'' | '\\' => line.push(c),
                // Escapes what does not print, marks of text direction too.
                _ => line.extend(c.escape_debug()),
            }
        }
    }
    line
}

fn is_complete(raw: &[u8], length: BodyLength) -> bool {
    match length {
        BodyLength::Chunked => dechunked(raw).1,
        BodyLength::Known(length) => raw.len() as u64 >= length,
        BodyLength::UntilClose => false,
    }
}

/// The data in the chunks at hand, and whether no more is to come. What is not chunked although
/// it says so is taken as it stands.
fn dechunked(raw: &[u8]) -> (Vec<u8>, bool) {
    let mut data = Vec::new();
    let mut rest = raw;
    loop {
        match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete((_, 0))) => return (data, true),
            Ok(httparse::Status::Complete((start, size))) => {
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                let end = start.saturating_add(size);
                let Some(chunk) = rest.get(start..end) else {
                    data.extend_from_slice(&rest[start..]);
                    return (data, false);
                };
                data.extend_from_slice(chunk);
                // The line end after the data.
                rest = rest.get(end + 2..).unwrap_or_default();
            }
            Ok(httparse::Status::Partial) => return (data, false),
            Err(_) => {
                data.extend_from_slice(rest);
                return (data, false);
            }
        }
    }
}

/// An answer that does not open a tunnel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The status code; never 200 to 299.
    pub code: u16,
    /// The reason phrase, shortened; printable ASCII.
    pub reason: String,
    /// The authentication schemes offered.
    pub schemes: Vec<String>,
    /// What the body says, without tags if it is a page, cut after about 1 KiB, as one printable
    /// line.
    pub body: String,
}

impl Refusal {
    /// A demand for credentials (RFC 9110 section 15.5.8), with the values of Proxy-Authenticate.
    pub fn challenge<'a>(reason: &[u8], offers: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut schemes = Vec::new();
        for offer in offers {
            answer::add_schemes(&mut schemes, offer);
        }
        Self {
            code: 407,
            reason: answer::shown(reason),
            schemes,
            body: String::new(),
        }
    }

    /// Whether it is about credentials. Some proxies say 401 to a wrong password, as servers do.
    pub fn wants_credentials(&self) -> bool {
        matches!(self.code, 401 | 407)
    }

    /// Code and reason phrase.
    pub fn status(&self) -> String {
        let mut status = self.code.to_string();
        if !self.reason.is_empty() {
            // Writing to a string does not fail.
            let _ = write!(status, " {}", self.reason);
        }
        status
    }
}

/// Why an exchange did not open a tunnel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// What came is no answer.
    #[error(transparent)]
    BadAnswer(#[from] BadAnswer),
    /// The proxy closed the connection.
    #[error("it closed the connection after {received} bytes, before its answer was complete")]
    ClosedEarly {
        /// How much of an answer had come.
        received: usize,
    },
    /// The connection broke while the answer was awaited.
    #[error("the connection broke before its answer was complete: {0}")]
    Read(io::Error),
    /// The proxy said no.
    #[error("it answered {}", .0.status())]
    Refused(Box<Refusal>),
    /// The deadline passed.
    #[error("it did not answer CONNECT in time ({received} bytes came)")]
    Timeout {
        /// How much of an answer had come.
        received: usize,
    },
    /// Interim answers without end.
    #[error("it sent more than {MAX_INTERIM} interim answers (1xx)")]
    TooManyInterim,
    /// The connection broke while the request was sent.
    #[error("the connection broke while CONNECT was sent: {0}")]
    Write(io::Error),
}

impl ExchangeError {
    /// Whether the connection ended without an answer, as one does that was idle for too long.
    pub fn is_unanswered(&self) -> bool {
        matches!(
            self,
            Self::ClosedEarly { received: 0 } | Self::Read(_) | Self::Write(_)
        )
    }
}

#[cfg(test)]
mod tests;
