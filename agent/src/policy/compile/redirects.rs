//! VirtualServices that send connections to a forward proxy: today's recipe.

use std::collections::HashMap;
use std::sync::Arc;

use super::Report;
use super::proxies::{Proxies, Wanted};
use super::rules::{Origin, Rank, Ranked, target_rule};
use crate::name::Host;
use crate::policy::api::destination_rule::DestinationRule;
use crate::policy::api::tunnel::{DialFromField, OnEch, OnMismatch, PlainHttpField, Udp};
use crate::policy::api::value::{HostPattern, Port};
use crate::policy::api::virtual_service::{RouteDestination, VirtualService};
use crate::policy::document::{Document, Documents};
use crate::policy::failure_mode::FailureMode;
use crate::policy::no_proxy::HostList;
use crate::policy::proxy::RankedProxy;
use crate::policy::rule::{Action, Ports, Route, Rule, Scope};
use crate::policy::workloads::WorkloadMatch;

/// What to do where the API of a cluster has lost a field.
const ISTIO_HINT: &str = "; Istio's own kinds cannot have `tunnel.proxy` or the protocols of \
                          forward proxies: give them in a DestinationRule or ServiceEntry of \
                          underpass.dev, or in a Tunnel";

/// A DestinationRule of a proxy: it says what the proxy is asked for.
type ByProxy<'a> = HashMap<String, Vec<&'a Document<DestinationRule>>>;

/// The rules of VirtualServices, in no order.
pub(super) fn compile(
    documents: &Documents,
    proxies: &mut Proxies<'_>,
    report: &mut Report,
) -> Vec<Ranked> {
    let by_proxy = by_proxy(documents);
    let mut used = Vec::new();
    let mut ranked = Vec::new();
    for document in &documents.virtual_services {
        ranked.extend(redirects(document, &by_proxy, proxies, &mut used, report));
    }
    for (host, documents) in &by_proxy {
        for document in documents.iter().filter(|_| !used.contains(host)).take(1) {
            let hint = match proxies.tenancy().is_many() && document.is_of_istio() {
                true => ISTIO_HINT,
                false => "",
            };
            let reason = format!(
                "it has no effect: it has no `proxy`, and no VirtualService sends connections to \
                 `{host}`{hint}"
            );
            let problem = document.problem("spec.trafficPolicy.tunnel", reason);
            report.warnings.push(problem);
        }
    }
    ranked
}

/// The DestinationRules whose tunnel has no proxy, because their host is one; the oldest first.
fn by_proxy(documents: &Documents) -> ByProxy<'_> {
    let mut rules: Vec<_> = documents.destination_rules.iter().collect();
    rules.sort_by(|a, b| a.seniority().cmp(&b.seniority()));
    let mut by_proxy = HashMap::new();
    for document in rules {
        let spec = &document.object.spec;
        let policy = &spec.traffic_policy;
        let of_proxy = policy
            .tunnel
            .as_ref()
            .is_some_and(|tunnel| tunnel.proxy.is_none() && policy.proxy.is_none());
        if of_proxy {
            let of_host: &mut Vec<_> = by_proxy.entry(spec.host.to_string()).or_default();
            of_host.push(&**document);
        }
    }
    by_proxy
}

/// What a route of a VirtualService is about.
struct Matched<'a> {
    hosts: Vec<&'a HostPattern>,
    port: Option<u16>,
}

