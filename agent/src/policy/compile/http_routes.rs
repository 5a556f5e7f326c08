//! `http` of VirtualServices into the times and retries of requests.

use std::collections::HashMap;
use std::sync::Arc;

use super::Report;
use super::tenancy::Tenancy;
use crate::policy::api::http_route::{
    HttpMatch, HttpRoute as Field, IGNORED_RETRY_WORDS, Retries as RetriesField, StringMatch,
};
use crate::policy::api::quantity::Bound;
use crate::policy::api::value::{HostPattern, Port};
use crate::policy::api::virtual_service::VirtualService;
use crate::policy::document::{Document, Documents};
use crate::policy::hosts::HostTable;
use crate::policy::rule::{ByTarget, TargetRules};
use crate::policy::target::{HttpRoute, HttpRoutes, PathMatch, Retries, RetryOn, RouteMatch};
use crate::policy::workloads::WorkloadMatch;

/// The routes by host; of one host the oldest VirtualService first.
pub(super) fn compile(
    documents: &Documents,
    tenancy: Tenancy<'_>,
    report: &mut Report,
) -> TargetRules<HttpRoutes> {
    let mut order: Vec<_> = documents.virtual_services.iter().collect();
    order.sort_by(|a, b| a.seniority().cmp(&b.seniority()));
    let mut seen: HashMap<&HostPattern, &Document<VirtualService>> = HashMap::new();
    let mut list = Vec::new();
    let mut by_host = HostTable::default();
    for document in order {
        let spec = &document.object.spec;
        let is_elsewhere = !spec.gateways.is_empty() && !spec.gateways.iter().any(|g| g == "mesh");
        if spec.http.is_empty() || is_elsewhere {
            continue;
        }
        let shown = tenancy.visibility(&spec.export_to, document.namespace());
        let workloads = WorkloadMatch::new(None, shown);
        for (index, host) in spec.hosts.iter().enumerate() {
            if workloads.is_everyone() {
                if let Some(first) = seen.get(host) {
                    let reason = format!(
                        "`http` never applies: {} in {} has routes for `{host}`, too, and the \
                         oldest wins, then the first by name",
                        first.subject(),
                        first.place("spec.http")
                    );
                    let key = format!("spec.hosts[{index}]");
                    report.warnings.push(document.problem(&key, reason));
                } else {
                    seen.insert(host, document);
                }
            }
            by_host.push(host, list.len());
            list.push(ByTarget {
                host: host.clone(),
                port: None,
                workloads: workloads.clone(),
                says: Arc::new(HttpRoutes {
                    policy: document.id().into(),
                    routes: routes(document, host, report),
                }),
            });
        }
    }
    TargetRules { list, by_host }
}

/// The routes of a document for one of its hosts, each whole or not at all. Of what is left out
/// nothing counts, and the requests that it matches are under no other route either.
fn routes(
    document: &Document<VirtualService>,
    host: &HostPattern,
    report: &mut Report,
) -> Vec<HttpRoute> {
    let spec = &document.object.spec;
    let mut routes = Vec::new();
    let mut matches_all: Option<usize> = None;
    for (index, field) in spec.http.iter().enumerate() {
        let key = format!("spec.http[{index}]");
        if let Some(first) = matches_all {
            let reason = format!("it never applies: `http[{first}]` matches every request");
            report.warnings.push(document.problem(&key, reason));
            break;
        }
        if !is_told_apart(document, &key, field, report) {
            // Which requests are under it is not known, so neither is which are under those after.
            routes.push(HttpRoute::default());
            break;
        }
        let matches: Vec<_> = field.matches.iter().map(route_match).collect();
        if matches.is_empty() {
            matches_all = Some(index);
        }
        let is_whole = is_acted_on(document, &key, field, host, report);
        let retries = field.retries.as_ref();
        let retries =
            retries.and_then(|retries| self::retries(document, &key, field, retries, report));
        let says = HttpRoute {
            matches,
            timeout: field.timeout.and_then(Bound::get).filter(|_| is_whole),
            retries: retries.filter(|_| is_whole).map(Arc::new),
        };
        routes.extend(on_port(says, port_of(field)));
    }
    routes
}

/// A route that leads to one port: from another it would lead elsewhere, and says nothing.
fn on_port(route: HttpRoute, port: Option<u16>) -> Vec<HttpRoute> {
    let Some(port) = port else {
        return vec![route];
    };
    let silent = HttpRoute {
        matches: route.matches.clone(),
        ..HttpRoute::default()
    };
    let mut matches = route.matches;
    if matches.is_empty() {
        matches.push(RouteMatch::default());
    }
    for matched in &mut matches {
        matched.port = Some(port);
    }
    vec![HttpRoute { matches, ..route }, silent]
}

/// The port that a route leads to, if it says so.
fn port_of(field: &Field) -> Option<u16> {
    let mut ports = field
        .route
        .iter()
        .filter_map(|route| route.destination.port);
    ports.next().map(|port| port.number.get())
}

