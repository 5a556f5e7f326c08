//! The access log: one record per request.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, StatusCode};
use tokio::time::Instant;

use crate::relay::Traffic;

/// What the log says about one request; written when it is dropped, however the request ends.
#[derive(Debug)]
pub(super) struct Record {
    /// Who asked.
    client: SocketAddr,
    /// The request line, without what may be secret in it.
    request: String,
    /// Bytes through the tunnel; sent is what the client sent.
    pub(super) traffic: Traffic,
    /// The user who proved to be one.
    pub(super) user: Option<Arc<str>>,
    /// The answer; `None` when there was none.
    pub(super) code: Option<StatusCode>,
    /// What went wrong.
    pub(super) error: Option<String>,
    begin: Instant,
}

impl Record {
    /// Begins a record for `request`.
    pub(super) fn new<B>(client: SocketAddr, request: &Request<B>) -> Self {
        Self::with_line(client, request_line(request))
    }

    /// Begins a record for a request that cannot be understood.
    pub(super) fn unreadable(client: SocketAddr) -> Self {
        Self::with_line(client, "-".into())
    }

    fn with_line(client: SocketAddr, request: String) -> Self {
        Self {
            client: SocketAddr::new(client.ip().to_canonical(), client.port()),
            request,
            traffic: Traffic::default(),
            user: None,
            code: None,
            error: None,
            begin: Instant::now(),
        }
    }

    /// Notes why there will be no tunnel, or why it ended.
    pub(super) fn failed(&mut self, error: impl fmt::Display) {
        self.error = Some(error.to_string());
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.code.is_none() {
            self.error
                .get_or_insert("the connection ended before the answer".into());
        }
        let duration = self.begin.elapsed().as_millis();
        tracing::info!(
            target: "underpass::access",
            client = %self.client,
            request = self.request,
            user = self.user.as_deref(),
            code = self.code.map(|code| code.as_u16()),
            bytes_sent = self.traffic.sent(),
            bytes_received = self.traffic.received(),
            duration_ms = u64::try_from(duration).unwrap_or(u64::MAX),
            error = self.error.as_deref(),
        );
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
