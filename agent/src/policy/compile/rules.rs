//! Tunnels and the tunnels of DestinationRules into rules.

use std::cmp::Reverse;
use std::sync::Arc;

use super::Report;
use super::proxies::{Proxies, Wanted};
use super::tenancy::Tenancy;
use super::tls::workloads;
use crate::policy::api::Object;
use crate::policy::api::destination_rule::{DestinationRule, TunnelFields, TunnelProxy};
use crate::policy::api::metadata::{ObjectName, Timestamp};
use crate::policy::api::tunnel::{
    Action as ActionField, DialFromField, Dns, OnEch, OnMismatch, ProxyRef, Tunnel, Udp,
};
use crate::policy::api::value::{HostPattern, Port, TargetHost};
use crate::policy::document::{Document, Documents};
use crate::policy::failure_mode::FailureMode;
use crate::policy::no_proxy::HostList;
use crate::policy::problem::quotable;
use crate::policy::proxy::RankedProxy;
use crate::policy::rule::{Action, Ports, Route, Rule, Scope, TargetRule};
use crate::policy::workloads::WorkloadMatch;

/// A rule and its place in the order of precedence.
#[derive(Debug)]
pub(super) struct Ranked {
    pub(super) rank: Rank,
    pub(super) rule: Rule,
}

/// The order of precedence; less goes first.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Rank {
    class: Class,
    /// In a cluster the rules of a namespace go before those for all.
    of_root: bool,
    /// A rule for some workloads goes before one for all.
    for_everyone: bool,
    /// What has no age, as in most files, comes after what has.
    ageless: bool,
    created: Option<Timestamp>,
    name: ObjectName,
    pub(super) id: String,
}

/// Rules by what they are about, the most particular first.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Class {
    ExactHost(Origin),
    /// The longest domain first.
    Wildcard(Reverse<usize>, Origin),
    Labels,
    All,
}

/// The kind of document that a rule about a host comes from.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Origin {
    DestinationRule,
    VirtualService,
}

impl Rank {
    pub(super) fn new<T: Object>(
        document: &Document<T>,
        scope: &Scope,
        origin: Origin,
        workloads: &WorkloadMatch,
        tenancy: Tenancy<'_>,
    ) -> Self {
        let metadata = document.object.metadata();
        Self {
            class: match scope {
                Scope::All => Class::All,
                Scope::Labels(_) => Class::Labels,
                Scope::Host { pattern, .. } => match pattern {
                    HostPattern::Exact(_) => Class::ExactHost(origin),
                    HostPattern::Below(domain) => {
                        Class::Wildcard(Reverse(domain.as_str().len()), origin)
                    }
                    HostPattern::Any => Class::Wildcard(Reverse(0), origin),
                },
            },
            of_root: tenancy.is_for_all(document.namespace()),
            for_everyone: match tenancy.tenant(document.namespace()) {
                // Of the namespace.
                Some(_) => !workloads.is_selective(),
                None => workloads.is_everyone(),
            },
            ageless: metadata.creation_timestamp.is_none(),
            created: metadata.creation_timestamp.clone(),
            name: metadata.name.clone(),
            id: document.id(),
        }
    }
}

/// The rules of Tunnels and DestinationRules, in no order.
pub(super) fn compile(
    documents: &Documents,
    proxies: &mut Proxies<'_>,
    report: &mut Report,
) -> Vec<Ranked> {
    let mut ranked = Vec::new();
    for document in &documents.tunnels {
        ranked.extend(tunnel(document, proxies, report));
    }
    for document in &documents.destination_rules {
        ranked.extend(destination_rule(document, proxies, report));
    }
    ranked
}

fn tunnel(
    document: &Document<Tunnel>,
    proxies: &mut Proxies<'_>,
    report: &mut Report,
) -> Option<Ranked> {
    let spec = &document.object.spec;
    let scope = match &spec.selector {
        Some(selector) if !selector.match_labels.is_empty() => {
            Scope::Labels(selector.match_labels.clone())
        }
        _ => Scope::All,
    };
    let action = match spec.action {
        ActionField::Tunnel => Action::Tunnel(Box::new(route(document, proxies, report)?)),
        ActionField::Direct | ActionField::Deny => {
            only_for_tunnels(document, report)?;
            if spec.action == ActionField::Deny {
                Action::Deny
            } else {
                Action::Direct
            }
        }
    };
    let tenancy = proxies.tenancy();
    only_of_its_own(document, tenancy, report)?;
    let visibility = tenancy.visibility(&[], document.namespace());
    let workloads = WorkloadMatch::new(spec.workload_selector.as_ref(), visibility);
    if spec.udp == Some(Udp::Deny) && !workloads.is_everyone() {
        let reason = "the kernel side, which decides about UDP, does not know workloads: `Deny` is for \
                      Tunnels that are for all of them, without workloadSelector and, in a cluster, in \
                      the root namespace";
        report.problems.push(document.problem("spec.udp", reason));
        return None;
    }
    Some(Ranked {
        rank: Rank::new(
            document,
            &scope,
            Origin::DestinationRule,
            &workloads,
            tenancy,
        ),
        rule: Rule {
            policy: document.id().into(),
            place: document.place("metadata.name").to_string(),
            scope,
            udp: spec.udp.unwrap_or(match spec.action {
                ActionField::Direct => Udp::Allow,
                // Only of what is for everyone can the kernel side tell whose datagrams it is about.
                ActionField::Deny if workloads.is_everyone() => Udp::Deny,
                ActionField::Deny | ActionField::Tunnel => Udp::DenyQuic,
            }),
            pods_only: tenancy.is_many() && !workloads.is_selective(),
            workloads,
            action,
        },
    })
}

