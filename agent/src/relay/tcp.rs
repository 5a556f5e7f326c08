//! The relay of opaque bytes, both ways.
//!
//! Both directions share one read buffer per worker thread: a read goes straight on to the other
//! side, and only what that side does not take at once is copied to the heap. So an idle
//! connection owns no buffer, and nothing is allocated as long as the receiver keeps up.
//!
//! Between two TCP sockets, a direction in which much flows has the kernel move the bytes through
//! a [pipe](pipe::Pipe), in the same manner: pipes are few and belong to threads, and only what
//! the other side does not take at once stays in one. Wherever that cannot be, bytes are copied.

mod direction;
mod pipe;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep};

use crate::sockets::Side;
use direction::{BULK_AFTER, Direction, Fault, with_buffer};

/// Relays bytes between `workload` and `upstream` until both have finished sending.
///
/// `to_upstream` was read from the workload before and goes out first; `to_workload` likewise. The
/// end of one side's data is passed on as a half-close, and the other direction goes on. The
/// future reads no more than the receiving side takes.
///
/// The streams remain the caller's. After `Ok` they are to be dropped at once, so that sockets are
/// closed in order: that is how the peer which is the last to be told learns of the end. After an
/// error they are to be reset (see [`crate::sockets::reset_on_close`]), because a FIN would tell
/// both peers that they have all the data.
///
/// # Errors
/// A failure of either side ends both directions, as does silence for longer than `timeouts` has
/// it, counted from the first poll.
pub fn relay<'a, W, U>(
    workload: &'a mut W,
    upstream: &'a mut U,
    to_upstream: Bytes,
    to_workload: Bytes,
    timeouts: &'a Timeouts,
    traffic: &'a Traffic,
) -> impl Future<Output = Result<(), RelayError>> + use<'a, W, U>
where
    W: Side,
    U: Side,
{
    let mut relay = Relay::new(
        workload,
        upstream,
        (to_upstream, to_workload),
        BULK_AFTER,
        timeouts,
        traffic,
    );
    async move { relay.run().await }
}

/// How long a relay waits for bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// Both directions open and no byte in either; an hour unless set.
    pub idle: Duration,
    /// One direction finished and no byte in the other; five minutes unless set. That is longer
    /// than servers commonly let themselves think about a request that ended with a half-close,
    /// and far shorter than the hour for which a peer that vanished after its FIN, and so never
    /// answers ours, would hold both sockets.
    pub half_closed: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(60 * 60),
            half_closed: Duration::from_secs(5 * 60),
        }
    }
}

/// Bytes that a relay has handed on, readable while it runs.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: Counter,
    received: Counter,
}

impl Traffic {
    /// Bytes from the workload that the upstream side has taken.
    pub fn sent(&self) -> u64 {
        self.sent.value()
    }

    /// Bytes from upstream that the workload's side has taken.
    pub fn received(&self) -> u64 {
        self.received.value()
    }

    pub(super) fn add_sent(&self, bytes: usize) {
        self.sent.add(bytes);
    }

    pub(super) fn add_received(&self, bytes: usize) {
        self.received.add(bytes);
    }
}

