//! What the kernel side is to do: what is captured, and what becomes of it while no agent is there.
//!
//! The kernel side knows addresses and ports, but neither names nor workloads. So it captures
//! whatever some rule may be about, and where only names or workloads tell closed from open, it is
//! closed.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Options;
use crate::policy::external::{Side, Sides, is_never_external};
use crate::policy::ports::PortSet;
use crate::policy::prefix::PrefixTable;
use crate::policy::rule::{Action, Ports, Route, Rule, Scope, Service};
use crate::policy::workloads::Visibility;

/// What the kernel side is to do.
pub(super) struct Plan {
    /// On which side everything is.
    pub(super) sides: Sides,
    /// The same for the kernel side, which captures no more than rules are about.
    pub(super) captured: Sides,
    pub(super) ports: PortSet,
    pub(super) exceptions: Vec<(IpNet, u16)>,
}

pub(super) fn make(
    rules: &[Rule],
    services: &[Service],
    by_address: &PrefixTable<Vec<usize>>,
    options: &Options,
) -> Plan {
    let everywhere = Everywhere::new(rules, services);
    let mut sides = Sides::new(Side::External);
    let mut captured = Sides::new(everywhere.demand().side());
    for net in &options.internal_cidrs {
        sides.set(*net, Side::Internal);
        captured.set(*net, Side::Internal);
    }
    let mut here: PrefixTable<Here> = PrefixTable::default();
    for (net, at) in by_address.iter() {
        let at = at.iter().map(|index| &services[*index]);
        *here.entry(net) = Here::new(at, rules);
    }
    for (net, Here { external, .. }) in here.iter() {
        let (side, capture) = if *external && !is_never_external(net) {
            (Side::External, everywhere.at(net, &here).side())
        } else {
            (Side::Internal, Side::Internal)
        };
        sides.set(net, side);
        captured.set(net, capture);
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
    /// What rules ask, the first of which goes before the others.
    fn of<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Asked {
        let mut asked = Asked {
            demand: Self::Nothing,
            by_all: false,
        };
        for rule in rules {
            let closed = rule.action.is_closed();
            let demand = if closed { Self::Closed } else { Self::Open };
            asked.demand = asked.demand.max(demand);
            // After one that is for everyone no later one comes to bear.
            if rule.workloads.is_everyone() {
                asked.by_all = true;
                break;
            }
        }
        asked
    }

    fn side(self) -> Side {
        match self {
            Self::Nothing => Side::Internal,
            Self::Open => Side::Open,
            Self::Closed => Side::External,
        }
    }
}

/// What rules ask for, and whether they are for every workload: then others do not come to bear.
struct Asked {
    demand: Demand,
    by_all: bool,
}

impl Asked {
    /// By the rules that select a service.
    fn by_labels(service: &Service, rules: &[Rule]) -> Self {
        Demand::of(service.rules.iter().map(|index| &rules[index]))
    }
}

/// What the services ask that have exactly one prefix.
#[derive(Debug)]
struct Here {
    /// Whether the oldest of them is.
    external: bool,
    demand: Demand,
    /// Whether, for some connection, rules for all services come to bear after theirs.
    leaves_rest: bool,
    /// Whether one of them is there on every port and for every workload.
    whole: bool,
}

impl Default for Here {
    fn default() -> Self {
        Self {
            external: true,
            demand: Demand::Nothing,
            leaves_rest: false,
            whole: false,
        }
    }
}

impl Here {
    /// All of them count, not just the oldest: a name may lead to any.
    fn new<'a>(services: impl Iterator<Item = &'a Service> + Clone, rules: &[Rule]) -> Self {
        let mut here = Self {
            external: services.clone().next().is_none_or(|s| s.external),
            ..Self::default()
        };
        for service in services {
            let asked = Asked::by_labels(service, rules);
            here.demand = here.demand.max(asked.demand);
            here.leaves_rest |= service.external && !asked.by_all;
            here.whole |= service.ports.is_empty() && service.visibility == Visibility::All;
        }
        here
    }
}

/// What is asked by rules that may be about any address.
struct Everywhere {
    for_all: Demand,
    /// By those that a name leads to.
    by_name: Demand,
}

impl Everywhere {
    fn new(rules: &[Rule], services: &[Service]) -> Self {
        let for_all = rules.iter().filter(|rule| matches!(rule.scope, Scope::All));
        let for_all = Demand::of(for_all).demand;
        let hosts = rules
            .iter()
            .filter(|rule| matches!(rule.scope, Scope::Host { .. }));
        let mut by_name = hosts
            .map(|rule| Demand::of([rule]).demand)
            .max()
            .unwrap_or(Demand::Nothing);
        let anywhere = |service: &&Service| service.external && service.addresses.is_empty();
        for service in services.iter().filter(anywhere) {
            let asked = Asked::by_labels(service, rules);
            by_name = by_name.max(asked.demand);
            if !asked.by_all {
                by_name = by_name.max(for_all);
            }
        }
        Self { for_all, by_name }
    }

    fn demand(&self) -> Demand {
        self.for_all.max(self.by_name)
    }

    /// What is asked at the addresses of a prefix that services have.
    fn at(&self, net: IpNet, here: &PrefixTable<Here>) -> Demand {
        let mut demand = self.by_name;
        // No service at all may be about a connection, or one that no rule for it selects.
        let mut leaves_rest = false;
        let mut whole = false;
        let around = here
            .covering(net.network())
            .filter(|(other, _)| other.prefix_len() <= net.prefix_len());
        for (_, here) in around {
            demand = demand.max(here.demand);
            leaves_rest |= here.leaves_rest;
            whole |= here.whole;
        }
        if leaves_rest || !whole {
            demand = demand.max(self.for_all);
        }
        demand
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