/// In a cluster a Tunnel selects among the pods of its own namespace, unless that is the root.
fn only_of_its_own(
    document: &Document<Tunnel>,
    tenancy: Tenancy<'_>,
    report: &mut Report,
) -> Option<()> {
    let own = tenancy.tenant(document.namespace());
    let selector = document.object.spec.workload_selector.as_ref();
    let (Some(own), Some(selector)) = (own, selector) else {
        return Some(());
    };
    let mut namespaces = selector.namespaces.iter().enumerate();
    let foreign = namespaces.find(|(_, name)| name.as_str() != own.as_ref());
    let (key, what) = match foreign {
        Some((index, name)) => (
            format!("spec.workloadSelector.namespaces[{index}]"),
            format!("`{}`", quotable(name)),
        ),
        None if !selector.units.is_empty() => {
            ("spec.workloadSelector.units".to_owned(), "units".to_owned())
        }
        None if !selector.cgroups.is_empty() => (
            "spec.workloadSelector.cgroups".to_owned(),
            "cgroups".to_owned(),
        ),
        None => return Some(()),
    };
    let reason = format!(
        "a Tunnel is for the pods of its own namespace, here `{own}`; {what}: only from the root \
         namespace"
    );
    report.problems.push(document.problem(&key, reason));
    None
}

/// Fields that say how to tunnel have no meaning where nothing is tunnelled.
fn only_for_tunnels(document: &Document<Tunnel>, report: &mut Report) -> Option<()> {
    let spec = &document.object.spec;
    let given = [
        ("spec.proxy", spec.proxy.is_some()),
        ("spec.proxies", spec.proxies.is_some()),
        ("spec.targetHost", spec.target_host.is_some()),
        ("spec.targetPort", spec.target_port.is_some()),
        ("spec.noProxy", spec.no_proxy.is_some()),
        ("spec.failureMode", spec.failure_mode.is_some()),
        ("spec.dns", spec.dns.is_some()),
        ("spec.onMismatch", spec.on_mismatch.is_some()),
        ("spec.onECH", spec.on_ech.is_some()),
        ("spec.echKeys", spec.ech_keys.is_some()),
    ];
    let mut right = Some(());
    for (key, _) in given.iter().filter(|(_, given)| *given) {
        let action = spec.action;
        let reason = format!("it is for `action: Tunnel`, and action is {action}");
        report.problems.push(document.problem(key, reason));
        right = None;
    }
    right
}

fn route(
    document: &Document<Tunnel>,
    proxies: &mut Proxies<'_>,
    report: &mut Report,
) -> Option<Route> {
    let spec = &document.object.spec;
    let given: Vec<(String, &ProxyRef)> = match (&spec.proxy, &spec.proxies) {
        (Some(proxy), None) => vec![("spec.proxy".to_owned(), proxy)],
        (None, Some(list)) if !list.is_empty() => list
            .iter()
            .enumerate()
            .map(|(index, proxy)| (format!("spec.proxies[{index}]"), proxy))
            .collect(),
        (Some(_), Some(_)) => {
            let reason = "give either `proxy` or `proxies`";
            report
                .problems
                .push(document.problem("spec.proxies", reason));
            return None;
        }
        (None, Some(_)) => {
            let reason = "it is empty: give at least one proxy";
            report
                .problems
                .push(document.problem("spec.proxies", reason));
            return None;
        }
        (None, None) => {
            let reason = "it is missing; `action: Direct` and `action: Deny` need none";
            report.problems.push(document.problem("spec.proxy", reason));
            return None;
        }
    };
    let mut ranked = Vec::new();
    let mut right = true;
    for (key, proxy) in given {
        let wanted = Wanted {
            key: &key,
            host: &proxy.host.0,
            port: proxy.port.map(Port::get),
            protocol: proxy.protocol,
            method: None,
            credential: proxy
                .authentication
                .as_ref()
                .map(|by| (format!("{key}.authentication.credentialName"), by)),
            tls: proxy.tls.as_ref(),
            headers: Some(&proxy.headers),
            dial_from: proxy.dial_from,
            plain_http: proxy.plain_http,
            check: proxy.health_check.as_ref(),
            warm: proxy.warm_connections,
        };
        match proxies.get(document, &wanted, report) {
            Some(found) => ranked.push(RankedProxy {
                proxy: found,
                priority: proxy.priority,
                weight: proxy.weight.map_or(1, |weight| weight.0),
            }),
            None => right = false,
        }
    }
    ranked.sort_by_key(|proxy| proxy.priority);
    right.then(|| Route {
        proxies: ranked.into(),
        target_host: target_rule(spec.target_host.as_ref()),
        target_port: spec.target_port.map(Port::get),
        no_proxy: spec.no_proxy.iter().flatten().cloned().collect(),
        failure_mode: spec.failure_mode.unwrap_or_default(),
        dns: Some(spec.dns.unwrap_or(Dns::Observe)),
        on_mismatch: spec.on_mismatch.unwrap_or_default(),
        on_ech: spec.on_ech.unwrap_or_default(),
        ech_keys: Some(spec.ech_keys.unwrap_or_default()),
    })
}

