//! ServiceEntries into services, and which rules select them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::rules::Ranked;
use super::tenancy::Tenancy;
use super::{Report, shown};
use crate::policy::api::service_entry::{Location, ServiceEntry};
use crate::policy::api::value::{HostPattern, Port as FieldPort};
use crate::policy::bits::Bits;
use crate::policy::document::{Document, Documents};
use crate::policy::hosts::HostTable;
use crate::policy::prefix::PrefixTable;
use crate::policy::rule::{Port, Ports, Rule, Scope, Service};
use crate::policy::workloads::{Visibility, includes};

/// The services, indexed. Every list is in the order of seniority.
#[derive(Debug, Default)]
pub(super) struct Services {
    pub(super) list: Vec<Service>,
    pub(super) by_address: PrefixTable<Vec<usize>>,
    pub(super) by_host: HostTable<usize>,
}

impl Services {
    pub(super) fn new(documents: &Documents, tenancy: Tenancy<'_>) -> Self {
        let entries = documents.service_entries.iter();
        let mut entries: Vec<_> = entries.filter(|entry| counts(entry, tenancy)).collect();
        entries.sort_by(|a, b| a.seniority().cmp(&b.seniority()));
        let mut services = Self::default();
        for (index, document) in entries.into_iter().enumerate() {
            let service = service(document);
            for net in &service.addresses {
                services.by_address.entry(*net).push(index);
            }
            for host in &service.hosts {
                services.by_host.push(host, index);
            }
            services.list.push(service);
        }
        services
    }

    /// Puts rules into the order of precedence, and has every service know those that select it.
    pub(super) fn settle(&mut self, mut ranked: Vec<Ranked>) -> Vec<Rule> {
        ranked.sort_by(|a, b| a.rank.cmp(&b.rank));
        let mut rules: Vec<Rule> = ranked.into_iter().map(|ranked| ranked.rule).collect();
        self.give_ports(&mut rules);
        self.give_rules(&rules);
        rules
    }

    /// A rule about a host is about its ports, where a ServiceEntry declares them.
    fn give_ports(&self, rules: &mut [Rule]) {
        let mut wildcards: HostTable<usize> = HostTable::default();
        let mut declared: HashMap<usize, Ports> = HashMap::new();
        let mut declare = |index: usize, service: &Service| {
            let ports = declared.entry(index);
            add(ports.or_insert_with(|| Ports::Some(Vec::new())), service);
        };
        for (index, rule) in rules.iter().enumerate() {
            let Scope::Host {
                pattern,
                ports: Ports::All,
            } = &rule.scope
            else {
                continue;
            };
            let name = match pattern {
                HostPattern::Any => None,
                HostPattern::Below(name) | HostPattern::Exact(name) => Some(name),
            };
            for service in name
                .into_iter()
                .flat_map(|name| self.by_host.matching(name))
            {
                let service = &self.list[*service];
                if service.hosts.iter().any(|host| covers(host, pattern)) {
                    declare(index, service);
                }
            }
            if pattern.name().is_none() {
                wildcards.push(pattern, index);
            }
        }
        // What is declared below a wildcard is declared for it, too.
        if !wildcards.is_empty() {
            for service in &self.list {
                for host in &service.hosts {
                    if let HostPattern::Below(name) | HostPattern::Exact(name) = host {
                        let above = wildcards.matching(name).copied();
                        above.for_each(|index| declare(index, service));
                    }
                }
            }
        }
        for (index, found) in declared {
            if let Scope::Host { ports, .. } = &mut rules[index].scope {
                *ports = found;
            }
        }
    }

    fn give_rules(&mut self, rules: &[Rule]) {
        // Rules by one of the labels they ask for: a service is asked only about those of its own.
        let mut by_label: HashMap<(&str, &str), Vec<usize>> = HashMap::new();
        for (index, rule) in rules.iter().enumerate() {
            if let Scope::Labels(wanted) = &rule.scope
                && let Some((key, value)) = wanted.iter().next()
            {
                by_label.entry((key, value)).or_default().push(index);
            }
        }
        // Many services have the same labels.
        let mut known: HashMap<BTreeMap<String, String>, Arc<Bits>> = HashMap::new();
        for service in &mut self.list {
            if !service.external {
                continue;
            }
            if let Some(bits) = known.get(&service.labels) {
                service.rules = Arc::clone(bits);
                continue;
            }
            let labels = &service.labels;
            let asked = labels
                .iter()
                .filter_map(|(key, value)| by_label.get(&(key.as_str(), value.as_str())))
                .flatten()
                .copied();
            let selecting = asked.filter(|index| match &rules[*index].scope {
                Scope::Labels(wanted) => includes(labels, wanted),
                Scope::All | Scope::Host { .. } => false,
            });
            let bits: Arc<Bits> = Arc::new(selecting.collect());
            known.insert(labels.clone(), Arc::clone(&bits));
            service.rules = bits;
        }
    }
}

/// What is internal is so for all workloads, and so only the root namespace has a say about it.
fn counts(document: &Document<ServiceEntry>, tenancy: Tenancy<'_>) -> bool {
    let external = document.object.spec.location == Location::External;
    external || tenancy.tenant(document.namespace()).is_none()
}

/// A service without a host is none.
pub(super) fn check(documents: &Documents, tenancy: Tenancy<'_>, report: &mut Report) {
    for document in &documents.service_entries {
        if !counts(document, tenancy) {
            let reason = "it has no effect: what is internal is said in the root namespace only, \
                          since it is so for all workloads";
            report
                .warnings
                .push(document.problem("spec.location", reason));
        }
        if document.object.spec.hosts.is_empty() {
            let reason = "it is empty: give at least one host, also where `addresses` tell it";
            let problem = document.problem("spec.hosts", reason);
            report.problems.push(problem);
        }
    }
}

/// Whether `host` means all that `pattern` does.
fn covers(host: &HostPattern, pattern: &HostPattern) -> bool {
    match (host, pattern) {
        (HostPattern::Any, _) => true,
        (_, HostPattern::Exact(name)) => host.matches(name),
        (HostPattern::Below(domain), HostPattern::Below(below)) => {
            below == domain || below.is_below(domain)
        }
        _ => false,
    }
}

fn add(ports: &mut Ports, service: &Service) {
    match ports {
        Ports::Some(_) if service.ports.is_empty() => *ports = Ports::All,
        Ports::Some(list) => list.extend(service.ports.iter().map(|port| port.number)),
        Ports::All => {}
    }
}

fn service(document: &Document<ServiceEntry>) -> Service {
    let ServiceEntry { metadata, spec, .. } = &document.object;
    let declared = spec
        .hosts
        .first()
        .map_or_else(|| shown(&spec.hosts), ToString::to_string);
    Service {
        id: document.id().into(),
        hosts: spec.hosts.clone(),
        declared: declared.into(),
        target: spec.hosts.first().and_then(HostPattern::name).cloned(),
        addresses: spec.addresses.iter().map(|address| address.0).collect(),
        ports: spec
            .ports
            .iter()
            .map(|port| Port {
                number: port.number.get(),
                protocol: port.protocol,
                target: port.target_port.map(FieldPort::get),
            })
            .collect(),
        external: spec.location == Location::External,
        labels: metadata.labels.clone().unwrap_or_default(),
        visibility: Visibility::new(&spec.export_to, document.namespace()),
        rules: Arc::default(),
    }
}
