//! How long to wait before the API is asked again.

use std::time::Duration;

/// After the first failure, and at most.
const FIRST: Duration = Duration::from_millis(500);
const MOST: Duration = Duration::from_secs(15);

/// Waits that double, each with a part left to chance: many nodes lose the API at the same moment.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Backoff {
    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (self.0 * 2).min(MOST);
        wait.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// It went well.
    pub(super) fn reset(&mut self) {
        self.0 = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_begin_anew() {
        let mut backoff = Backoff::default();
        for expected in [500, 1000, 2000, 4000, 8000, 15_000, 15_000] {
            let wait = backoff.next();
            let most = Duration::from_millis(expected);
            assert!(wait >= most / 2 && wait <= most, "{wait:?} of {most:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
