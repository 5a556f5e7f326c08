//! What a DestinationRule says of a target.

use std::sync::Arc;
use std::time::Duration;

/// Limits on the connections and requests to a target, and when it is refused. What is not set is
/// not bounded here; the agent has limits of its own.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TargetSettings {
    /// The DestinationRule; unset: none says anything.
    pub policy: Option<Arc<str>>,
    /// Connections at a time.
    pub max_connections: Option<u32>,
    /// How long it may take until the tunnel is open and TLS is spoken in it.
    pub connect_timeout: Option<Duration>,
    /// How long nothing may move in either direction; `Some(None)`: for ever.
    pub idle_timeout: Option<Option<Duration>>,
    /// Of requests.
    pub http: HttpSettings,
    /// When it is refused.
    pub outliers: Option<Outliers>,
}

/// Limits on requests of HTTP, whatever its version.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct HttpSettings {
    /// Requests that wait for a connection.
    pub max_pending: Option<u32>,
    /// Requests at a time.
    pub max_requests: Option<u32>,
    /// Requests on one connection, after which it is closed.
    pub max_requests_per_connection: Option<u32>,
    /// Retries at a time.
    pub max_retries: Option<u32>,
    /// How long a connection without a request is kept.
    pub idle_timeout: Option<Duration>,
    /// Whether requests of HTTP/1.1 become requests of HTTP/2.
    pub upgrades: bool,
    /// Streams at a time on one connection of HTTP/2.
    pub max_streams: Option<u32>,
}

/// When a target is refused for a while: it has failed so many times in a row. Of each count 0 is
/// never.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Outliers {
    /// Answers of 500 to 599, and failures to get one unless they are counted apart.
    pub failures: u32,
    /// The same, but of answers only 502, 503 and 504.
    pub gateway_failures: u32,
    /// Failures to get an answer; unset: they are not counted apart.
    pub local_failures: Option<u32>,
    /// For how long, times the number of ejections that are not forgotten.
    pub base: Duration,
    /// After how long without a failure one ejection is forgotten.
    pub interval: Duration,
    /// Whether it is refused at all.
    pub ejects: bool,
}

impl Default for Outliers {
    /// As Envoy has it.
    fn default() -> Self {
        Self {
            failures: 5,
            gateway_failures: 0,
            local_failures: None,
            base: Duration::from_secs(30),
            interval: Duration::from_secs(10),
            ejects: true,
        }
    }
}
