//! How the connections to a proxy are made and spread over its endpoints.

use std::time::Duration;

use serde::Serialize;

use crate::name::Target;

/// What a DestinationRule for the host of a proxy, and the Tunnel itself, say of the connections to
/// it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ProxySettings {
    /// Which endpoint a tunnel goes to.
    pub balance: Balance,
    /// Where they are made.
    pub dial_from: DialFrom,
    /// For the TCP handshake; unset: as long as the tunnel may take.
    pub connect_timeout: Option<Duration>,
    /// When an endpoint is passed over.
    pub ejection: Ejection,
    /// TCP connections at a time; unset: no limit.
    pub max_connections: Option<u32>,
    /// Tunnels that are being opened at a time; unset: no limit.
    pub max_pending: Option<u32>,
    /// Whether connections are made ahead of demand, for HTTP/1.1.
    pub warm: bool,
}

/// In which network namespace a connection to a proxy is made, and so from which address and under
/// whose network policy.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum DialFrom {
    /// In that of the agent.
    #[default]
    Node,
    /// In that of the workload it is for.
    Workload,
}

/// How it is found out, before anybody needs it, whether an endpoint opens tunnels.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Check {
    /// What a tunnel is asked for to.
    pub target: Target,
    /// How often each endpoint is asked.
    pub interval: Duration,
}

/// Which endpoint a tunnel goes to; each way heeds the weights.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Balance {
    /// The one with the fewest tunnels; among equals, chance.
    #[default]
    LeastActive,
    /// Chance.
    Random,
    /// One after the other.
    RoundRobin,
}

/// When an endpoint is passed over, and for how long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ejection {
    /// After this many failures in a row; 0: never.
    pub after: u32,
    /// For this time at first, each further time twice as long, and up to a quarter longer by
    /// chance.
    pub base: Duration,
    /// How many of the endpoints may be passed over at a time; one may in any case, unless this
    /// is 0. When all are, the one whose time is over first is used.
    pub max_percent: u8,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            after: 3,
            base: Duration::from_secs(5),
            max_percent: 100,
        }
    }
}
