//! When `accept` fails, most of all for want of descriptors.
//!
//! A connection that cannot be accepted stays in the listener's queue, where its workload would
//! wait for ever. So some descriptors are kept in reserve: one of them, given up for a moment, lets
//! the agent accept that connection in order to reset it. Admission leaves descriptors free, so
//! this is for what else may use them up: other processes, or a limit that was lowered.

use std::fs::File;
use std::future::ready;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::dup3;
use tokio::time::sleep;

use crate::capture::{Incoming, Listener};
use crate::connection::Way;
use crate::limits::Refusal;

/// When nothing could be done about a failed `accept`.
const PAUSE: Duration = Duration::from_millis(50);

/// Between two lines of the log about it.
const QUIET: Duration = Duration::from_secs(1);

/// Descriptors in reserve. One would do, if nobody else could take it in the moment between its
/// being given up and `accept`.
const SPARES: usize = 4;

/// What a listener does about an `accept` that failed.
#[derive(Debug)]
pub(super) struct Shedder {
    /// What the spare ones are duplicates of; it has no other use.
    idle: Option<File>,
    spares: Vec<OwnedFd>,
    log: Throttle,
}

impl Shedder {
    pub(super) fn new() -> Self {
        let mut shedder = Self {
            idle: File::open("/dev/null").ok(),
            spares: Vec::with_capacity(SPARES),
            log: Throttle::default(),
        };
        shedder.refill();
        shedder
    }

    /// To be called with the error of each failed `accept`, before the next one.
    pub(super) async fn failed(&mut self, error: io::Error, listener: &Listener, way: &Way) {
        if let Some(times) = self.log.line(Instant::now()) {
            tracing::error!(%error, times, "cannot accept connections");
        }
        match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
            // Of that connection alone; the next may be well.
            Errno::ECONNABORTED | Errno::ECONNRESET | Errno::EPROTO => return,
            Errno::EMFILE | Errno::ENFILE if !self.spares.is_empty() => {
                self.shed(listener, way).await;
            }
            _ => sleep(PAUSE).await,
        }
        self.refill();
    }

    /// Accepts and resets the connection at the head of the queue, if there is one: `accept`
    /// finds that it has no descriptor before it looks into the queue.
    async fn shed(&mut self, listener: &Listener, way: &Way) {
        drop(self.spares.pop());
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = ready(()) => return,
        };
        match accepted {
            Ok(Incoming::Redirected(accepted)) => {
                way.refuse(&accepted, Refusal::descriptors());
                // The connection's descriptor becomes the spare one in one step, which closes it;
                // in two, a connection that waits to be dialled would be faster.
                if let (Some(idle), Ok(stream)) = (&self.idle, accepted.stream.into_std()) {
                    let mut spare = OwnedFd::from(stream);
                    if dup3(idle, &mut spare, OFlag::O_CLOEXEC).is_ok() {
                        self.spares.push(spare);
                    }
                }
            }
            Ok(Incoming::Stranger(_)) => way.metrics.capture.original_destination_missed(),
            // Somebody was faster after all; the next `accept` fails again and says so.
            Err(_) => sleep(PAUSE).await,
        }
    }

    /// Gets back what was lost, as far as there is anything to be had.
    fn refill(&mut self) {
        let Some(idle) = &self.idle else { return };
        while self.spares.len() < SPARES
            && let Ok(spare) = idle.try_clone()
        {
            self.spares.push(spare.into());
        }
    }
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