fn redirects<'a>(
    document: &'a Document<VirtualService>,
    by_proxy: &ByProxy<'_>,
    proxies: &mut Proxies<'_>,
    used: &mut Vec<String>,
    report: &mut Report,
) -> Vec<Ranked> {
    let spec = &document.object.spec;
    if !spec.gateways.is_empty() && !spec.gateways.iter().any(|gateway| gateway == "mesh") {
        let reason = "it has no effect: only `mesh`, the workloads themselves, is known on a node";
        let problem = document.problem("spec.gateways", reason);
        report.warnings.push(problem);
        return Vec::new();
    }
    let tls = spec.tls.iter().enumerate().map(|(index, route)| {
        let matches = route.matches.iter().map(|matched| Matched {
            hosts: matched.sni_hosts.iter().collect(),
            port: matched.port.map(Port::get),
        });
        let key = format!("spec.tls[{index}].route");
        (key, matches.collect::<Vec<_>>(), &route.route)
    });
    let tcp = spec.tcp.iter().enumerate().map(|(index, route)| {
        let hosts: Vec<_> = spec.hosts.iter().collect();
        let mut matches: Vec<Matched<'a>> = route
            .matches
            .iter()
            .map(|matched| Matched {
                hosts: hosts.clone(),
                port: matched.port.map(Port::get),
            })
            .collect();
        if matches.is_empty() {
            matches.push(Matched { hosts, port: None });
        }
        (format!("spec.tcp[{index}].route"), matches, &route.route)
    });
    let mut ranked = Vec::new();
    for (key, matches, destinations) in tls.chain(tcp) {
        let Some(route) = route(
            document,
            &key,
            destinations,
            by_proxy,
            proxies,
            used,
            report,
        ) else {
            continue;
        };
        let visibility = proxies
            .tenancy()
            .visibility(&spec.export_to, document.namespace());
        let workloads = WorkloadMatch::new(None, visibility);
        for matched in matches {
            for host in matched.hosts {
                let scope = Scope::Host {
                    pattern: host.clone(),
                    ports: matched
                        .port
                        .map_or(Ports::All, |port| Ports::Some(vec![port])),
                };
                ranked.push(Ranked {
                    rank: Rank::new(
                        document,
                        &scope,
                        Origin::VirtualService,
                        &workloads,
                        proxies.tenancy(),
                    ),
                    rule: Rule {
                        policy: document.id().into(),
                        place: document.place(&key).to_string(),
                        scope,
                        pods_only: proxies.tenancy().is_many() && !workloads.is_selective(),
                        workloads: workloads.clone(),
                        action: Action::Tunnel(Box::new(route.clone())),
                        udp: Udp::DenyQuic,
                    },
                });
            }
        }
    }
    ranked
}

/// The way through the proxies that a route names.
fn route(
    document: &Document<VirtualService>,
    key: &str,
    destinations: &[RouteDestination],
    by_proxy: &ByProxy<'_>,
    proxies: &mut Proxies<'_>,
    used: &mut Vec<String>,
    report: &mut Report,
) -> Option<Route> {
    let mut found: Option<Route> = None;
    for (index, route) in destinations.iter().enumerate() {
        let key = format!("{key}[{index}].destination");
        let host_key = format!("{key}.host");
        let Host::Name(name) = &route.destination.host.0 else {
            let problem =
                document.problem(&host_key, "it is ignored: an address is no proxy we know");
            report.warnings.push(problem);
            continue;
        };
        let tenancy = proxies.tenancy();
        let rules = by_proxy.get(name.as_str()).into_iter().flatten();
        let near = rules.filter_map(|rule| {
            let distance = tenancy.distance(document.namespace(), rule.namespace())?;
            Some((distance, rule))
        });
        let Some((_, rule)) = near.min_by_key(|(distance, _)| *distance) else {
            let reason = format!(
                "it is ignored: `{name}` is no forward proxy, because no DestinationRule has a \
                 `tunnel` for it"
            );
            report.warnings.push(document.problem(&host_key, reason));
            continue;
        };
        used.push(name.to_string());
        let tunnel = rule.object.spec.traffic_policy.tunnel.as_ref()?;
        let wanted = Wanted {
            key: &key,
            host: &route.destination.host.0,
            port: route.destination.port.map(|port| port.number.get()),
            protocol: None,
            method: tunnel.protocol.map(|method| (key.as_str(), method)),
            credential: None,
            tls: None,
            headers: None,
            dial_from: DialFromField::default(),
            plain_http: PlainHttpField::default(),
            check: None,
            warm: false,
        };
        let proxy = RankedProxy {
            proxy: proxies.get(document, &wanted, report)?,
            priority: 0,
            weight: route.weight.unwrap_or(1),
        };
        if proxy.weight == 0 {
            continue;
        }
        let target_host = target_rule(tunnel.target_host.as_ref());
        let target_port = tunnel.target_port.map(Port::get);
        match &mut found {
            None => {
                found = Some(Route {
                    proxies: Arc::new([proxy]),
                    target_host,
                    target_port,
                    no_proxy: HostList::default(),
                    failure_mode: FailureMode::Closed,
                    dns: None,
                    on_mismatch: OnMismatch::UseName,
                    on_ech: OnEch::UseResolvedName,
                    ech_keys: None,
                });
            }
            Some(route)
                if (&route.target_host, route.target_port) == (&target_host, target_port) =>
            {
                let more: Vec<_> = route.proxies.iter().cloned().chain([proxy]).collect();
                route.proxies = more.into();
            }
            Some(_) => {
                let reason = format!(
                    "the tunnel of `{name}` has another target than that of the proxies before it"
                );
                report.problems.push(document.problem(&host_key, reason));
                return None;
            }
        }
    }
    found
}
