//! The access log: one record per request.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, Request, StatusCode, Version};
use tokio::time::Instant;

use super::accept::Client;
use super::metrics::{Counted, Denial, GatewayMetrics};
use crate::name::Target;
use crate::policy::Proxy;
use crate::relay::Progress;
use crate::telemetry::metrics::ActiveGuard;
use crate::telemetry::{Label, TunnelCode};
use crate::tunnel::Spoken;

/// What the log and the metrics say about one request; written when it is dropped, however the
/// request ends.
#[derive(Debug)]
pub(super) struct Record {
    /// Who asked.
    client: SocketAddr,
    /// The request line, without what may be secret in it.
    request: String,
    /// Method and version, unless the request cannot be understood.
    asked: Option<(Method, Version)>,
    /// Whether the client speaks TLS.
    tls: bool,
    /// How far it has come, bytes both ways; sent is what the client sent.
    pub(super) progress: Arc<Progress>,
    /// What the request was understood to be about.
    pub(super) target: Option<Target>,
    route: Option<Route>,
    /// What of the policy chose the route.
    policy: Option<Arc<str>>,
    /// The proxy that was asked last.
    proxy: Option<Label>,
    /// The tunnel that stands through it.
    tunnel: Option<ActiveGuard>,
    /// The user who proved to be one.
    pub(super) user: Option<Arc<str>>,
    /// The answer, where it is the gateway's own; else it is that of a target, if any.
    pub(super) code: Option<StatusCode>,
    /// What went wrong.
    error: Option<String>,
    denial: Option<Denial>,
    begin: Instant,
    metrics: Arc<GatewayMetrics>,
    _counted: Counted,
}

impl Record {
    /// Begins a record for `request`.
    pub(super) fn new<B>(
        metrics: &Arc<GatewayMetrics>,
        client: Client,
        request: &Request<B>,
    ) -> Self {
        let mut record = Self::unreadable(metrics, client);
        record.asked = Some((request.method().clone(), request.version()));
        record.request = request_line(request);
        record
    }

    /// Begins a record for a request that cannot be understood.
    pub(super) fn unreadable(metrics: &Arc<GatewayMetrics>, client: Client) -> Self {
        let Client { addr, tls } = client;
        let progress = Progress::default();
        Self {
            client: SocketAddr::new(addr.ip().to_canonical(), addr.port()),
            request: "-".into(),
            asked: None,
            tls,
            _counted: metrics.follow(&progress.traffic),
            progress: Arc::new(progress),
            target: None,
            route: None,
            policy: None,
            proxy: None,
            tunnel: None,
            user: None,
            code: None,
            error: None,
            denial: None,
            begin: Instant::now(),
            metrics: Arc::clone(metrics),
        }
    }

    /// Notes why there is no answer of a target, or why it ended early.
    pub(super) fn failed(&mut self, error: impl fmt::Display) {
        self.error = Some(error.to_string());
    }

    /// Takes back what [`Self::failed`] noted.
    pub(super) fn succeeded(&mut self) {
        self.error = None;
    }

    /// Notes the way that was chosen, and by what of the policy.
    pub(super) fn goes(&mut self, route: Route, policy: Option<Arc<str>>) {
        self.route = Some(route);
        self.policy = policy;
    }

    /// Notes what `proxy` said to the request for a tunnel.
    pub(super) fn proxy_said(&mut self, proxy: &Proxy, spoken: Spoken, code: TunnelCode) {
        let proxy = Label::of(proxy);
        let policy = self.policy.as_ref().map(|policy| Label::of(policy));
        let policy = policy.unwrap_or_default();
        let proxies = self.metrics.proxies();
        proxies.answered(&proxy, &policy, spoken.into(), code);
        self.tunnel = code
            .is_success()
            .then(|| proxies.tunnel(&proxy, spoken.into()));
        self.proxy = Some(proxy);
    }

