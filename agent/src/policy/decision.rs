//! What policy decides.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::lookup::NameSource;
use super::no_proxy::HostEntry;
use super::proxy::RankedProxy;
use super::target::TargetPolicy;
use crate::name::{Host, OriginalDst, Target};
use crate::tls::ClientTls;

/// A decision, and what an operator may wonder about.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What is done.
    pub decision: Decision,
    /// Why it is not something else. As long as there is one, the decision would be another if the
    /// claimed name were verified: only then is it worth resolving.
    pub note: Option<Note>,
    /// What policy says of the target, if it says anything.
    pub target: Option<Arc<TargetPolicy>>,
    /// The host that policy declares for a connection that is tunnelled or goes direct, if it does:
    /// the only name that is fit for a metric label.
    pub destination_service: Option<Arc<str>>,
}

impl From<Decision> for Verdict {
    fn from(decision: Decision) -> Self {
        Self {
            decision,
            note: None,
            target: None,
            destination_service: None,
        }
    }
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
    /// The proxies, at least one, in the order of their priority.
    pub proxies: Arc<[RankedProxy]>,
    /// What the proxy is asked for.
    pub target: Target,
    /// Where the host of the target comes from.
    pub source: TargetSource,
    /// TLS to the target, for a workload that does not speak it itself.
    pub tls: Option<TargetTls>,
    /// What becomes of it if no proxy can be reached.
    pub fallback: Fallback,
    /// What is done if the host of the target, which is claimed, was not resolved to the address.
    pub mismatch: Mismatch,
}

/// TLS to a target.
#[derive(Clone, Debug)]
pub struct TargetTls {
    /// The DestinationRule that says so.
    pub policy: Arc<str>,
    /// How it is spoken.
    pub client: Arc<ClientTls>,
    /// What the target is called, unless the client has a name of its own: the name the connection
    /// asks for, or that of its service.
    pub name: Host,
}

/// What becomes of a connection whose proxy cannot be reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fallback {
    /// It goes to its original destination.
    Direct,
    /// The same, if the claimed name belongs to the address; else it is refused.
    DirectIfVerified,
    /// It is refused.
    Refuse,
}

/// What is done with a connection whose claimed name was not resolved to its address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mismatch {
    /// The proxy is asked for the address.
    ByAddress,
    /// Nothing else: there is no need to find out.
    Nothing,
    /// It is refused.
    Refuse,
}

impl Verdict {
    /// The same for a connection to `dst` whose claimed name was not resolved to that address.
    #[must_use]
    pub fn contradicted(mut self, dst: OriginalDst) -> Self {
        let Decision::Tunnel(tunnel) = &mut self.decision else {
            return self;
        };
        match tunnel.mismatch {
            Mismatch::Nothing => {}
            Mismatch::ByAddress => {
                tunnel.target.host = Target::from(dst).host;
                tunnel.source = TargetSource::OriginalDst;
            }
            Mismatch::Refuse => {
                let policy = Arc::clone(&tunnel.policy);
                let reason = DenyReason::Mismatch;
                return Decision::Deny { policy, reason }.into();
            }
        }
        self
    }
}

/// Where the host of a target comes from.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TargetSource {
    /// What the workload has resolved.
    Dns,
    /// `targetHost`.
    Explicit,
    /// The Host field of an HTTP/1 request.
    HttpHost,
    /// The address the workload connected to.
    OriginalDst,
    /// The first host of a ServiceEntry.
    ServiceEntry,
    /// The server name of a TLS ClientHello.
    Sni,
    /// The name that the virtual address stands for.
    VirtualAddress,
}

impl TargetSource {
    /// The value of the metric label `source`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Explicit => "explicit",
            Self::HttpHost => "http_host",
            Self::OriginalDst => "original_dst",
            Self::ServiceEntry => "declared",
            Self::Sni => "sni",
            Self::VirtualAddress => "virtual_address",
        }
    }
}

impl From<NameSource> for TargetSource {
    fn from(source: NameSource) -> Self {
        match source {
            NameSource::Dns => Self::Dns,
            NameSource::HttpHost => Self::HttpHost,
            NameSource::Sni => Self::Sni,
            NameSource::VirtualAddress => Self::VirtualAddress,
        }
    }
}

/// Something about a decision that an operator may wonder about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Note {
    /// The claimed name is listed in `noProxy`, but nothing shows that it belongs to the address.
    UnverifiedName(Arc<HostEntry>),
    /// The claimed name is under another rule (or under none), which would lead to the address,
    /// but nothing shows that it belongs there.
    UnverifiedRule(Option<Arc<str>>),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnverifiedName(entry) => write!(f, "noProxy lists `{entry}`"),
            Self::UnverifiedRule(Some(policy)) => write!(f, "{policy} is about the claimed name"),
            Self::UnverifiedRule(None) => f.write_str("no rule is about the claimed name"),
        }?;
        f.write_str(", but it is not known to belong to the address")
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
    /// No rule is about it.
    NoRule,
    /// A rule says so.
    Rule(Arc<str>),
}

impl DirectRule {
    /// The object that says so.
    pub fn policy(&self) -> Option<&Arc<str>> {
        match self {
            Self::NoProxy { policy, .. } | Self::Rule(policy) => Some(policy),
            Self::Internal(_) | Self::NoRule => None,
        }
    }
}

impl fmt::Display for DirectRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internal(net) => write!(f, "{net} is internal"),
            Self::NoProxy { policy, entry } => write!(f, "noProxy of {policy} lists `{entry}`"),
            Self::NoRule => f.write_str("no rule is about it"),
            Self::Rule(policy) => write!(f, "action of {policy} is Direct"),
        }
    }
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum DenyReason {
    /// The ClientHello may hide another name, and the workload has resolved none of the address.
    HiddenName,
    /// The name that is claimed was not resolved to the address.
    Mismatch,
    /// `targetHost` is `AUTO_SNI` and the workload names no host.
    NoName,
    /// The action of a rule is Deny.
    Rule,
    /// It is a virtual address that stands for no name.
    UnknownAddress,
}

impl DenyReason {
    /// The value of the metric label `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HiddenName => "hidden_name",
            Self::Mismatch => "mismatch",
            Self::NoName => "no_name",
            Self::Rule => "rule",
            Self::UnknownAddress => "unknown_address",
        }
    }
}

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HiddenName => {
                "onECH is Deny, the ClientHello may hide another name than its server name, and the \
                 workload has resolved no name of the address"
            }
            Self::Mismatch => {
                "onMismatch is Deny, and the name that is claimed was not resolved to the address"
            }
            Self::NoName => {
                "targetHost is AUTO_SNI, and neither a TLS server name nor an HTTP Host names \
                 the target"
            }
            Self::Rule => "the action of the rule is Deny",
            Self::UnknownAddress => {
                "the address is one of those that stand for names (--virtual-cidr), and stands for \
                 none: the program is to ask for the name again"
            }
        })
    }
}