/// Why a relay ended before both sides had finished.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// One direction had finished and the other was silent for [`Timeouts::half_closed`].
    #[error("half-closed, and no byte from the other side within the half-close timeout")]
    HalfClosed,
    /// No byte in either direction for [`Timeouts::idle`].
    #[error("no byte in either direction within the idle timeout")]
    Idle,
    /// Reading from or writing to the upstream side failed.
    #[error("the connection to upstream failed: {0}")]
    Upstream(#[source] io::Error),
    /// Reading from or writing to the workload failed.
    #[error("the workload's connection failed: {0}")]
    Workload(#[source] io::Error),
}

/// Written by one task only, so a load and a store do for an addition.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, bytes: usize) {
        self.0.store(self.value() + bytes as u64, Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Relay<'a, W, U> {
    workload: &'a mut W,
    upstream: &'a mut U,
    up: Direction,
    down: Direction,
    /// One side could not be written to; what it sent before is still being passed on.
    failure: Option<RelayError>,
    last_activity: Instant,
    timeouts: &'a Timeouts,
    traffic: &'a Traffic,
}

impl<'a, W, U> Relay<'a, W, U>
where
    W: Side,
    U: Side,
{
    fn new(
        workload: &'a mut W,
        upstream: &'a mut U,
        (to_upstream, to_workload): (Bytes, Bytes),
        bulk_after: usize,
        timeouts: &'a Timeouts,
        traffic: &'a Traffic,
    ) -> Self {
        Self {
            workload,
            upstream,
            up: Direction::new(to_upstream, bulk_after),
            down: Direction::new(to_workload, bulk_after),
            failure: None,
            last_activity: Instant::now(),
            timeouts,
            traffic,
        }
    }

    async fn run(&mut self) -> Result<(), RelayError> {
        self.last_activity = Instant::now();
        let mut timer = pin!(sleep(self.patience()));
        poll_fn(|cx| self.poll(cx, timer.as_mut())).await
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        timer: Pin<&mut Sleep>,
    ) -> Poll<Result<(), RelayError>> {
        let (up, down) = with_buffer(|buffer| {
            let down = self.poll_down(cx, buffer);
            (self.poll_up(cx, buffer), down)
        });
        // A side that cannot be written to any more may have sent something before: a server that
        // refuses an upload answers and closes. The workload gets that, as it would without us.
        match down {
            Poll::Ready(Err(Fault::From(error))) => return self.end(RelayError::Upstream(error)),
            Poll::Ready(Err(Fault::To(error))) => {
                self.up.keep_end();
                self.failure.get_or_insert(RelayError::Workload(error));
            }
            _ => {}
        }
        match up {
            Poll::Ready(Err(Fault::From(error))) => return self.end(RelayError::Workload(error)),
            Poll::Ready(Err(Fault::To(error))) => {
                self.down.keep_end();
                self.failure.get_or_insert(RelayError::Upstream(error));
            }
            _ => {}
        }
        if self.up.is_over() && self.down.is_over() {
            return Poll::Ready(self.failure.take().map_or(Ok(()), Err));
        }
        match self.poll_timer(cx, timer) {
            Poll::Ready(error) => self.end(error),
            Poll::Pending => Poll::Pending,
        }
    }

    /// The first failure is the one to report.
    fn end(&mut self, error: RelayError) -> Poll<Result<(), RelayError>> {
        Poll::Ready(Err(self.failure.take().unwrap_or(error)))
    }

    fn poll_up(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<(), Fault>> {
        let sides = (&mut *self.workload, &mut *self.upstream);
        let (is_last, counter) = (self.down.is_over(), &self.traffic.sent);
        self.up.poll(cx, buffer, sides, is_last, counter)
    }

    fn poll_down(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<(), Fault>> {
        let sides = (&mut *self.upstream, &mut *self.workload);
        let (is_last, counter) = (self.up.is_over(), &self.traffic.received);
        self.down.poll(cx, buffer, sides, is_last, counter)
    }

    /// Ready when it has been silent for too long. The timer is left alone while bytes move, and
    /// set to what is left of the time when it fires.
    fn poll_timer(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<RelayError> {
        if self.up.take_activity() | self.down.take_activity() {
            self.last_activity = Instant::now();
        }
        let deadline = self.last_activity + self.patience();
        if deadline < timer.deadline() {
            // Just half-closed: the timer still stands at the idle timeout.
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if deadline <= Instant::now() {
                return Poll::Ready(if self.half_closed() {
                    RelayError::HalfClosed
                } else {
                    RelayError::Idle
                });
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    fn half_closed(&self) -> bool {
        self.up.is_over() || self.down.is_over()
    }

    fn patience(&self) -> Duration {
        let patience = if self.half_closed() {
            self.timeouts.half_closed
        } else {
            self.timeouts.idle
        };
        patience.min(FOREVER)
    }
}

/// Stands for every longer timeout: an `Instant` cannot take all that a `Duration` can say.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

#[cfg(test)]
mod tests;
