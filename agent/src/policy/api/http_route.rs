//! `http` of a VirtualService: how long a request may take, and how often it is tried.
//!
//! A route has other fields in Istio, which say what becomes of a request. They are known here, so
//! that a route which has one can be left out as a whole.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::destination_rule::PortRef;
use super::quantity::{Bound, Count, Time};
use super::value::{HostPattern, Port};
use super::words;

/// What is said of some requests.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with route, timeout and retries"
)]
pub(in crate::policy) struct HttpRoute {
    /// What it is called; for people.
    #[serde(rename = "name")]
    _name: Option<String>,
    /// Which requests; of several one must match; unset: all.
    #[serde(default, rename = "match")]
    pub(in crate::policy) matches: Vec<HttpMatch>,
    /// Where to: the host itself.
    #[serde(default)]
    pub(in crate::policy) route: Vec<HttpDestination>,
    /// From the request to the end of its answer, with all retries; 0s and unset: no bound.
    pub(in crate::policy) timeout: Option<Bound>,
    /// Whether it is tried again.
    pub(in crate::policy) retries: Option<Retries>,
    #[schemars(skip)]
    pub(in crate::policy) redirect: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) direct_response: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) delegate: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) rewrite: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) fault: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) mirror: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) mirrors: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) mirror_percent: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) mirror_percentage: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) cors_policy: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) headers: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) rate_limit: Option<IgnoredAny>,
}

impl HttpRoute {
    /// The fields it has that are not acted on.
    pub(in crate::policy) fn beyond(&self) -> impl Iterator<Item = &'static str> {
        [
            ("redirect", &self.redirect),
            ("directResponse", &self.direct_response),
            ("delegate", &self.delegate),
            ("rewrite", &self.rewrite),
            ("fault", &self.fault),
            ("mirror", &self.mirror),
            ("mirrors", &self.mirrors),
            ("mirrorPercent", &self.mirror_percent),
            ("mirrorPercentage", &self.mirror_percentage),
            ("corsPolicy", &self.cors_policy),
            ("headers", &self.headers),
            ("rateLimit", &self.rate_limit),
        ]
        .into_iter()
        .filter_map(|(field, value)| value.as_ref().map(|_| field))
    }
}

/// Where a route leads.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with destination"
)]
pub(in crate::policy) struct HttpDestination {
    /// The host.
    pub(in crate::policy) destination: HttpTarget,
    /// Its share in percent, if there are several.
    #[serde(default, rename = "weight")]
    _weight: Option<u16>,
    #[schemars(skip)]
    pub(in crate::policy) headers: Option<IgnoredAny>,
}

/// A host, or all that a pattern means, and a port.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with host"
)]
pub(in crate::policy) struct HttpTarget {
    /// The host: one of `hosts`, as it stands there.
    pub(in crate::policy) host: HostPattern,
    /// The port; unset: the one that the program connects to.
    pub(in crate::policy) port: Option<PortRef>,
}

/// Matches requests: what is given must all be so.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(
    default,
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with uri, method and port"
)]
pub(in crate::policy) struct HttpMatch {
    /// What it is called; for people.
    #[serde(rename = "name")]
    _name: Option<String>,
    /// The path, without a query.
    pub(in crate::policy) uri: Option<StringMatch>,
    /// The method.
    pub(in crate::policy) method: Option<StringMatch>,
    /// The port that the program connects to.
    pub(in crate::policy) port: Option<Port>,
    #[schemars(skip)]
    pub(in crate::policy) scheme: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) authority: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) headers: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) without_headers: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) query_params: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) ignore_uri_case: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) source_labels: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) source_namespace: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(in crate::policy) gateways: Option<IgnoredAny>,
}

impl HttpMatch {
    /// The fields it has by which requests are not told here.
    pub(in crate::policy) fn beyond(&self) -> impl Iterator<Item = &'static str> {
        let method = self.method.as_ref();
        let parts = [
            (
                "uri.regex",
                self.uri.as_ref().is_some_and(|uri| uri.regex.is_some()),
            ),
            (
                "method.regex",
                method.is_some_and(|method| method.regex.is_some()),
            ),
        ];
        [
            ("scheme", &self.scheme),
            ("authority", &self.authority),
            ("headers", &self.headers),
            ("withoutHeaders", &self.without_headers),
            ("queryParams", &self.query_params),
            ("ignoreUriCase", &self.ignore_uri_case),
            ("sourceLabels", &self.source_labels),
            ("sourceNamespace", &self.source_namespace),
            ("gateways", &self.gateways),
        ]
        .into_iter()
        .map(|(field, value)| (field, value.is_some()))
        .chain(parts)
        .filter_map(|(field, is_there)| is_there.then_some(field))
    }
}

/// How a text must be.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a mapping with exact or prefix"
)]
pub(in crate::policy) struct StringMatch {
    /// Just so.
    pub(in crate::policy) exact: Option<String>,
    /// With this at its beginning.
    pub(in crate::policy) prefix: Option<String>,
    #[schemars(skip)]
    pub(in crate::policy) regex: Option<IgnoredAny>,
}

/// Whether and when a request is tried again.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with attempts"
)]
pub(in crate::policy) struct Retries {
    /// How often, at most; 0: never.
    pub(in crate::policy) attempts: Option<Count>,
    /// How long each time may take until the answer begins; unset: as long as all of it may.
    pub(in crate::policy) per_try_timeout: Option<Time>,
    /// On what.
    pub(in crate::policy) retry_on: Option<RetryOn>,
    /// The base of the time between two; unset: 25ms.
    pub(in crate::policy) backoff: Option<Time>,
}

/// What a request is tried again on: words and codes, separated by commas.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[schemars(with = "String")]
#[serde(try_from = "String")]
pub(in crate::policy) struct RetryOn {
    /// The words, in their order.
    pub(in crate::policy) words: Vec<&'static str>,
    /// The codes, likewise.
    pub(in crate::policy) codes: Vec<u16>,
}

/// The words that are acted on.
pub(in crate::policy) const RETRY_WORDS: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "refused-stream",
    "retriable-4xx",
    "retriable-status-codes",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// The words that Istio has besides.
pub(in crate::policy) const IGNORED_RETRY_WORDS: &[&str] = &[
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "retriable-headers",
];

impl TryFrom<String> for RetryOn {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (mut words, mut codes) = (Vec::new(), Vec::new());
        let parts = text.split(',').map(str::trim);
        for part in parts.filter(|part| !part.is_empty()) {
            let mut known = RETRY_WORDS.iter().chain(IGNORED_RETRY_WORDS);
            match (known.find(|word| **word == part), part.parse()) {
                (Some(word), _) => words.push(*word),
                (None, Ok(code @ 100..=599)) => codes.push(code),
                (None, Ok(code)) => return Err(format!("{code} is no status of HTTP")),
                (None, Err(_)) => return Err(words::unknown(RETRY_WORDS, part)),
            }
        }
        Ok(Self { words, codes })
    }
}