/// Whether the requests of a route are told from others here; if not, says so.
fn is_told_apart(
    document: &Document<VirtualService>,
    key: &str,
    field: &Field,
    report: &mut Report,
) -> bool {
    let mut told_apart = true;
    for (index, matched) in field.matches.iter().enumerate() {
        for beyond in matched.beyond() {
            told_apart = false;
            let reason = "the whole route is ignored, and those after it: underpass does not match \
                          requests by this field";
            let key = format!("{key}.match[{index}].{beyond}");
            report.warnings.push(document.problem(&key, reason));
        }
        let texts = [("uri", &matched.uri), ("method", &matched.method)];
        for (name, text) in texts {
            if text.as_ref().is_some_and(is_ambiguous) {
                let key = format!("{key}.match[{index}].{name}");
                let reason = "give one of `exact` and `prefix`";
                report.problems.push(document.problem(&key, reason));
            }
        }
        if matched.method.as_ref().is_some_and(|m| m.prefix.is_some()) {
            let key = format!("{key}.match[{index}].method.prefix");
            let reason = "the whole route is ignored, and those after it: underpass matches \
                          methods by `exact` only";
            report.warnings.push(document.problem(&key, reason));
            told_apart = false;
        }
    }
    told_apart
}

fn is_ambiguous(text: &StringMatch) -> bool {
    let given = [
        text.exact.is_some(),
        text.prefix.is_some(),
        text.regex.is_some(),
    ];
    given.into_iter().filter(|is_there| *is_there).count() != 1
}

/// Whether a route says nothing but what is acted on; if it does, says so.
fn is_acted_on(
    document: &Document<VirtualService>,
    key: &str,
    field: &Field,
    host: &HostPattern,
    report: &mut Report,
) -> bool {
    let mut is_whole = true;
    let mut warn = |key: String, reason: String| {
        report.warnings.push(document.problem(&key, reason));
        is_whole = false;
    };
    let beyond = |field: &str| {
        format!(
            "the whole route is ignored, its `timeout` and `retries` as well: underpass does not \
             act on `{field}`"
        )
    };
    for field in field.beyond() {
        warn(format!("{key}.{field}"), beyond(field));
    }
    for (index, route) in field.route.iter().enumerate() {
        let key = format!("{key}.route[{index}]");
        if route.headers.is_some() {
            warn(format!("{key}.headers"), beyond("headers"));
        }
        let to = &route.destination.host;
        if to != host {
            let reason = format!(
                "the whole route is ignored for `{host}`, its `timeout` and `retries` as well: \
                 requests are not sent to another host"
            );
            warn(format!("{key}.destination.host"), reason);
        }
        let Some(port) = route.destination.port.map(|port| port.number.get()) else {
            continue;
        };
        let other = |matched: &HttpMatch| matched.port.is_some_and(|own| own.get() != port);
        if Some(port) != port_of(field) || field.matches.iter().any(other) {
            let reason = "the whole route is ignored, its `timeout` and `retries` as well: \
                          requests are not sent to another port";
            warn(format!("{key}.destination.port"), reason.to_owned());
        }
    }
    is_whole
}

fn route_match(field: &HttpMatch) -> RouteMatch {
    let path = match &field.uri {
        Some(StringMatch {
            exact: Some(text), ..
        }) => PathMatch::Exact(text.as_str().into()),
        Some(StringMatch {
            prefix: Some(text), ..
        }) => PathMatch::Prefix(text.as_str().into()),
        _ => PathMatch::Any,
    };
    let method = field
        .method
        .as_ref()
        .and_then(|method| method.exact.as_deref());
    RouteMatch {
        path,
        method: method.map(Into::into),
        port: field.port.map(Port::get),
    }
}

fn retries(
    document: &Document<VirtualService>,
    key: &str,
    route: &Field,
    field: &RetriesField,
    report: &mut Report,
) -> Option<Retries> {
    let at = |name: &str| format!("{key}.retries.{name}");
    let attempts = field.attempts.map_or(0, |count| count.0);
    if attempts == 0 {
        let given = [
            ("perTryTimeout", field.per_try_timeout.is_some()),
            ("retryOn", field.retry_on.is_some()),
            ("backoff", field.backoff.is_some()),
        ];
        for (name, _) in given.into_iter().filter(|(_, is_there)| *is_there) {
            let reason = "it is for retries, and `attempts` is 0, so that there are none";
            report.problems.push(document.problem(&at(name), reason));
        }
        return None;
    }
    let whole = route.timeout.and_then(Bound::get);
    let mut per_try_timeout = field.per_try_timeout.map(|time| time.0);
    if let (Some(each), Some(all)) = (per_try_timeout, whole)
        && each >= all
    {
        let reason = "it has no effect, because `timeout` is not longer";
        let problem = document.problem(&at("perTryTimeout"), reason);
        report.warnings.push(problem);
        per_try_timeout = None;
    }
    let mut on = match &field.retry_on {
        None => RetryOn::usual(),
        Some(_) => RetryOn::default(),
    };
    if let Some(given) = &field.retry_on {
        for word in &given.words {
            if IGNORED_RETRY_WORDS.contains(word) || !on.add(word) {
                let reason = format!("`{word}` is ignored: underpass does not act on it");
                report
                    .warnings
                    .push(document.problem(&at("retryOn"), reason));
            }
        }
        on.codes.clone_from(&given.codes);
        if on.codes.is_empty() && given.words.contains(&"retriable-status-codes") {
            let reason = "`retriable-status-codes` has no effect without codes, such as `503`";
            report
                .warnings
                .push(document.problem(&at("retryOn"), reason));
        }
    }
    Some(Retries {
        attempts,
        per_try_timeout,
        on,
        backoff: field.backoff.map_or(Retries::BACKOFF, |time| time.0),
    })
}

#[cfg(test)]
mod tests;
