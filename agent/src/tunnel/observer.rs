//! Who is told what becomes of proxies.

use std::fmt;
use std::sync::Arc;

use super::Timings;
/// An endpoint of a proxy, by the words of policy.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Place {
    /// `host:port` of the proxy.
    pub proxy: Arc<str>,
    /// `host:port` of the endpoint.
    pub endpoint: Arc<str>,
}

/// How a proxy was spoken to in the end: one that should speak HTTP/2 may not.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Spoken {
    /// It got requests of HTTP/1.1, with a whole URI (RFC 9112 section 3.2.2).
    Http1Absolute,
    /// It was asked for a tunnel by CONNECT of HTTP/1.1.
    #[default]
    Http1Connect,
    /// By CONNECT of HTTP/2.
    Http2Connect,
    /// By POST of HTTP/2.
    Http2Post,
}

/// Learns what becomes of proxies and their endpoints, to count it.
pub trait Observer: fmt::Debug + Send + Sync {
    /// There is an endpoint. It is told once for each proxy that is like no other, so there may be
    /// several of the same words.
    fn appeared(&self, at: &Place);

    /// It has left policy, and its last connection has ended.
    fn gone(&self, at: &Place);

    /// There is a TCP connection.
    fn connected(&self, at: &Place);

    /// It has ended.
    fn disconnected(&self, at: &Place);

    /// A try gave no tunnel, and not because the proxy said no; `reason` is
    /// [`Cause::reason`](super::Cause::reason).
    fn failed(&self, at: &Place, reason: &'static str);

    /// The endpoint is passed over from now on, or is not any more.
    fn healthy(&self, at: &Place, healthy: bool);

    /// The endpoint was asked whether it is well, and this came of it.
    fn checked(&self, at: &Place, well: bool);

    /// A request found as much in use as policy allows; `limit` is `connections` or `pending`.
    fn over_limit(&self, proxy: &str, limit: &'static str);

    /// A tunnel is tried elsewhere, because of the failure `reason`.
    fn retried(&self, proxy: &str, reason: &'static str);

    /// A try came to its end, good or bad.
    fn took(&self, proxy: &str, spoken: Spoken, timings: &Timings);
}

/// Tells nobody.
#[derive(Debug)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn appeared(&self, _: &Place) {}
    fn gone(&self, _: &Place) {}
    fn connected(&self, _: &Place) {}
    fn disconnected(&self, _: &Place) {}
    fn failed(&self, _: &Place, _: &'static str) {}
    fn healthy(&self, _: &Place, _: bool) {}
    fn checked(&self, _: &Place, _: bool) {}
    fn over_limit(&self, _: &str, _: &'static str) {}
    fn retried(&self, _: &str, _: &'static str) {}
    fn took(&self, _: &str, _: Spoken, _: &Timings) {}
}
