//! A policy and the facts of a connection into a decision.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::compile::{Policy, Route, TargetRule};
use super::external::Side;
use super::failure_mode::FailureMode;
use super::no_proxy::HostEntry;
use super::proxy::Proxy;
use crate::name::{Host, HostName, OriginalDst, Target};

/// What is known about a captured connection.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Where the workload connected to.
    pub original_dst: OriginalDst,
    /// The host its first bytes ask for.
    pub claimed: Option<Claim>,
    /// Whether the claimed name is known to belong to the address of `original_dst`, by
    /// something the workload cannot make up. Asked for by [`Policy::wants_verification`].
    pub claimed_is_verified: bool,
}

/// A host that a workload claims to talk to. It may claim any.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claim {
    /// The host.
    pub host: Host,
    /// Where it was said.
    pub source: NameSource,
}

/// Where in the first bytes of a connection a host was found.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum NameSource {
    /// The Host field of an HTTP/1 request.
    HttpHost,
    /// The server name of a TLS ClientHello.
    Sni,
}

/// What is done with a connection.
#[derive(Clone, Debug)]
pub enum Decision {
    /// It is refused.
    Deny {
        /// The object that says so: `Tunnel/NAME`.
        policy: Arc<str>,
        /// Why.
        reason: DenyReason,
    },
    /// It goes to its original destination, past every proxy.
    Direct(DirectRule),
    /// It goes through a proxy.
    Tunnel(TunnelDecision),
}

/// Through which proxy a connection goes, and what the proxy is asked for.
#[derive(Clone, Debug)]
pub struct TunnelDecision {
    /// The object that says so: `Tunnel/NAME` or `Tunnel/NAMESPACE/NAME`.
    pub policy: Arc<str>,
    /// The proxy.
    pub proxy: Arc<Proxy>,
    /// What the proxy is asked for.
    pub target: Target,
    /// Where the host of the target comes from.
    pub source: TargetSource,
    /// The host that policy declares for this connection, if it does: the only name that is fit
    /// for a metric label.
    pub destination_service: Option<Arc<HostName>>,
    /// What becomes of it if the proxy cannot be reached.
    pub failure_mode: FailureMode,
    /// What an operator may wonder about.
    pub note: Option<Note>,
}

/// Where the host of a target comes from.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TargetSource {
    /// `targetHost`.
    Explicit,
    /// The Host field of an HTTP/1 request.
    HttpHost,
    /// The address the workload connected to.
    OriginalDst,
    /// The server name of a TLS ClientHello.
    Sni,
}

impl TargetSource {
    /// The value of the metric label `source`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Explicit => "explicit",
            Self::HttpHost => "http_host",
            Self::OriginalDst => "original_dst",
            Self::Sni => "sni",
        }
    }
}

impl From<NameSource> for TargetSource {
    fn from(source: NameSource) -> Self {
        match source {
            NameSource::HttpHost => Self::HttpHost,
            NameSource::Sni => Self::Sni,
        }
    }
}

/// Something about a decision that an operator may wonder about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Note {
    /// The claimed name is listed in `noProxy`, but nothing shows that it belongs to the address.
    UnverifiedName(Arc<HostEntry>),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnverifiedName(entry) => write!(
                f,
                "noProxy lists `{entry}`, but the claimed name is not known to belong to the \
                 address"
            ),
        }
    }
}

/// Why a connection goes past every proxy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DirectRule {
    /// The address is internal.
    Internal(IpNet),
    /// An entry of `noProxy` lists it.
    NoProxy {
        /// The object with the list.
        policy: Arc<str>,
        /// The entry.
        entry: Arc<HostEntry>,
    },
    /// No Tunnel applies.
    NoTunnel,
}

impl fmt::Display for DirectRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internal(net) => write!(f, "{net} is internal"),
            Self::NoProxy { policy, entry } => write!(f, "noProxy of {policy} lists `{entry}`"),
            Self::NoTunnel => f.write_str("no Tunnel applies"),
        }
    }
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum DenyReason {
    /// `targetHost` is `AUTO_SNI` and the workload names no host.
    NoName,
}

