//! What documents come down to: services, and rules about them.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::api::service_entry::PortProtocol;
use super::api::value::HostPattern;
use super::bits::Bits;
use super::failure_mode::FailureMode;
use super::no_proxy::HostList;
use super::proxy::{PlainHttp, RankedProxy};
use super::workloads::{Visibility, WorkloadMatch};
use crate::name::{Host, HostName};

/// A service, from a ServiceEntry.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// `ServiceEntry/NAME` or `ServiceEntry/NAMESPACE/NAME`.
    pub(super) id: Arc<str>,
    pub(super) hosts: Vec<HostPattern>,
    /// The first host, as metrics show it.
    pub(super) declared: Arc<str>,
    /// The first host, if it is a full name: the target where a fixed one is needed.
    pub(super) target: Option<HostName>,
    /// Empty: at any address.
    pub(super) addresses: Vec<IpNet>,
    /// Empty: on any port.
    pub(super) ports: Vec<Port>,
    pub(super) external: bool,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) visibility: Visibility,
    /// The rules that select it.
    pub(super) rules: Arc<Bits>,
}

/// A port of a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) protocol: PortProtocol,
    /// That of the target, if it is another.
    pub(super) target: Option<u16>,
}

impl Service {
    /// Its port of this number, if it has ports at all.
    pub(super) fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Whether it may be on this port.
    pub(super) fn is_on(&self, number: u16) -> bool {
        self.ports.is_empty() || self.port(number).is_some()
    }
}

/// A rule: what becomes of which connections. Of those that match, the first in order decides.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// `KIND/NAME` or `KIND/NAMESPACE/NAME`.
    pub(super) policy: Arc<str>,
    /// `FILE:LINE`.
    pub(super) place: String,
    pub(super) scope: Scope,
    pub(super) workloads: WorkloadMatch,
    pub(super) action: Action,
}

/// The connections that a rule is about.
#[derive(Clone, Debug)]
pub(super) enum Scope {
    /// To every external service, declared or not.
    All,
    /// To hosts of this name.
    Host { pattern: HostPattern, ports: Ports },
    /// To services with these labels.
    Labels(BTreeMap<String, String>),
}

/// Some ports, or all.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Ports {
    All,
    Some(Vec<u16>),
}

impl Ports {
    pub(super) fn contains(&self, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Some(ports) => ports.contains(&port),
        }
    }
}

/// What a rule does.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Deny,
    Direct,
    Tunnel(Box<Route>),
}

impl Action {
    /// Whether what it decides must be refused while no agent is there.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Deny => true,
            Self::Direct => false,
            Self::Tunnel(route) => route.failure_mode == FailureMode::Closed,
        }
    }
}

/// The way through a proxy.
#[derive(Clone, Debug)]
pub(super) struct Route {
    /// At least one, in the order of their priority.
    pub(super) proxies: Arc<[RankedProxy]>,
    pub(super) target_host: TargetRule,
    /// Unset: that of the service, else the original one.
    pub(super) target_port: Option<u16>,
    pub(super) no_proxy: HostList,
    pub(super) failure_mode: FailureMode,
}

impl Route {
    /// Whether some proxy of it gets requests and not tunnels.
    pub(super) fn forwards_requests(&self) -> bool {
        let mut proxies = self.proxies.iter();
        proxies.any(|ranked| ranked.proxy.plain_http == PlainHttp::AbsoluteForm)
    }
}

/// How the host of a target is found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum TargetRule {
    AutoSni,
    /// The first host of the service, the name that the connection asks for, or the address.
    BestKnown,
    Fixed(Host),
    OriginalDst,
}
