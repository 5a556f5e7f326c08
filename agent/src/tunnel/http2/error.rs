//! Why there is no connection, no stream, or no more of a stream.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use h2::Reason;

use crate::tunnel::connect::{ExchangeError, Refusal};

/// Why a transport did not become a connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// It ended, or what came is no HTTP/2.
    #[error("it does not speak HTTP/2, or not for long: {0}")]
    Ended(Ended),
    /// The deadline passed before the proxy's SETTINGS came.
    #[error("it sent no HTTP/2 SETTINGS in time: does it speak HTTP/2 on this port?")]
    Timeout,
}

/// How a connection came to its end.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Ended {
    /// The proxy closed it, in order.
    #[error("the proxy closed the connection")]
    Closed,
    /// It broke, or the proxy broke the rules of HTTP/2.
    #[error("the HTTP/2 connection to the proxy failed: {0}")]
    Failed(Arc<h2::Error>),
    /// The proxy was silent although asked.
    #[error("the proxy has been silent, and did not answer a PING within {after:?}")]
    Silent {
        /// How long was waited for the answer.
        after: Duration,
    },
}

impl Ended {
    /// The end as a metric label: one word out of a fixed list.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Closed => "closed_early",
            Self::Failed(error) if error.is_io() => match error.get_io().map(io::Error::kind) {
                Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => "reset",
                _ => "broken",
            },
            Self::Failed(error) if error.is_remote() => "closed_early",
            Self::Failed(_) => "malformed",
            Self::Silent { .. } => "ping_timeout",
        }
    }
}

/// Why a request opened no tunnel. No byte of the workload has been sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The proxy said no, or nothing of use, as on an HTTP/1.1 connection.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The connection ended before the answer.
    #[error("no answer came: {0}")]
    Lost(Ended),
    /// The answer breaks the rules of HTTP/2.
    #[error("its answer breaks the rules of HTTP/2 ({0})")]
    Malformed(Reason),
    /// The proxy has not looked at the request, and says so, or it was not even sent.
    #[error("it did not take the request: {0}")]
    NotTaken(#[from] NotTaken),
    /// The proxy reset the stream instead of an answer.
    #[error("it reset the stream before an answer: {0}")]
    Reset(Reason),
}

/// Why a request was not taken; elsewhere it may be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotTaken {
    /// The connection takes no streams any more (GOAWAY, RFC 9113 section 6.8).
    #[error("the connection is going away ({0})")]
    GoAway(Reason),
    /// The connection had ended already, or has carried all streams that it can.
    #[error("the connection takes no more streams: {0}")]
    Gone(Arc<h2::Error>),
    /// This stream was refused (REFUSED_STREAM, RFC 9113 section 8.7).
    #[error("the stream was refused")]
    RefusedStream,
}

impl NotTaken {
    /// What a request failed with before it was sent.
    pub(super) fn unsent(error: h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_go_away() && error.is_remote() => Self::GoAway(reason),
            _ => Self::Gone(Arc::new(error)),
        }
    }
}

impl OpenError {
    /// What the answer to a request that was sent failed with.
    pub(super) fn awaiting(error: h2::Error, ended: Option<Ended>) -> Self {
        let reason = error.reason().unwrap_or(Reason::PROTOCOL_ERROR);
        if error.is_reset() {
            return match reason {
                _ if !error.is_remote() => Self::Malformed(reason),
                Reason::REFUSED_STREAM => Self::NotTaken(NotTaken::RefusedStream),
                _ => Self::Reset(reason),
            };
        }
        if error.is_go_away() && error.is_remote() {
            // Streams that the GOAWAY leaves alone end in their own way.
            return Self::NotTaken(NotTaken::GoAway(reason));
        }
        Self::Lost(ended.unwrap_or_else(|| Ended::Failed(Arc::new(error))))
    }

    /// The proxy's refusal, if it said no.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Exchange(ExchangeError::Refused(refusal)) => Some(refusal),
            _ => None,
        }
    }

    /// Whether another connection, or another endpoint, may do better.
    pub fn retryable(&self) -> bool {
        self.refusal()
            .is_none_or(|refusal| matches!(refusal.code, 502..=504))
    }

    /// The failure as a metric label: one word out of a fixed list, that of the tunnels over
    /// HTTP/1.1 with `goaway`, `stream_refused` and `ping_timeout`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Exchange(error) => match error {
                ExchangeError::Refused(refusal) if refusal.wants_credentials() => "auth_required",
                ExchangeError::Refused(_) => "refused",
                ExchangeError::Timeout { .. } => "connect_timeout",
                ExchangeError::ClosedEarly { .. } => "closed_early",
                ExchangeError::Read(_) | ExchangeError::Write(_) => "broken",
                ExchangeError::BadAnswer(_) | ExchangeError::TooManyInterim => "malformed",
            },
            Self::Lost(ended) => ended.reason(),
            Self::Malformed(_) => "malformed",
            Self::NotTaken(NotTaken::GoAway(_) | NotTaken::Gone(_)) => "goaway",
            Self::NotTaken(NotTaken::RefusedStream) => "stream_refused",
            Self::Reset(_) => "reset",
        }
    }
}

/// Why a tunnel broke; the source of the [`io::Error`] that its stream gives, whose kind is
/// `ConnectionReset`, or `BrokenPipe` where the proxy has all that it wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The connection that carried it ended.
    #[error("{0}")]
    Ended(Ended),
    /// We reset it, as the proxy broke the rules of HTTP/2 on it, or it was aborted.
    #[error("the stream was given up ({0})")]
    GivenUp(Reason),
    /// The proxy reset it.
    #[error("the proxy reset the stream: {0}")]
    Reset(Reason),
}

impl StreamError {
    pub(super) fn new(error: h2::Error, ended: Option<Ended>) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() && error.is_remote() => Self::Reset(reason),
            Some(reason) if error.is_reset() => Self::GivenUp(reason),
            _ => Self::Ended(ended.unwrap_or_else(|| Ended::Failed(Arc::new(error)))),
        }
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        Self::new(io::ErrorKind::ConnectionReset, error)
    }
}
