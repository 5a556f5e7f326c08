//! The connections of a proxy that speaks HTTP/2.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::line::Line;
use crate::tunnel::http2::{Dial, Ended};
use crate::tunnel::{Attempt, Cause, Stream, Timings};

/// Makes the connections of a pool; its keys are the numbers of the endpoints.
pub(super) struct Dialer {
    pub(super) line: Arc<Line>,
    pub(super) endpoints: Arc<[Arc<Endpoint>]>,
    /// Whether the proxy may choose HTTP/1.1.
    pub(super) falls_back: bool,
}

/// What is told of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub(super) addr: Option<SocketAddr>,
    pub(super) timings: Timings,
}

/// Why there is no HTTP/2 connection.
#[derive(Debug)]
pub struct NotMade {
    pub(in crate::tunnel) attempt: Attempt,
    /// `None`: there is one, and the proxy chose HTTP/1.1; it is kept warm.
    pub(in crate::tunnel) cause: Option<Cause>,
}

impl NotMade {
    /// Whether there is a connection, for HTTP/1.1.
    pub(super) fn chose_http1(&self) -> bool {
        self.cause.is_none()
    }
}

impl fmt::Display for NotMade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Some(cause) => cause.fmt(f),
            None => f.write_str("it chose HTTP/1.1 (ALPN), and HTTP/2 is wanted"),
        }
    }
}

// The cause is part of the text.
impl std::error::Error for NotMade {}

impl Dial for Dialer {
    type Key = usize;
    type Transport = Stream;
    type Info = Made;
    type Error = NotMade;

    async fn dial(&self, key: &usize, deadline: Instant) -> Result<(Stream, Made), NotMade> {
        let mut attempt = Attempt::default();
        let endpoint = &self.endpoints[*key];
        let connected = self.line.connect(endpoint, deadline, &mut attempt).await;
        let stream = match connected {
            Ok(stream) => stream,
            Err(cause) => {
                return Err(NotMade {
                    attempt,
                    cause: Some(cause),
                });
            }
        };
        // Without TLS it is known, or believed, that it speaks HTTP/2 (RFC 9113 section 3.3). A
        // server inside TLS that chooses nothing does not know ALPN, and so not HTTP/2 either.
        if self.line.tls().is_some() && stream.alpn() != Some(b"h2") {
            if self.falls_back {
                endpoint.chose_http1(true);
                endpoint.warm.put(endpoint, stream);
            }
            return Err(NotMade {
                attempt,
                cause: None,
            });
        }
        let made = Made {
            addr: attempt.address,
            timings: attempt.timings,
        };
        Ok((stream, made))
    }

    fn ended(&self, key: &usize, made: &Made, ended: &Ended) {
        let place = &self.endpoints[*key].place;
        match ended {
            Ended::Closed => {
                tracing::debug!(proxy = %place.proxy, address = ?made.addr, "connection closed");
            }
            _ => tracing::info!(
                proxy = %place.proxy,
                endpoint = %place.endpoint,
                address = ?made.addr,
                error = %ended,
                "connection lost"
            ),
        }
    }
}
