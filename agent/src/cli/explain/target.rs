//! What is said of the target of a connection, as it is printed.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::policy::{HttpRoute, PathMatch, Retries, RouteMatch, TargetPolicy, TargetSettings};

/// The settings of a target, and the routes of requests to it.
pub(super) struct Shown<'a>(pub(super) &'a TargetPolicy);

impl Shown<'_> {
    /// The same for programs.
    pub(super) fn to_json(&self) -> Value {
        let TargetPolicy {
            host,
            settings,
            routes,
            ..
        } = self.0;
        let limits: serde_json::Map<String, Value> = limits(settings)
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        json!({
            "host": host.as_str(),
            "policy": settings.policy.as_deref(),
            "settings": limits,
            "routes": routes.as_ref().map(|routes| json!({
                "policy": &*routes.policy,
                "http": routes.routes.iter().map(route_json).collect::<Vec<_>>(),
            })),
        })
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.0.settings;
        if let Some(policy) = &settings.policy {
            let limits = limits(settings);
            let shown: Vec<_> = limits
                .iter()
                .map(|(name, is)| format!("{name} {is}"))
                .collect();
            let shown = if shown.is_empty() {
                "none".to_owned()
            } else {
                shown.join(", ")
            };
            writeln!(f, "  limits:         {shown}, by {policy}")?;
        }
        if let Some(routes) = &self.0.routes {
            writeln!(f, "  requests:       by {}", routes.policy)?;
            for route in &routes.routes {
                writeln!(f, "    {}: {}", matched(route), tried(route))?;
            }
        }
        Ok(())
    }
}

/// What is set, by the names of documents.
fn limits(settings: &TargetSettings) -> Vec<(&'static str, String)> {
    let TargetSettings {
        policy: _,
        max_connections,
        connect_timeout,
        idle_timeout,
        http,
        outliers,
    } = settings;
    let number = |limit: &Option<u32>| limit.map(|limit| limit.to_string());
    let time = |time: &Option<Duration>| time.map(|time| format!("{time:?}"));
    let idle = idle_timeout.map(|idle| idle.map_or("0s".to_owned(), |idle| format!("{idle:?}")));
    let mut shown = vec![
        ("maxConnections", number(max_connections)),
        ("connectTimeout", time(connect_timeout)),
        ("idleTimeout", idle),
        ("http1MaxPendingRequests", number(&http.max_pending)),
        ("http2MaxRequests", number(&http.max_requests)),
        (
            "maxRequestsPerConnection",
            number(&http.max_requests_per_connection),
        ),
        ("maxRetries", number(&http.max_retries)),
        ("http.idleTimeout", time(&http.idle_timeout)),
        (
            "h2UpgradePolicy",
            http.upgrades.then(|| "UPGRADE".to_owned()),
        ),
        ("maxConcurrentStreams", number(&http.max_streams)),
    ];
    if let Some(outliers) = outliers {
        let count = |count: u32| Some(count.to_string());
        let local = outliers.local_failures;
        shown.extend([
            ("consecutive5xxErrors", count(outliers.failures)),
            (
                "consecutiveGatewayErrors",
                count(outliers.gateway_failures).filter(|_| outliers.gateway_failures > 0),
            ),
            ("consecutiveLocalOriginFailures", number(&local)),
            ("baseEjectionTime", time(&Some(outliers.base))),
            ("interval", time(&Some(outliers.interval))),
            (
                "maxEjectionPercent",
                (!outliers.ejects).then(|| "0".to_owned()),
            ),
        ]);
    }
    let set = shown.into_iter();
    set.filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

/// `GET /api*, port 80`.
fn matched(route: &HttpRoute) -> String {
    let one = |matched: &RouteMatch| {
        let mut text = matched.method.as_deref().unwrap_or("*").to_owned();
        match &matched.path {
            PathMatch::Any => {}
            PathMatch::Exact(path) => text += &format!(" {path}"),
            PathMatch::Prefix(path) => text += &format!(" {path}*"),
        }
        if let Some(port) = matched.port {
            text += &format!(" on port {port}");
        }
        text
    };
    if route.matches.is_empty() {
        return "*".to_owned();
    }
    route.matches.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn tried(route: &HttpRoute) -> String {
    let timeout = match route.timeout {
        Some(time) => format!("timeout {time:?}"),
        None => "no timeout".to_owned(),
    };
    let Some(retries) = &route.retries else {
        return timeout + ", no retries";
    };
    let Retries {
        attempts,
        per_try_timeout,
        on,
        backoff,
    } = &**retries;
    let mut text = format!("{timeout}, {attempts} retries on {on}, backoff {backoff:?}");
    if let Some(time) = per_try_timeout {
        text += &format!(", each try {time:?}");
    }
    text
}

fn route_json(route: &HttpRoute) -> Value {
    json!({
        "match": matched(route),
        "timeout": route.timeout.map(|time| format!("{time:?}")),
        "retries": route.retries.as_ref().map(|retries| json!({
            "attempts": retries.attempts,
            "perTryTimeout": retries.per_try_timeout.map(|time| format!("{time:?}")),
            "retryOn": retries.on.to_string(),
            "backoff": format!("{:?}", retries.backoff),
        })),
    })
}
