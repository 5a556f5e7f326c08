//! What took how long.

use std::time::Duration;

use tokio::time::Instant;

/// When a phase began, and how long it took.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Took {
    /// Its beginning.
    pub start: Instant,
    /// From there to its end, good or bad.
    pub time: Duration,
}

impl Took {
    /// It ends now.
    pub(super) fn until_now(time: Duration) -> Self {
        let now = Instant::now();
        let start = now.checked_sub(time).unwrap_or(now);
        Self { start, time }
    }
}

/// How long each phase took, the failed one included. A phase that was not reached, or not
/// needed (an address needs no DNS, a connection that was there needs nothing but the request), is
/// `None`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Timings {
    /// Resolving the proxy's name.
    pub dns: Option<Took>,
    /// Connecting to the proxy.
    pub tcp: Option<Took>,
    /// The TLS handshake with the proxy.
    pub tls: Option<Took>,
    /// From the request to the end of the answer's head.
    pub connect: Option<Took>,
}

impl Timings {
    /// Those that were needed, by name, in their order.
    pub fn phases(&self) -> impl Iterator<Item = (&'static str, Took)> {
        let phases = [
            ("dns", self.dns),
            ("tcp", self.tcp),
            ("tls", self.tls),
            ("connect", self.connect),
        ];
        phases
            .into_iter()
            .filter_map(|(name, took)| Some((name, took?)))
    }
}

pub(super) async fn timed<F: Future>(slot: &mut Option<Took>, phase: F) -> F::Output {
    let start = Instant::now();
    let output = phase.await;
    let time = start.elapsed();
    *slot = Some(Took { start, time });
    output
}