fn destination_rule(
    document: &Document<DestinationRule>,
    proxies: &mut Proxies<'_>,
    report: &mut Report,
) -> Option<Ranked> {
    let spec = &document.object.spec;
    let (key, proxy) = match tunnel_proxy(document) {
        Ok(found) => found?,
        Err((key, reason)) => {
            report.problems.push(document.problem(key, reason));
            return None;
        }
    };
    let tunnel = spec.traffic_policy.tunnel.as_ref()?;
    let scope = Scope::Host {
        pattern: spec.host.clone(),
        ports: Ports::All,
    };
    let tenancy = proxies.tenancy();
    let workloads = workloads(document, tenancy);
    let proxy = proxies.get(document, &wanted(key, tunnel, proxy), report)?;
    Some(Ranked {
        rank: Rank::new(
            document,
            &scope,
            Origin::DestinationRule,
            &workloads,
            tenancy,
        ),
        rule: Rule {
            policy: document.id().into(),
            place: document.place("spec.trafficPolicy.tunnel").to_string(),
            scope,
            pods_only: tenancy.is_many() && !workloads.is_selective(),
            workloads,
            action: Action::Tunnel(Box::new(Route {
                proxies: Arc::new([RankedProxy {
                    proxy,
                    priority: 0,
                    weight: 1,
                }]),
                target_host: target_rule(tunnel.target_host.as_ref()),
                target_port: tunnel.target_port.map(Port::get),
                no_proxy: HostList::default(),
                failure_mode: FailureMode::Closed,
                dns: None,
                on_mismatch: OnMismatch::UseName,
                on_ech: OnEch::UseResolvedName,
                ech_keys: None,
            })),
            udp: Udp::DenyQuic,
        },
    })
}

fn wanted<'a>(key: &'a str, tunnel: &'a TunnelFields, proxy: &'a TunnelProxy) -> Wanted<'a> {
    Wanted {
        key,
        host: &proxy.host.0,
        port: proxy.port.map(Port::get),
        protocol: None,
        method: tunnel
            .protocol
            .map(|method| ("spec.trafficPolicy.tunnel.protocol", method)),
        credential: proxy
            .authorization
            .as_ref()
            .map(|by| (format!("{key}.authorization.credentialName"), by)),
        tls: None,
        headers: None,
        dial_from: DialFromField::default(),
        plain_http: proxy.plain_http,
        check: None,
        warm: false,
    }
}

/// The proxy of a DestinationRule, inside `tunnel` or beside it, and where it stands.
pub(super) fn tunnel_proxy(
    document: &Document<DestinationRule>,
) -> Result<Option<(&'static str, &TunnelProxy)>, (&'static str, &'static str)> {
    const BESIDE: &str = "spec.trafficPolicy.proxy";
    let policy = &document.object.spec.traffic_policy;
    let inside = policy
        .tunnel
        .as_ref()
        .and_then(|tunnel| tunnel.proxy.as_ref());
    match (&policy.tunnel, inside, &policy.proxy) {
        (None, _, Some(_)) => Err((BESIDE, "it is the proxy of a `tunnel`, and there is none")),
        (_, Some(_), Some(_)) => Err((BESIDE, "`tunnel` has a proxy as well: give one of them")),
        (_, Some(proxy), None) => Ok(Some(("spec.trafficPolicy.tunnel.proxy", proxy))),
        (Some(_), None, Some(proxy)) => Ok(Some((BESIDE, proxy))),
        (_, None, None) => Ok(None),
    }
}

pub(super) fn target_rule(field: Option<&TargetHost>) -> TargetRule {
    match field {
        None => TargetRule::BestKnown,
        Some(TargetHost::AutoSni) => TargetRule::AutoSni,
        Some(TargetHost::OriginalDst) => TargetRule::OriginalDst,
        Some(TargetHost::Fixed(host)) => TargetRule::Fixed(host.clone()),
    }
}
