//! The decision what a growing buffer holds, without any input or output.

use std::time::Duration;

use super::client_hello::{self, Incomplete};
use super::http_head::{Found, Search};
use super::{InspectError, Seen};

/// The first bytes of HTTP/2 (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Looks at the same buffer again and again as it grows.
#[derive(Debug, Default)]
pub(super) struct Detector {
    http: Search,
    only_tls: bool,
}

/// What a look gave.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The matter is settled.
    Is(Seen),
    /// Nothing can be said before the buffer holds this many bytes in all.
    Needs(usize),
}

/// Why no more bytes will come.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    /// The workload ended its sending side.
    Ended,
    /// More would be needed than is ever read.
    TooLong,
    /// The time given is over.
    TimedOut(Duration),
}

impl Detector {
    /// One that does not look for HTTP.
    pub(super) fn for_tls() -> Self {
        Self {
            only_tls: true,
            ..Self::default()
        }
    }

    /// Looks at everything read so far; `bytes` begins as it did in the last call.
    pub(super) fn look(&mut self, bytes: &[u8]) -> Result<Verdict, InspectError> {
        if bytes.first() == Some(&client_hello::RECORD_TYPE) {
            return Ok(match client_hello::parse(bytes) {
                Ok(Some(hello)) => Verdict::Is(Seen::Tls(hello)),
                Ok(None) => Verdict::Is(Seen::Opaque),
                Err(Incomplete { at_least }) => Verdict::Needs(at_least),
            });
        }
        if self.only_tls {
            return Ok(Verdict::Is(Seen::Opaque));
        }
        if bytes.starts_with(PREFACE) {
            return Ok(Verdict::Is(Seen::Http2));
        }
        let one_more = Verdict::Needs(bytes.len() + 1);
        if PREFACE.starts_with(bytes) {
            return Ok(one_more);
        }
        Ok(match self.http.look(bytes)? {
            Found::Head(head) => Verdict::Is(Seen::Http(head)),
            Found::OtherProtocol => Verdict::Is(Seen::Opaque),
            Found::Incomplete => one_more,
        })
    }

    /// What an undecided buffer is when it will not grow any more.
    pub(super) fn give_up(&self, stop: Stop) -> Result<Seen, InspectError> {
        if !self.http.has_begun() {
            return Ok(Seen::Opaque);
        }
        Err(match stop {
            Stop::Ended => InspectError::HeadCutShort,
            Stop::TimedOut(limit) => InspectError::HeadTimeout(limit),
            Stop::TooLong => InspectError::HeadTooLong,
        })
    }
}
