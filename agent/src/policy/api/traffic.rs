//! How many connections and requests there may be, and to which endpoint they go: the words of
//! Istio's `TrafficPolicy`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::quantity::{Bound, Limit, Percent, Time};
use super::words::words;

/// Limits on connections and requests.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(
    default,
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with tcp and http"
)]
pub(in crate::policy) struct ConnectionPool {
    /// Of TCP.
    pub(in crate::policy) tcp: TcpPool,
    /// Of HTTP, for targets.
    pub(in crate::policy) http: HttpPool,
}

/// Limits on TCP connections.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(
    default,
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with maxConnections and connectTimeout"
)]
pub(in crate::policy) struct TcpPool {
    /// Connections at a time, to all endpoints together; unset: no limit.
    pub(in crate::policy) max_connections: Option<Limit>,
    /// To a proxy for the TCP handshake; to a target until its tunnel is open and TLS is spoken in
    /// it. Unset: as long as the tunnel may take.
    pub(in crate::policy) connect_timeout: Option<Time>,
    /// How long nothing may move in either direction, for targets; 0s: for ever; unset: as long as
    /// the agent lets any connection be idle.
    pub(in crate::policy) idle_timeout: Option<Bound>,
}

/// Limits on requests of HTTP.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(
    default,
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with http1MaxPendingRequests and http2MaxRequests"
)]
pub(in crate::policy) struct HttpPool {
    /// Requests that wait for a connection, of any version of HTTP; unset: no limit.
    pub(in crate::policy) http1_max_pending_requests: Option<Limit>,
    /// Requests at a time, of any version of HTTP; unset: no limit.
    pub(in crate::policy) http2_max_requests: Option<Limit>,
    /// Requests on one connection, after which it is closed; unset: no limit.
    pub(in crate::policy) max_requests_per_connection: Option<Limit>,
    /// Retries at a time; unset: no limit.
    pub(in crate::policy) max_retries: Option<Limit>,
    /// How long a connection without a request is kept.
    pub(in crate::policy) idle_timeout: Option<Time>,
    /// Whether requests of HTTP/1.1 become requests of HTTP/2; unset: DEFAULT.
    pub(in crate::policy) h2_upgrade_policy: Option<H2Upgrade>,
    /// Whether the target is spoken to in the workload's version of HTTP, as it is anyway.
    pub(in crate::policy) use_client_protocol: bool,
    /// Streams at a time on one connection of HTTP/2; unset: as many as the target allows.
    pub(in crate::policy) max_concurrent_streams: Option<Limit>,
}

words! {
    /// Whether requests of HTTP/1.1 become requests of HTTP/2.
    pub(in crate::policy) enum H2Upgrade {
        /// They do not.
        Default = "DEFAULT",
        /// They do not.
        DoNotUpgrade = "DO_NOT_UPGRADE",
        /// They do.
        Upgrade = "UPGRADE",
    }
}

/// When an endpoint is passed over.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a mapping with consecutive5xxErrors"
)]
pub(in crate::policy) struct OutlierDetection {
    /// After this many failures in a row, by which failures to connect are meant as well; 0:
    /// never; unset: 3 of an endpoint of a proxy, 5 of a target.
    #[serde(rename = "consecutive5xxErrors")]
    #[schemars(range(min = 0, max = 4_294_967_295_u32))]
    pub(in crate::policy) consecutive_5xx_errors: Option<u32>,
    /// The same, of a target only for 502, 503, 504 and failures to connect; the smaller of both
    /// counts.
    #[serde(rename = "consecutiveGatewayErrors")]
    #[schemars(range(min = 0, max = 4_294_967_295_u32))]
    pub(in crate::policy) consecutive_gateway_errors: Option<u32>,
    /// Whether failures to get an answer are counted apart from answers, for targets.
    #[serde(rename = "splitExternalLocalOriginErrors")]
    pub(in crate::policy) split_external_local_origin_errors: bool,
    /// After this many failures in a row to get an answer, where they are counted apart; 0: never;
    /// unset: 5.
    #[serde(rename = "consecutiveLocalOriginFailures")]
    #[schemars(range(min = 0, max = 4_294_967_295_u32))]
    pub(in crate::policy) consecutive_local_origin_failures: Option<u32>,
    /// After how long without a failure one ejection is forgotten, for targets; unset: 10s.
    pub(in crate::policy) interval: Option<Time>,
    /// For how long at first; unset: 5s for an endpoint of a proxy, 30s for a target.
    #[serde(rename = "baseEjectionTime")]
    pub(in crate::policy) base_ejection_time: Option<Time>,
    /// How many of the endpoints at a time, in percent; unset: 100. A target is one: 0 is never.
    #[serde(rename = "maxEjectionPercent")]
    pub(in crate::policy) max_ejection_percent: Option<Percent>,
}

/// Which endpoint a connection goes to.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(
    default,
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with simple"
)]
pub(in crate::policy) struct LoadBalancer {
    /// By a simple rule; unset: LEAST_REQUEST.
    pub(in crate::policy) simple: Option<SimpleBalance>,
}

words! {
    /// A rule by which an endpoint is chosen.
    pub(in crate::policy) enum SimpleBalance {
        /// The old name of LEAST_REQUEST.
        LeastConn = "LEAST_CONN",
        /// The one with the fewest tunnels.
        LeastRequest = "LEAST_REQUEST",
        /// By chance.
        Random = "RANDOM",
        /// In turn.
        RoundRobin = "ROUND_ROBIN",
        /// LEAST_REQUEST.
        Unspecified = "UNSPECIFIED",
    }
}
