//! What took how long.

use std::time::Duration;

use tokio::time::Instant;

/// How long each phase took, the failed one included. A phase that was not reached, or not
/// needed (an address needs no DNS, a connection that was there needs nothing but the request), is
/// `None`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Timings {
    /// Resolving the proxy's name.
    pub dns: Option<Duration>,
    /// Connecting to the proxy.
    pub tcp: Option<Duration>,
    /// The TLS handshake with the proxy.
    pub tls: Option<Duration>,
    /// From the request to the end of the answer's head.
    pub connect: Option<Duration>,
}

pub(super) async fn timed<F: Future>(slot: &mut Option<Duration>, phase: F) -> F::Output {
    let start = Instant::now();
    let output = phase.await;
    *slot = Some(start.elapsed());
    output
}
