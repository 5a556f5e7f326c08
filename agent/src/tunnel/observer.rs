//! Who is told what becomes of proxies.

use std::fmt;
use std::sync::Arc;

use super::Timings;
use crate::policy::TunnelProtocol;

/// An endpoint of a proxy, by the words of policy.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Place {
    /// `host:port` of the proxy.
    pub proxy: Arc<str>,
    /// `host:port` of the endpoint.
    pub endpoint: Arc<str>,
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

    /// A tunnel is tried elsewhere, because of the failure `reason`.
    fn retried(&self, proxy: &str, reason: &'static str);

    /// A try came to its end, good or bad.
    fn took(&self, proxy: &str, protocol: TunnelProtocol, timings: &Timings);
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
    fn retried(&self, _: &str, _: &'static str) {}
    fn took(&self, _: &str, _: TunnelProtocol, _: &Timings) {}
}
