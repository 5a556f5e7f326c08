//! Why a pool gives no tunnel.

use std::sync::Arc;
use std::time::Duration;

use super::super::error::{HandshakeError, OpenError};
use super::super::request::RequestError;
use super::Stats;

/// Why there is no connection. Every request that waited for it gets the same.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoConnection<E> {
    /// No transport.
    #[error("{0}")]
    Dial(Arc<E>),
    /// A transport, but no HTTP/2 on it.
    #[error("{0}")]
    Handshake(Arc<HandshakeError>),
    /// No transport in time.
    #[error("no connection within {after:?}")]
    Timeout {
        /// The time allowed.
        after: Duration,
    },
}

// Derived, it would ask the same of the error.
impl<E> Clone for NoConnection<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Dial(error) => Self::Dial(Arc::clone(error)),
            Self::Handshake(error) => Self::Handshake(Arc::clone(error)),
            Self::Timeout { after } => Self::Timeout { after: *after },
        }
    }
}

/// Why a pool has given no tunnel. No byte of the workload has been sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError<E> {
    /// Too many wait already.
    #[error("{waiting} requests wait for a connection to it already")]
    Busy {
        /// How many wait.
        waiting: usize,
    },
    /// There is no connection to ask on.
    #[error(transparent)]
    Connect(NoConnection<E>),
    /// There is a connection, and no tunnel came of it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The request cannot be sent to anybody.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The deadline passed while the request waited for a place.
    #[error(
        "no connection was ready for another stream in time ({} are there, with {} streams; {} \
         are being made)",
        .0.connections, .0.streams, .0.dialing
    )]
    Wait(Stats),
}

impl<E> PoolError<E> {
    /// The failure as a metric label: one word out of a fixed list. For [`NoConnection::Dial`] it
    /// is `dial`, of which the dialler's own error knows more.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Busy { .. } => "pool_busy",
            Self::Connect(NoConnection::Dial(_)) => "dial",
            Self::Connect(NoConnection::Handshake(error)) => match &**error {
                HandshakeError::Ended(ended) => ended.reason(),
                HandshakeError::Timeout => "settings_timeout",
            },
            Self::Connect(NoConnection::Timeout { .. }) => "dial_timeout",
            Self::Open(error) => error.reason(),
            Self::Request(_) => "unsendable",
            Self::Wait(_) => "pool_timeout",
        }
    }

    /// How far the request came, as the `phase` label: `dial`, `wait` or `connect`.
    pub fn phase(&self) -> &'static str {
        match self {
            Self::Connect(_) => "dial",
            Self::Busy { .. } | Self::Wait(_) => "wait",
            Self::Open(_) | Self::Request(_) => "connect",
        }
    }

    /// Whether another endpoint of the proxy may do better.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Open(error) => error.retryable(),
            Self::Request(_) => false,
            Self::Busy { .. } | Self::Connect(_) | Self::Wait(_) => true,
        }
    }
}
