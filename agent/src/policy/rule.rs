//! What documents come down to: services, and rules about them.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::api::service_entry::PortProtocol;
use super::api::tunnel::{Dns, EchKeys, OnEch, OnMismatch, Udp};
use super::api::value::HostPattern;
use super::bits::Bits;
use super::failure_mode::FailureMode;
use super::hosts::HostTable;
use super::no_proxy::HostList;
use super::proxy::{PlainHttp, RankedProxy};
use super::workloads::{Visibility, WorkloadMatch};
use crate::name::{Host, HostName};
use crate::workload::Workload;

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
    /// Whether it is about nothing on the node's own network: in a cluster, what names no workloads.
    pub(super) pods_only: bool,
    pub(super) action: Action,
    pub(super) udp: Udp,
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

impl Rule {
    /// Why it is not for this workload, in words.
    pub(super) fn mismatch(&self, workload: &Workload) -> Option<&'static str> {
        if self.pods_only && workload.host_network {
            return Some(
                "the workload is on the node's own network, where rules without workloadSelector do \
                 not apply",
            );
        }
        self.workloads.mismatch(workload)
    }

    /// Whether names count that workloads have resolved.
    pub(super) fn observes_dns(&self) -> bool {
        match &self.action {
            Action::Tunnel(route) => route.dns != Some(Dns::Off),
            Action::Deny | Action::Direct => false,
        }
    }

    /// Whether it takes keys for ECH out of answers.
    pub(super) fn removes_ech_keys(&self) -> bool {
        match &self.action {
            Action::Tunnel(route) => route.ech_keys == Some(EchKeys::Remove),
            Action::Deny | Action::Direct => false,
        }
    }

    /// Whether it has the agent answer for hosts.
    pub(super) fn serves_dns(&self) -> bool {
        match &self.action {
            Action::Tunnel(route) => route.dns == Some(Dns::Serve),
            Action::Deny | Action::Direct => false,
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
    /// What the DNS of workloads is good for. Unset: names count that they have resolved, and the
    /// agent answers if it does for others of their Tunnels.
    pub(super) dns: Option<Dns>,
    pub(super) on_mismatch: OnMismatch,
    pub(super) on_ech: OnEch,
    /// What becomes of keys for ECH in answers. Unset: as other Tunnels of the workload have it.
    pub(super) ech_keys: Option<EchKeys>,
}

impl Route {
    /// Whether some proxy of it gets requests and not tunnels.
    pub(super) fn forwards_requests(&self) -> bool {
        let mut proxies = self.proxies.iter();
        proxies.any(|ranked| ranked.proxy.plain_http == PlainHttp::AbsoluteForm)
    }

    /// Whether it refuses a ClientHello that may hide a name which nobody knows. Where policy says
    /// what the proxy is asked for, names are not what it goes by.
    pub(super) fn refuses_hidden_names(&self) -> bool {
        let by_name = matches!(
            self.target_host,
            TargetRule::AutoSni | TargetRule::BestKnown
        );
        by_name && self.on_ech == OnEch::Deny
    }
}

/// What documents say of targets, by host; of one host in the order of precedence.
#[derive(Clone, Debug)]
pub(super) struct TargetRules<T> {
    pub(super) list: Vec<ByTarget<T>>,
    pub(super) by_host: HostTable<usize>,
}

/// What one of them says.
#[derive(Clone, Debug)]
pub(super) struct ByTarget<T> {
    pub(super) host: HostPattern,
    /// Unset: every port that is not mentioned before.
    pub(super) port: Option<u16>,
    pub(super) workloads: WorkloadMatch,
    pub(super) says: Arc<T>,
}

impl<T> Default for TargetRules<T> {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            by_host: HostTable::default(),
        }
    }
}

impl<T> TargetRules<T> {
    /// The first about this host and port, of those that are for a workload.
    pub(super) fn of(&self, host: &HostName, port: u16, mine: &Bits) -> Option<&ByTarget<T>> {
        let mut found = self.by_host.matching(host).copied();
        let is_it = |index: &usize| {
            mine.contains(*index) && self.list[*index].port.is_none_or(|only| only == port)
        };
        found.find(is_it).map(|index| &self.list[index])
    }

    /// Those that are for a workload.
    pub(super) fn of_workload(&self, workload: &Workload) -> Bits {
        let list = self.list.iter().enumerate();
        let mine = list.filter(|(_, rule)| rule.workloads.matches(workload));
        mine.map(|(index, _)| index).collect()
    }

    /// Whether it matters who connects.
    pub(super) fn wants_workload(&self) -> bool {
        self.list.iter().any(|rule| !rule.workloads.is_everyone())
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
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