impl DenyReason {
    /// The value of the metric label `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoName => "no_name",
        }
    }
}

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoName => {
                "targetHost is AUTO_SNI, and neither a TLS server name nor an HTTP Host names \
                 the target"
            }
        })
    }
}

impl Policy {
    /// What is done with a connection.
    ///
    /// A name that the workload merely claims may choose the target of a tunnel, because the
    /// proxy still decides; it leads past the proxy only if it is verified.
    pub fn decide(&self, facts: &Facts) -> Decision {
        let Some(route) = &self.tunnel else {
            return Decision::Direct(DirectRule::NoTunnel);
        };
        if let Some(rule) = self.direct_by_addr(route, facts.original_dst) {
            return Decision::Direct(rule);
        }
        let note = match listed_name(route, facts) {
            Some(entry) if facts.claimed_is_verified => {
                return Decision::Direct(DirectRule::NoProxy {
                    policy: Arc::clone(&route.policy),
                    entry: Arc::clone(entry),
                });
            }
            Some(entry) => Some(Note::UnverifiedName(Arc::clone(entry))),
            None => None,
        };
        route.tunnel(facts, note)
    }

    /// Whether the decision about a connection to `dst` may depend on a name that its first bytes
    /// tell. Where it does not, there is nothing to wait for.
    pub fn wants_name(&self, dst: OriginalDst) -> bool {
        self.tunnel.as_ref().is_some_and(|route| {
            let by_name = match route.target_host {
                TargetRule::AutoSni | TargetRule::BestKnown => true,
                TargetRule::Fixed { .. } | TargetRule::OriginalDst => route.no_proxy.has_names(),
            };
            by_name && self.direct_by_addr(route, dst).is_none()
        })
    }

    /// Whether the decision would be another if the claimed name were known to belong to the
    /// address: only then is it worth resolving.
    pub fn wants_verification(&self, facts: &Facts) -> bool {
        self.tunnel.as_ref().is_some_and(|route| {
            !facts.claimed_is_verified
                && listed_name(route, facts).is_some()
                && self.direct_by_addr(route, facts.original_dst).is_none()
        })
    }

    fn direct_by_addr(&self, route: &Route, dst: OriginalDst) -> Option<DirectRule> {
        if let Some(entry) = route.no_proxy.match_addr(dst.ip(), dst.port()) {
            return Some(DirectRule::NoProxy {
                policy: Arc::clone(&route.policy),
                entry: Arc::clone(entry),
            });
        }
        match self.sides.of(dst.ip())? {
            (net, Side::Internal) => Some(DirectRule::Internal(net)),
            (_, Side::External) => None,
        }
    }
}

impl Route {
    fn tunnel(&self, facts: &Facts, note: Option<Note>) -> Decision {
        let claimed = facts.claimed.as_ref().filter(|c| c.host.name().is_some());
        let (host, source) = match (&self.target_host, claimed) {
            (TargetRule::Fixed { host, .. }, _) => (host.clone(), TargetSource::Explicit),
            (TargetRule::AutoSni | TargetRule::BestKnown, Some(claim)) => {
                (claim.host.clone(), claim.source.into())
            }
            (TargetRule::AutoSni, None) => {
                return Decision::Deny {
                    policy: Arc::clone(&self.policy),
                    reason: DenyReason::NoName,
                };
            }
            (TargetRule::BestKnown, None) | (TargetRule::OriginalDst, _) => (
                Target::from(facts.original_dst).host,
                TargetSource::OriginalDst,
            ),
        };
        Decision::Tunnel(TunnelDecision {
            policy: Arc::clone(&self.policy),
            proxy: Arc::clone(&self.proxy),
            target: Target {
                host,
                port: self.target_port.unwrap_or(facts.original_dst.port()),
            },
            source,
            destination_service: match &self.target_host {
                TargetRule::Fixed { service, .. } => service.clone(),
                _ => None,
            },
            failure_mode: self.failure_mode,
            note,
        })
    }
}

fn listed_name<'a>(route: &'a Route, facts: &Facts) -> Option<&'a Arc<HostEntry>> {
    let name = facts.claimed.as_ref()?.host.name()?;
    route.no_proxy.match_name(name, facts.original_dst.port())
}

#[cfg(test)]
mod tests;
