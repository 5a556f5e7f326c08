//! How many connections are made, and to which endpoint: the words of Istio's `TrafficPolicy`.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use super::words::words;

/// Limits on connections.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(
    default,
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with tcp"
)]
pub(in crate::policy) struct ConnectionPool {
    /// Of TCP.
    pub(in crate::policy) tcp: TcpPool,
}

/// Limits on TCP connections.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(
    default,
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with maxConnections and connectTimeout"
)]
pub(in crate::policy) struct TcpPool {
    /// Connections at a time, to all endpoints together; unset: no limit.
    pub(in crate::policy) max_connections: Option<Count>,
    /// For the TCP handshake; unset: as long as the tunnel may take.
    pub(in crate::policy) connect_timeout: Option<Time>,
}

/// When an endpoint is passed over.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a mapping with consecutive5xxErrors"
)]
pub(in crate::policy) struct OutlierDetection {
    /// After this many failures in a row, by which failures to connect are meant here as well; 0:
    /// never; unset: 3.
    #[serde(rename = "consecutive5xxErrors")]
    #[schemars(range(min = 0, max = 4_294_967_295_u32))]
    pub(in crate::policy) consecutive_5xx_errors: Option<u32>,
    /// The same; the smaller of both counts.
    #[serde(rename = "consecutiveGatewayErrors")]
    #[schemars(range(min = 0, max = 4_294_967_295_u32))]
    pub(in crate::policy) consecutive_gateway_errors: Option<u32>,
    /// For how long at first; unset: 5s.
    #[serde(rename = "baseEjectionTime")]
    pub(in crate::policy) base_ejection_time: Option<Time>,
    /// How many of the endpoints at a time, in percent; unset: 100.
    #[serde(rename = "maxEjectionPercent")]
    pub(in crate::policy) max_ejection_percent: Option<Percent>,
}

/// Which endpoint a connection goes to.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
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

/// A number from 1.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "i64")]
pub(in crate::policy) struct Count(pub(in crate::policy) u32);

impl TryFrom<i64> for Count {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        // As Istio has it; far more than there are ports.
        u32::try_from(number)
            .ok()
            .filter(|count| (1..=i32::MAX.unsigned_abs()).contains(count))
            .map(Self)
            .ok_or_else(|| format!("expected a number from 1 to 2147483647, found {number}"))
    }
}

impl JsonSchema for Count {
    fn schema_name() -> Cow<'static, str> {
        "Count".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": i32::MAX })
    }
}

/// A share in percent.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "i64")]
pub(in crate::policy) struct Percent(pub(in crate::policy) u8);

impl TryFrom<i64> for Percent {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        u8::try_from(number)
            .ok()
            .filter(|percent| *percent <= 100)
            .map(Self)
            .ok_or_else(|| format!("expected a number from 0 to 100, found {number}"))
    }
}

impl JsonSchema for Percent {
    fn schema_name() -> Cow<'static, str> {
        "Percent".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0, "maximum": 100 })
    }
}

/// A time as Go writes it: `10s`, `1m30s`, `500ms`, from 1ms to 24h.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub(in crate::policy) struct Time(pub(in crate::policy) Duration);

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let within = Duration::from_millis(1)..=Duration::from_secs(24 * 60 * 60);
        duration(&text)
            .filter(|time| within.contains(time))
            .map(Self)
            .ok_or_else(|| "expected a time from 1ms to 24h, such as `10s` or `1m30s`".to_owned())
    }
}

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^([0-9]+(\\.[0-9]+)?(ms|s|m|h))+$" })
    }
}

/// Numbers with units, all together.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let (number, tail) = rest.split_at(rest.find(|c| !is_number(c))?);
        let unit = tail.find(is_number).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = tail;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_writes_them() {
        let time = |text: &str| Time::try_from(text.to_owned()).map(|time| time.0.as_millis());
        for (text, millis) in [
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("1.5s", 1_500),
            ("24h", 86_400_000),
            ("1ms", 1),
        ] {
            assert_eq!(time(text), Ok(millis), "{text}");
        }
        for text in [
            "", "10", "s", "0s", "1d", "-1s", "1s1", "25h", "1..5s", "1µs", "1e9s",
        ] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
