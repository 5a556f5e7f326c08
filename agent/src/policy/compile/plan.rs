//! What the kernel side is to do: what is captured, and what becomes of it while no agent is there.
//!
//! The kernel side knows addresses and ports, but neither names nor workloads. So it captures
//! whatever some rule may be about, and where only names or workloads tell closed from open, it is
//! closed.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Options;
use crate::policy::external::{Side, Sides};
use crate::policy::ports::PortSet;
use crate::policy::rule::{Action, Ports, Route, Rule, Scope, Service};

/// What the kernel side is to do.
pub(super) struct Plan {
    /// On which side everything is.
    pub(super) sides: Sides,
    /// The same for the kernel side, which captures no more than rules are about.
    pub(super) captured: Sides,
    pub(super) ports: PortSet,
    pub(super) exceptions: Vec<(IpNet, u16)>,
}

pub(super) fn make(rules: &[Rule], services: &[Service], options: &Options) -> Plan {
    let everywhere = Everywhere::new(rules, services);
    let elsewhere = everywhere.for_all.max(everywhere.by_name);
    let mut sides = Sides::new(Side::External);
    let mut captured = Sides::new(elsewhere.side().unwrap_or(Side::Internal));
    for net in &options.internal_cidrs {
        sides.set(*net, Side::Internal);
        captured.set(*net, Side::Internal);
    }
    for service in services {
        let (side, capture) = if service.external {
            let demand = everywhere.with(service, rules).side();
            (Side::External, demand.unwrap_or(Side::Internal))
        } else {
            (Side::Internal, Side::Internal)
        };
        for net in &service.addresses {
            sides.set(*net, side);
            captured.set(*net, capture);
        }
    }
    let mut exceptions = Vec::new();
    // What the only rule there is exempts needs no capture.
    if let [rule] = rules
        && let Some(route) = route_for_all(rule)
    {
        for net in route.no_proxy.nets() {
            captured.set(net, Side::Internal);
        }
        exceptions = route.no_proxy.nets_on_ports().collect();
    }
    Plan {
        sides,
        captured,
        ports: ports(rules, services),
        exceptions,
    }
}

/// What rules ask of the kernel side; more goes before less.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Demand {
    /// There is no rule.
    Nothing,
    /// Capture, and passing on while no agent is there.
    Open,
    /// Capture, and refusal while no agent is there.
    Closed,
}

impl Demand {
    fn of<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Self {
        let demands = rules.into_iter().map(|rule| {
            if rule.action.is_closed() {
                Self::Closed
            } else {
                Self::Open
            }
        });
        demands.max().unwrap_or(Self::Nothing)
    }

    fn side(self) -> Option<Side> {
        match self {
            Self::Nothing => None,
            Self::Open => Some(Side::Open),
            Self::Closed => Some(Side::External),
        }
    }
}

/// What is asked by rules that may be about any address.
struct Everywhere {
    for_all: Demand,
    by_name: Demand,
}

impl Everywhere {
    fn new(rules: &[Rule], services: &[Service]) -> Self {
        let for_all = rules.iter().filter(|rule| matches!(rule.scope, Scope::All));
        let hosts = rules
            .iter()
            .filter(|rule| matches!(rule.scope, Scope::Host { .. }));
        let anywhere = services.iter().filter(|s| s.addresses.is_empty());
        let selected: BTreeSet<usize> = anywhere.flat_map(|s| s.rules.iter()).collect();
        Self {
            for_all: Demand::of(for_all),
            by_name: Demand::of(hosts.chain(selected.into_iter().map(|index| &rules[index]))),
        }
    }

    /// What is asked at the addresses of a service.
    fn with(&self, service: &Service, rules: &[Rule]) -> Demand {
        let mut demand = self.by_name;
        for index in service.rules.iter() {
            let rule = &rules[index];
            demand = demand.max(Demand::of([rule]));
            // After one that is for everyone no later one comes to bear.
            if rule.workloads.is_everyone() {
                return demand;
            }
        }
        demand.max(self.for_all)
    }
}

/// The ports that some rule is about.
fn ports(rules: &[Rule], services: &[Service]) -> PortSet {
    if let [rule] = rules
        && let Some(route) = route_for_all(rule)
    {
        let mut ports = PortSet::all();
        for port in route.no_proxy.ports() {
            match port {
                Some(port) => ports.remove(port),
                None => return PortSet::none(),
            }
        }
        return ports;
    }
    let mut numbers = BTreeSet::new();
    for (index, rule) in rules.iter().enumerate() {
        match &rule.scope {
            Scope::All
            | Scope::Host {
                ports: Ports::All, ..
            } => return PortSet::all(),
            Scope::Host {
                ports: Ports::Some(ports),
                ..
            } => numbers.extend(ports.iter().copied()),
            Scope::Labels(_) => {
                for service in services.iter().filter(|s| s.rules.contains(index)) {
                    if service.ports.is_empty() {
                        return PortSet::all();
                    }
                    numbers.extend(service.ports.iter().map(|port| port.number));
                }
            }
        }
    }
    numbers.into_iter().collect()
}

/// The way that everything external goes, whoever connects.
fn route_for_all(rule: &Rule) -> Option<&Route> {
    match (&rule.scope, &rule.action) {
        (Scope::All, Action::Tunnel(route)) if rule.workloads.is_everyone() => Some(route),
        _ => None,
    }
}
