//! When `accept` fails, most of all for want of descriptors.
//!
//! A connection that cannot be accepted stays in the listener's queue, where its workload would
//! wait for ever. So a descriptor is kept in reserve: given up for a moment, it lets the agent
//! accept that connection in order to reset it.

use std::fs::File;
use std::future::ready;
use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio::time::sleep;

use crate::capture::{Incoming, Listener};
use crate::connection::Way;
use crate::limits::Refusal;

/// When nothing could be done about a failed `accept`.
const PAUSE: Duration = Duration::from_millis(50);

/// Between two lines of the log about it.
const QUIET: Duration = Duration::from_secs(1);

/// What a listener does about an `accept` that failed.
#[derive(Debug)]
pub(super) struct Shedder {
    spare: Option<File>,
    log: Throttle,
}

impl Shedder {
    pub(super) fn new() -> Self {
        Self {
            spare: spare(),
            log: Throttle::default(),
        }
    }

    /// To be called with the error of each failed `accept`, before the next one.
    pub(super) async fn failed(&mut self, error: io::Error, listener: &Listener, way: &Way) {
        if let Some(times) = self.log.line(Instant::now()) {
            tracing::error!(%error, times, "cannot accept connections");
        }
        match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
            // Of that connection alone; the next may be well.
            Errno::ECONNABORTED | Errno::ECONNRESET | Errno::EPROTO => return,
            Errno::EMFILE | Errno::ENFILE if self.spare.take().is_some() => {
                shed(listener, way).await;
            }
            _ => sleep(PAUSE).await,
        }
        // Somebody else may have been faster; then there is another chance at the next failure.
        self.spare = self.spare.take().or_else(spare);
    }
}

/// Accepts and resets the connection at the head of the queue, if there is one: `accept` finds
/// that it has no descriptor before it looks into the queue.
async fn shed(listener: &Listener, way: &Way) {
    let accepted = tokio::select! {
        biased;
        accepted = listener.accept() => accepted,
        () = ready(()) => return,
    };
    match accepted {
        Ok(Incoming::Redirected(accepted)) => way.refuse(&accepted, Refusal::descriptors()),
        Ok(Incoming::Stranger(_)) => way.metrics.capture.original_destination_missed(),
        // It was the last but one failure's turn to be logged; the next `accept` says it again.
        Err(_) => sleep(PAUSE).await,
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Lets one line a second through and counts the others.
#[derive(Debug, Default)]
struct Throttle {
    last: Option<Instant>,
    times: u64,
}

impl Throttle {
    /// Something happened: how often it did since the last line, if it is time for one.
    fn line(&mut self, now: Instant) -> Option<u64> {
        self.times += 1;
        if self.last.is_some_and(|last| now < last + QUIET) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_with_the_count_of_all() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        assert_eq!(throttle.line(start), Some(1));
        for _ in 0..99 {
            assert_eq!(throttle.line(start + QUIET / 2), None);
        }
        assert_eq!(throttle.line(start + QUIET), Some(100));
        assert_eq!(throttle.line(start + QUIET), None);
    }
}
