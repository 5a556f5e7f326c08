//! Which names the agent answers for, and which address stands for which name.

use std::net::IpAddr;

use super::api::tunnel::{Dns, EchKeys};
use super::api::value::HostPattern;
use super::compile::Policy;
use super::rule::{Action, Rule, Service};
use super::virtuals::{Slot, VirtualHosts, VirtualRange};
use super::workloads::View;
use crate::name::HostName;

/// What the agent answers where it answers itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Served {
    /// The addresses that policy declares.
    At(Vec<IpAddr>),
    /// The virtual addresses of this slot.
    Virtual(Slot),
    /// Virtual addresses of the [upper half](VirtualRange::upper), by demand.
    OnDemand,
}

impl Policy {
    /// Whether the agent answers DNS queries of some workloads.
    pub fn serves_dns(&self) -> bool {
        self.virtuals.is_some() && !self.ports.is_empty()
    }

    /// Whether queries of workloads are to come to the agent: it answers some, or changes answers.
    pub fn takes_queries(&self) -> bool {
        let removes_keys = || self.rules.iter().any(Rule::removes_ech_keys);
        !self.ports.is_empty() && (self.virtuals.is_some() || removes_keys())
    }

    /// Whether keys for ECH are taken out of what a workload with this view is answered about a host.
    pub fn removes_ech_keys(&self, name: &HostName, view: &View) -> bool {
        if !view.removes_ech_keys {
            return false;
        }
        let rule = match self.service_of(name, view) {
            Some(service) if !service.external => None,
            service => self.rule_about(name, service, view),
        };
        rule.is_some_and(|rule| match &rule.action {
            Action::Tunnel(route) => matches!(route.ech_keys, None | Some(EchKeys::Remove)),
            Action::Deny | Action::Direct => false,
        })
    }

    /// The virtual addresses that it goes by, if it does by any.
    pub fn virtual_range(&self) -> Option<&VirtualRange> {
        self.virtuals.as_ref().map(|virtuals| &virtuals.range)
    }

    /// How many hosts of documents have virtual addresses.
    pub fn virtual_hosts(&self) -> usize {
        self.virtuals.as_ref().map_or(0, VirtualHosts::len)
    }

    /// The slot of a virtual address, and the host of documents that has it, if one has.
    pub fn virtual_slot(&self, addr: IpAddr) -> Option<(Slot, Option<&HostName>)> {
        let virtuals = self.virtuals.as_ref()?;
        let slot = virtuals.range.slot(addr.to_canonical())?;
        Some((slot, virtuals.host(slot)))
    }

    /// Whether the address is a virtual one, whoever has it.
    pub fn is_virtual(&self, addr: IpAddr) -> bool {
        let range = self.virtual_range();
        range.is_some_and(|range| range.contains(addr.to_canonical()))
    }

    /// What the agent answers when a workload with this view asks for the addresses of a name; `None`:
    /// its name server knows. That is so for whatever is not external, and for what would not go
    /// through a tunnel.
    pub fn serves(&self, name: &HostName, view: &View) -> Option<Served> {
        let virtuals = self.virtuals.as_ref()?;
        if !view.serves_dns || is_internal_name(name) || virtuals.not.contains(name) {
            return None;
        }
        let service = self.service_of(name, view)?;
        // Whoever has all names has those of every search list as well.
        let means = |host: &HostPattern| *host != HostPattern::Any && host.matches(name);
        if !service.external || !service.hosts.iter().any(means) {
            return None;
        }
        if !self
            .rule_about(name, Some(service), view)?
            .answers_for(name)
        {
            return None;
        }
        if !service.is_somewhere() {
            let hosts = service
                .addresses
                .iter()
                .filter(|net| net.prefix_len() == net.max_prefix_len());
            let addresses: Vec<_> = hosts.map(|net| net.addr().to_canonical()).collect();
            return (!addresses.is_empty()).then_some(Served::At(addresses));
        }
        Some(
            virtuals
                .slot(name)
                .map_or(Served::OnDemand, Served::Virtual),
        )
    }

    /// The service of this name that a workload sees, on whatever port.
    fn service_of(&self, name: &HostName, view: &View) -> Option<&Service> {
        let namespace = view.namespace.as_deref();
        let services = self.by_host.matching(name);
        let mut services = services.map(|index| &self.services[*index]);
        services.find(|service| service.visibility.shows_to(namespace))
    }

    /// The rule that an external name is under, on whatever port.
    fn rule_about(&self, name: &HostName, service: Option<&Service>, view: &View) -> Option<&Rule> {
        let mut about = self.host_rules.matching(name).copied();
        let rule = about
            .find(|index| view.rules.contains(*index))
            .or_else(|| service?.rules.first_common(&view.rules))
            .or(view.for_all)?;
        Some(&self.rules[rule])
    }

    /// The Tunnel that has the agent answer, for messages.
    pub(super) fn serving(&self) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.serves_dns())
    }
}

impl Rule {
    /// Whether the agent answers for a name that is under this rule.
    fn answers_for(&self, name: &HostName) -> bool {
        match &self.action {
            Action::Tunnel(route) => {
                matches!(route.dns, None | Some(Dns::Serve))
                    && route.no_proxy.match_name(name, 0).is_none()
            }
            Action::Deny | Action::Direct => false,
        }
    }
}

impl Service {
    /// Whether it is external, and only names tell where.
    pub(super) fn is_somewhere(&self) -> bool {
        self.external && self.addresses.is_empty()
    }
}

/// Whether a name is nobody's outside: one label, which means something else everywhere; those of
/// Kubernetes; those that stand for addresses.
pub(super) fn is_internal_name(name: &HostName) -> bool {
    const INTERNAL: [&str; 5] = ["arpa", "cluster.local", "local", "localhost", "svc"];
    let name = name.as_str();
    let is_in = |domain: &str| {
        let above = name.strip_suffix(domain);
        above.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    !name.contains('.') || INTERNAL.iter().any(|domain| is_in(domain))
}
