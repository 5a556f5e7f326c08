//! Waiting for something to become true, with a deadline and a reason.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Asks `probe` until it gives a value or `timeout` has passed.
pub fn poll<T>(timeout: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = probe() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// As [`poll`] with a condition; panics naming `what` when the time is over.
#[track_caller]
pub fn wait_for(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    let reached = poll(timeout, || condition().then_some(())).is_some();
    assert!(reached, "waited {timeout:?} in vain for: {what}");
}
