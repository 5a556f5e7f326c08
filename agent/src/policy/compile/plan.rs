//! What the kernel side is to do: what is captured, and what becomes of it while no agent is there.
//!
//! The kernel side knows addresses and ports, but neither names nor workloads. So it captures
//! whatever some rule may be about, and where only names or workloads tell closed from open, it is
//! closed. UDP it refuses by itself: QUIC wherever a rule may be about it, since there is a way to do
//! without, other UDP only where addresses tell that a rule says so.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Options;
use crate::policy::api::tunnel::Udp;
use crate::policy::external::{Captured, Side, Sides, is_never_external};
use crate::policy::ports::PortSet;
use crate::policy::prefix::PrefixTable;
use crate::policy::rule::{Action, Ports, Route, Rule, Scope, Service};
use crate::policy::workloads::Visibility;

/// What the kernel side is to do.
pub(super) struct Plan {
    /// On which side everything is.
    pub(super) sides: Sides,
    /// The same for the kernel side, which captures no more than rules are about.
    pub(super) captured: Sides<Captured>,
    pub(super) ports: PortSet,
    pub(super) exceptions: Vec<(IpNet, u16)>,
}

pub(super) fn make(
    rules: &[Rule],
    services: &[Service],
    by_address: &PrefixTable<Vec<usize>>,
    options: &Options,
) -> Plan {
    let demands = [Traffic::Tcp, Traffic::Quic, Traffic::Udp]
        .map(|traffic| Demands::new(traffic, rules, services, by_address));
    let captured_by = |demand: &dyn Fn(&Demands) -> Demand| {
        let [tcp, quic, udp] = &demands;
        Captured {
            tcp: demand(tcp).side(),
            quic: demand(quic).side(),
            udp: demand(udp).side(),
        }
    };
    let mut sides = Sides::new(Side::External);
    let mut captured = Sides::new(captured_by(&|demands| demands.everywhere.demand()));
    for net in &options.internal_cidrs {
        sides.set(*net, Side::Internal);
        captured.set(*net, Side::Internal.into());
    }
    for (net, at) in by_address.iter() {
        // The oldest of the services says it.
        let external = at.first().is_none_or(|index| services[*index].external);
        let (side, capture) = if external && !is_never_external(net) {
            (Side::External, captured_by(&|demands| demands.at(net)))
        } else {
            (Side::Internal, Side::Internal.into())
        };
        sides.set(net, side);
        captured.set(net, capture);
    }
    if rules.iter().any(Rule::serves_dns) {
        for net in options.virtual_range.nets() {
            sides.set(net, Side::External);
            captured.set(net, Captured::VIRTUAL);
        }
    }
    let mut exceptions = Vec::new();
    // What the only rule there is exempts needs no capture.
    if let [rule] = rules
        && let Some(route) = route_for_all(rule)
    {
        for net in route.no_proxy.nets() {
            captured.set(net, Side::Internal.into());
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

/// What the kernel side decides about, each by what rules say of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Traffic {
    Tcp,
    /// UDP on port 443.
    Quic,
    /// UDP on other ports.
    Udp,
}

impl Traffic {
    const QUIC_PORT: u16 = 443;

    /// Whether something that is on these ports has to do with it.
    fn is_on(self, is_on: impl Fn(u16) -> bool) -> bool {
        self != Self::Quic || is_on(Self::QUIC_PORT)
    }

    /// Whether a rule has it captured.
    fn is_captured_by(self, rule: &Rule) -> bool {
        match self {
            Self::Tcp => true,
            Self::Quic => rule.udp != Udp::Allow,
            Self::Udp => rule.udp == Udp::Deny && rule.workloads.is_everyone(),
        }
    }
}

/// What rules ask about one kind of traffic.
struct Demands {
    everywhere: Everywhere,
    here: PrefixTable<Here>,
}

impl Demands {
    fn new(
        traffic: Traffic,
        rules: &[Rule],
        services: &[Service],
        by_address: &PrefixTable<Vec<usize>>,
    ) -> Self {
        let mut here: PrefixTable<Here> = PrefixTable::default();
        for (net, at) in by_address.iter() {
            let at = at.iter().map(|index| &services[*index]);
            let at = at.filter(|service| traffic.is_on(|port| service.is_on(port)));
            *here.entry(net) = Here::new(at, rules, traffic);
        }
        Self {
            everywhere: Everywhere::new(rules, services, traffic),
            here,
        }
    }

    /// At the addresses of a prefix that services have.
    fn at(&self, net: IpNet) -> Demand {
        self.everywhere.at(net, &self.here)
    }
}

/// What rules ask of the kernel side; more goes before less.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
enum Demand {
    /// There is no rule.
    #[default]
    Nothing,
    /// Capture, and passing on while no agent is there.
    Open,
    /// Capture, and refusal while no agent is there.
    Closed,
}

impl Demand {
    /// What rules ask, the first of which goes before the others.
    fn of<'a>(rules: impl IntoIterator<Item = &'a Rule>, traffic: Traffic) -> Asked {
        let mut asked = Asked {
            demand: Self::Nothing,
            by_all: false,
        };
        for rule in rules {
            // In a cluster one for everyone spares the node's own network, and what names that comes
            // to bear nevertheless.
            if asked.by_all && !rule.workloads.is_selective() {
                continue;
            }
            if traffic.is_captured_by(rule) {
                let closed = rule.action.is_closed();
                let demand = if closed { Self::Closed } else { Self::Open };
                asked.demand = asked.demand.max(demand);
            }
            if rule.workloads.is_everyone() {
                asked.by_all = true;
                // After it no later one comes to bear.
                if !rule.pods_only {
                    break;
                }
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
    fn by_labels(service: &Service, rules: &[Rule], traffic: Traffic) -> Self {
        Demand::of(service.rules.iter().map(|index| &rules[index]), traffic)
    }
}

/// What the services ask that have exactly one prefix.
#[derive(Debug, Default)]
struct Here {
    demand: Demand,
    /// Whether, for some connection, rules for all services come to bear after theirs.
    leaves_rest: bool,
    /// Whether one of them is there on every port that matters and for every workload.
    whole: bool,
}

impl Here {
    /// All of them count, not just the oldest: a name may lead to any.
    fn new<'a>(
        services: impl Iterator<Item = &'a Service>,
        rules: &[Rule],
        traffic: Traffic,
    ) -> Self {
        let mut here = Self::default();
        for service in services {
            let asked = Asked::by_labels(service, rules, traffic);
            here.demand = here.demand.max(asked.demand);
            here.leaves_rest |= service.external && !asked.by_all;
            let whole = service.ports.is_empty() || traffic == Traffic::Quic;
            here.whole |= whole && service.visibility == Visibility::All;
        }
        here
    }
}

/// What is asked by rules that may be about any address.
struct Everywhere {
    for_all: Demand,
    /// By those of them that name workloads, where others spare the node's own network.
    for_node: Demand,
    /// By those that a name leads to.
    by_name: Demand,
}

impl Everywhere {
    fn new(rules: &[Rule], services: &[Service], traffic: Traffic) -> Self {
        let all = || rules.iter().filter(|rule| matches!(rule.scope, Scope::All));
        let for_all = Demand::of(all(), traffic).demand;
        let spares_node = rules.iter().any(|rule| rule.pods_only);
        let named = all().filter(|rule| spares_node && rule.workloads.is_selective());
        let for_node = Demand::of(named, traffic).demand;
        if traffic == Traffic::Udp {
            return Self {
                for_all,
                for_node,
                by_name: Demand::Nothing,
            };
        }
        let hosts = rules.iter().filter(|rule| match &rule.scope {
            Scope::Host { ports, .. } => traffic.is_on(|port| ports.contains(port)),
            Scope::All | Scope::Labels(_) => false,
        });
        let mut by_name = hosts
            .map(|rule| Demand::of([rule], traffic).demand)
            .max()
            .unwrap_or(Demand::Nothing);
        let anywhere = |service: &&Service| {
            let matters = traffic.is_on(|port| service.is_on(port));
            service.external && service.addresses.is_empty() && matters
        };
        for service in services.iter().filter(anywhere) {
            let asked = Asked::by_labels(service, rules, traffic);
            by_name = by_name.max(asked.demand);
            if !asked.by_all {
                by_name = by_name.max(for_all);
            }
        }
        Self {
            for_all,
            for_node,
            by_name,
        }
    }

    fn demand(&self) -> Demand {
        self.for_all.max(self.by_name)
    }

    /// What is asked at the addresses of a prefix that services have.
    fn at(&self, net: IpNet, here: &PrefixTable<Here>) -> Demand {
        let mut demand = self.by_name.max(self.for_node);
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
