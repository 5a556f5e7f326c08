//! Rules that never apply, because one that goes before is about the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Report;
use super::rules::Ranked;
use crate::policy::api::Object;
use crate::policy::api::destination_rule::DestinationRule;
use crate::policy::api::tunnel::Tunnel;
use crate::policy::api::value::HostPattern;
use crate::policy::api::virtual_service::VirtualService;
use crate::policy::document::{Document, Documents};
use crate::policy::problem::{self, Problem};
use crate::policy::rule::{Ports, Scope};

/// Warns of each.
pub(super) fn warn(ranked: &[Ranked], documents: &Documents, report: &mut Report) {
    let known = Known::new(documents);
    let mut order: Vec<&Ranked> = ranked
        .iter()
        .filter(|ranked| ranked.rule.workloads.is_everyone())
        .collect();
    order.sort_by(|a, b| a.rank.cmp(&b.rank));
    let mut first: HashMap<About<'_>, &Ranked> = HashMap::new();
    for ranked in order {
        let key = About::of(&ranked.rule.scope);
        let Some(winner) = first.get(&key) else {
            if is_on_every_port(&ranked.rule.scope) {
                first.insert(key, ranked);
            }
            continue;
        };
        // Of several routes of one document the first is meant to win.
        if winner.rule.policy != ranked.rule.policy {
            let about = key.shown();
            let reason = format!(
                "it never applies: {} in {} is for {about} too, and {}",
                winner.rule.policy,
                winner.rule.place,
                why(winner, ranked)
            );
            report.warnings.extend(known.warning(ranked, reason));
        }
    }
}

fn why(winner: &Ranked, loser: &Ranked) -> &'static str {
    let is_redirect = |ranked: &Ranked| ranked.rule.policy.starts_with(VirtualService::KIND);
    if is_redirect(loser) && !is_redirect(winner) {
        "a DestinationRule goes before a VirtualService"
    } else {
        "the oldest wins, then the first by name"
    }
}

fn is_on_every_port(scope: &Scope) -> bool {
    match scope {
        Scope::All | Scope::Labels(_) => true,
        Scope::Host { ports, .. } => *ports == Ports::All,
    }
}

/// What a rule is about, but for ports and workloads.
#[derive(Eq, Hash, PartialEq)]
enum About<'a> {
    All,
    Host(&'a HostPattern),
    Labels(&'a BTreeMap<String, String>),
}

impl<'a> About<'a> {
    fn of(scope: &'a Scope) -> Self {
        match scope {
            Scope::All => Self::All,
            Scope::Host { pattern, .. } => Self::Host(pattern),
            Scope::Labels(labels) => Self::Labels(labels),
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::All => "all external traffic".to_owned(),
            Self::Host(pattern) => format!("`{pattern}`"),
            Self::Labels(labels) => {
                format!("services with the labels {}", problem::labels(labels))
            }
        }
    }
}

/// Documents by what their rules are attributed to.
struct Known<'a> {
    tunnels: HashMap<String, &'a Document<Tunnel>>,
    destination_rules: HashMap<String, &'a Document<DestinationRule>>,
    virtual_services: HashMap<String, &'a Document<VirtualService>>,
}

impl<'a> Known<'a> {
    fn new(documents: &'a Documents) -> Self {
        Self {
            tunnels: by_id(&documents.tunnels),
            destination_rules: by_id(&documents.destination_rules),
            virtual_services: by_id(&documents.virtual_services),
        }
    }

    fn warning(&self, ranked: &Ranked, reason: String) -> Option<Problem> {
        let id = &ranked.rank.id;
        if let Some(document) = self.tunnels.get(id) {
            return Some(document.problem("spec", reason));
        }
        if let Some(document) = self.virtual_services.get(id) {
            return Some(document.problem("spec", reason));
        }
        let document = self.destination_rules.get(id)?;
        Some(document.problem("spec.trafficPolicy.tunnel", reason))
    }
}

fn by_id<T: Object>(documents: &[Arc<Document<T>>]) -> HashMap<String, &Document<T>> {
    documents
        .iter()
        .map(|document| (document.id(), &**document))
        .collect()
}
