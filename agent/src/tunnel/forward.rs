//! Connections to a proxy that gets requests, and no tunnel is asked for.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;

use super::connect::{ExchangeError, Refusal};
use super::upstream::{Tried, Turn};
use super::{Attempt, Cause};
use super::{Observer, Request, Stream, TunnelError};

/// A connection to a proxy for requests in absolute form (RFC 9112 section 3.2.2).
#[derive(Debug)]
pub struct Line {
    /// The proxy is at its end.
    pub stream: Stream,
    /// The address of the proxy.
    pub address: Option<SocketAddr>,
    /// The endpoint that it belongs to, as policy has it.
    pub endpoint: Option<Arc<str>>,
    /// What comes of the first request tells how the endpoint does.
    pub trial: Trial,
}

/// A first request, whose outcome is to be told. If it is not, nothing is learnt of the endpoint.
#[derive(Debug)]
pub struct Trial {
    pub(super) turn: Turn,
    pub(super) address: Option<SocketAddr>,
    pub(super) observer: Arc<dyn Observer>,
}

impl Trial {
    /// The proxy answered, whatever it said.
    pub fn answered(self) {
        self.turn.worked(self.address);
    }

    /// The proxy gave no answer, or none that can be read; `reason` is one word out of a fixed list.
    pub fn failed(self, error: &dyn Display, reason: &'static str) {
        self.observer.failed(&self.turn.endpoint().place, reason);
        self.turn.failed(error, self.address, &mut Tried::default());
    }
}

impl TunnelError {
    /// The proxy refuses to forward `request`, which it got at `endpoint` in absolute form.
    pub fn not_forwarded(
        request: &Request<'_>,
        endpoint: Option<Arc<str>>,
        refusal: Refusal,
    ) -> Self {
        let attempt = Attempt {
            endpoint,
            spoken: super::Spoken::Http1Absolute,
            ..Attempt::default()
        };
        let cause = Cause::Connect(ExchangeError::Refused(Box::new(refusal)));
        Self::new(request, attempt, cause)
    }
}