    /// Notes that the gateway refuses.
    pub(super) fn denied(&mut self, denial: Denial) {
        self.denial = Some(denial);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let begun = self.progress.status();
        self.code = self
            .code
            .or(begun.and_then(|code| StatusCode::from_u16(code).ok()));
        if self.code.is_none() {
            self.error
                .get_or_insert("the connection ended before the answer".into());
        }
        if let Some(denial) = self.denial {
            self.metrics.denied(denial);
            if denial.is_about_the_target() {
                self.route = Some(Route::Deny);
            }
        }
        if let Some(route) = self.route {
            self.metrics.went(route);
        }
        let asked = self.asked.as_ref();
        self.metrics
            .request(asked.map(|(method, version)| (method, *version)), self.code);
        let duration = self.begin.elapsed().as_millis();
        tracing::info!(
            target: "underpass::access",
            client = %self.client,
            request = self.request,
            method = asked.map(|(method, _)| method.as_str()),
            target = self.target.as_ref().map(tracing::field::display),
            protocol = asked.map(|(_, version)| tracing::field::debug(version)),
            tls = self.tls,
            route = self.route.map(Route::as_str),
            policy = self.policy.as_deref(),
            proxy = self.proxy.as_ref().map(Label::as_str),
            user = self.user.as_deref(),
            code = self.code.map(|code| code.as_u16()),
            bytes_sent = self.progress.traffic.sent(),
            bytes_received = self.progress.traffic.received(),
            duration_ms = u64::try_from(duration).unwrap_or(u64::MAX),
            error = self.error.as_deref(),
        );
    }
}

/// What became of a request that could be judged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Route {
    Deny,
    Direct,
    Tunnel,
}

impl Route {
    /// The value for logs and metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Direct => "direct",
            Self::Tunnel => "tunnel",
        }
    }
}

/// The request line as it came, but bounded, and without a password or query in it.
fn request_line<B>(request: &Request<B>) -> String {
    let target = request.uri().to_string();
    let (target, query) = match target.split_once('?') {
        Some((path, _)) => (path, "?..."),
        None => (&*target, ""),
    };
    let (scheme, rest) = target
        .split_once("://")
        .map_or(("", target), |(scheme, rest)| {
            (&target[..scheme.len() + 3], rest)
        });
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (user, authority) = match authority.rsplit_once('@') {
        Some((_, authority)) => ("...@", authority),
        None => ("", authority),
    };
    let (method, version) = (request.method(), request.version());
    format!("{method} {scheme}{user}{authority}{path}{query} {version:?}")
        .chars()
        .take(MAX_LINE)
        .flat_map(char::escape_debug)
        .collect()
}

/// Characters of a request line that are logged.
const MAX_LINE: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_lines_are_logged_without_their_secrets() {
        for (method, uri, shown) in [
            (
                "CONNECT",
                "example.com:443",
                "CONNECT example.com:443 HTTP/1.1",
            ),
            (
                "CONNECT",
                "[2001:db8::1]:443",
                "CONNECT [2001:db8::1]:443 HTTP/1.1",
            ),
            (
                "CONNECT",
                "u:hunter2@a.example:1",
                "CONNECT ...@a.example:1 HTTP/1.1",
            ),
            ("GET", "/path?key=hunter2", "GET /path?... HTTP/1.1"),
            (
                "GET",
                "http://u:hunter2@a.example/x@y?z",
                "GET http://...@a.example/x@y?... HTTP/1.1",
            ),
            ("OPTIONS", "*", "OPTIONS * HTTP/1.1"),
        ] {
            let request = Request::builder().method(method).uri(uri).body(()).unwrap();
            assert_eq!(request_line(&request), shown);
        }
        let uri = format!("/{}", "a".repeat(10_000));
        let request = Request::builder().uri(uri).body(()).unwrap();
        assert_eq!(request_line(&request).len(), MAX_LINE);
    }
}
