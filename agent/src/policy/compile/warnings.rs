//! What is not wrong with a policy, but perhaps not meant.

use std::collections::HashSet;

use super::{Policy, traffic};
use crate::name::HostName;
use crate::policy::api::service_entry::{PortProtocol, ServiceEntry};
use crate::policy::api::tunnel::Udp;
use crate::policy::document::{Document, Documents};
use crate::policy::external::is_never_external;
use crate::policy::failure_mode::FailureMode;
use crate::policy::problem::{self, Problem};
use crate::policy::rule::{Action, Scope};

impl Policy {
    pub(super) fn doubts(
        &self,
        documents: &Documents,
        proxies: &HashSet<HostName>,
    ) -> Vec<Problem> {
        let mut doubts = Vec::new();
        self.doubt_tunnels(documents, &mut doubts);
        self.doubt_targets(documents, proxies, &mut doubts);
        for document in &documents.service_entries {
            doubts.extend(nameless_port(document));
            let mut hosts = document.object.spec.hosts.iter();
            if !hosts.any(|host| host.name().is_some_and(|name| proxies.contains(name))) {
                doubts.extend(never_captured(document));
            }
        }
        doubts
    }

    fn doubt_tunnels(&self, documents: &Documents, doubts: &mut Vec<Problem>) {
        let closed = self.failure_mode() == FailureMode::Closed;
        for document in &documents.tunnels {
            let id = document.id();
            let rule = self.rules.iter().position(|rule| *rule.policy == *id);
            let Some(index) = rule else { continue };
            let rule = &self.rules[index];
            if let Scope::Labels(labels) = &rule.scope
                && !self.services.iter().any(|s| s.rules.contains(index))
            {
                let labels = problem::labels(labels);
                let reason =
                    format!("it never applies: no external ServiceEntry has the labels {labels}");
                doubts.push(document.problem("spec.selector", reason));
                continue;
            }
            if document.object.spec.udp == Some(Udp::Deny) && self.is_told_by_name_only(index) {
                doubts.push(document.problem(
                    "spec.udp",
                    "only QUIC (port 443) is refused, to any address: what other UDP is for a service \
                     without `addresses` is not known",
                ));
            }
            // The kernel side knows no names, so what only names exempt is refused like the rest
            // while the agent is gone.
            match &rule.action {
                Action::Tunnel(route) if closed && route.no_proxy.has_names() => {
                    doubts.push(document.problem(
                        "spec.noProxy",
                        "names in it are refused, too, while the agent is gone, because only the \
                         agent knows names; addresses and ranges are not",
                    ));
                }
                Action::Tunnel(route)
                    if closed
                        && route.failure_mode == FailureMode::Open
                        && !self.is_told_by_address(index) =>
                {
                    doubts.push(document.problem(
                        "spec.failureMode",
                        "while the agent is gone it is closed like other rules: only names or \
                         workloads tell them apart, which only the agent knows",
                    ));
                }
                Action::Direct if closed && !self.is_told_by_address(index) => {
                    doubts.push(document.problem(
                        "spec.action",
                        "what it lets pass is refused while the agent is gone: only names or \
                         workloads tell it from what is closed, which only the agent knows",
                    ));
                }
                _ => {}
            }
        }
    }

    /// Whether the kernel side can tell what a rule is about: it has addresses of its own, and none
    /// of them is closed.
    fn is_told_by_address(&self, index: usize) -> bool {
        use crate::policy::Side;
        let mut selected = self.services.iter().filter(|s| s.rules.contains(index));
        match self.rules[index].scope {
            Scope::Labels(_) => selected.all(|service| {
                !service.addresses.is_empty()
                    && service.addresses.iter().all(|net| {
                        let side = self.captured.of(net.network());
                        side.is_some_and(|(_, side)| side.tcp != Side::External)
                    })
            }),
            Scope::All | Scope::Host { .. } => false,
        }
    }

    /// Whether it is about services of which some have no addresses of their own.
    fn is_told_by_name_only(&self, index: usize) -> bool {
        let mut selected = self.services.iter().filter(|s| s.rules.contains(index));
        matches!(self.rules[index].scope, Scope::Labels(_))
            && selected.any(|service| service.addresses.is_empty())
    }

    /// TLS for a host that is no proxy, and that nothing tunnels, is never spoken; nor is anything
    /// counted of a host that no rule is about.
    fn doubt_targets(
        &self,
        documents: &Documents,
        proxies: &HashSet<HostName>,
        doubts: &mut Vec<Problem>,
    ) {
        if self
            .rules
            .iter()
            .any(|rule| matches!(rule.scope, Scope::All))
        {
            return;
        }
        for document in &documents.destination_rules {
            let spec = &document.object.spec;
            let of_proxy = proxies.iter().any(|proxy| spec.host.matches(proxy));
            if of_proxy || spec.traffic_policy.tunnel.is_some() {
                continue;
            }
            let Some(name) = spec.host.name().filter(|name| !self.has_rule_for(name)) else {
                continue;
            };
            if spec.traffic_policy.tls.is_some() {
                let reason = format!(
                    "it has no effect: `{name}` is neither tunnelled nor a proxy; TLS is \
                     originated inside tunnels only"
                );
                doubts.push(document.problem("spec.trafficPolicy.tls", reason));
            }
            if traffic::is_about_targets(&spec.traffic_policy) {
                let reason = format!(
                    "its limits have no effect: `{name}` is neither a proxy nor a host that a rule \
                     is about"
                );
                doubts.push(document.problem("spec.trafficPolicy", reason));
            }
        }
        for document in &documents.virtual_services {
            let spec = &document.object.spec;
            if spec.http.is_empty() {
                continue;
            }
            for (index, host) in spec.hosts.iter().enumerate() {
                if let Some(name) = host.name().filter(|name| !self.has_rule_for(name)) {
                    let reason = format!("`http` has no effect: no rule is about `{name}`");
                    doubts.push(document.problem(&format!("spec.hosts[{index}]"), reason));
                }
            }
        }
    }

    /// Whether some rule is about connections to this host in particular.
    fn has_rule_for(&self, name: &HostName) -> bool {
        self.host_rules.matching(name).next().is_some()
            || self.by_host.matching(name).any(|service| {
                let service = &self.services[*service];
                (0..self.rules.len()).any(|rule| service.rules.contains(rule))
            })
    }
}

/// An address that never leaves the node or its link.
fn never_captured(document: &Document<ServiceEntry>) -> Option<Problem> {
    let spec = &document.object.spec;
    let mut addresses = spec.addresses.iter().enumerate();
    let (index, address) = addresses.find(|(_, address)| is_never_external(address.0))?;
    let reason = format!(
        "it has no effect: connections to {} are never captured",
        address.0
    );
    Some(document.problem(&format!("spec.addresses[{index}]"), reason))
}

/// A port on which no name is spoken, of a service whose address is not told.
fn nameless_port(document: &Document<ServiceEntry>) -> Option<Problem> {
    let spec = &document.object.spec;
    if !spec.addresses.is_empty() {
        return None;
    }
    let ports = spec.ports.iter().enumerate();
    let mut tcp = ports.filter(|(_, port)| port.protocol == PortProtocol::Tcp);
    let (index, _) = tcp.next()?;
    Some(document.problem(
        &format!("spec.ports[{index}].protocol"),
        "connections to this port name no host, and the service has no `addresses`, so they are \
         not known to be for it unless they speak TLS or HTTP after all",
    ))
}
