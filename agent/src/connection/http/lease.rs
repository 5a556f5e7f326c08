//! What a connection to a target may be used for, and its place among those of the target.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::upstream::KEEP_IDLE;
use crate::circuit::{Circuit, Place};

/// What policy allows a connection to a target.
#[derive(Debug)]
pub(super) struct Lease {
    place: Place,
    /// How long it is kept without a request.
    idle: Duration,
    /// How many requests it may serve.
    most: u32,
    served: AtomicU32,
    /// How many at a time, of HTTP/2.
    max_streams: Option<u32>,
}

impl Lease {
    pub(super) fn new(place: Place, circuit: &Circuit) -> Self {
        let http = circuit.settings().map(|settings| settings.http);
        let http = http.unwrap_or_default();
        Self {
            place,
            idle: http.idle_timeout.unwrap_or(KEEP_IDLE),
            most: http.max_requests_per_connection.unwrap_or(u32::MAX),
            served: AtomicU32::new(0),
            max_streams: http.max_streams,
        }
    }

    /// Another request uses it. Gives whether that is the last one.
    pub(super) fn serve(&self) -> bool {
        // Far from where it would be 0 again, since that many are never served.
        self.served.fetch_add(1, Ordering::Relaxed) + 1 >= self.most
    }

    /// Whether it may serve another.
    pub(super) fn is_good(&self) -> bool {
        self.served.load(Ordering::Relaxed) < self.most
    }

    /// How long it is kept without a request.
    pub(super) fn idle(&self) -> Duration {
        self.idle
    }

    /// How many requests it may serve at a time, of as many as the target takes.
    pub(super) fn streams_of(&self, takes: usize) -> usize {
        let most = self.max_streams.and_then(|most| usize::try_from(most).ok());
        most.map_or(takes, |most| most.min(takes))
    }

    /// Whether policy says how many it may serve at a time.
    pub(super) fn limits_streams(&self) -> bool {
        self.max_streams.is_some()
    }

    /// Whether it is not for as many requests as the target takes.
    pub(super) fn is_restricted(&self) -> bool {
        self.limits_streams() || self.most < u32::MAX
    }

    /// Whether somebody waits for its place.
    pub(super) fn is_wanted(&self) -> bool {
        self.place.is_wanted()
    }

    /// Ends when somebody waits for its place.
    pub(super) fn wanted(&self) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        self.place.wanted()
    }
}
