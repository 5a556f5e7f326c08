//! What DestinationRules say of the connections to proxies.

use std::time::Duration;

use crate::name::HostName;
use crate::policy::api::Object as _;
use crate::policy::api::destination_rule::{DestinationRule, TrafficPolicy};
use crate::policy::api::traffic::SimpleBalance;
use crate::policy::document::{Document, Documents};
use crate::policy::hosts::HostTable;
use crate::policy::problem::Problem;
use crate::policy::proxy::{Balance, Ejection, ProxySettings};

/// The rules that say something, by host; of one host the oldest first.
#[derive(Debug)]
pub(super) struct Traffic<'a>(HostTable<&'a TrafficPolicy>);

impl<'a> Traffic<'a> {
    pub(super) fn new(documents: &'a Documents) -> Self {
        let mut rules: Vec<_> = documents.destination_rules.iter().collect();
        rules.sort_by(|a, b| a.seniority().cmp(&b.seniority()));
        let mut table = HostTable::default();
        for document in rules {
            let spec = &document.object.spec;
            if fields(&spec.traffic_policy).next().is_some() {
                table.push(&spec.host, &spec.traffic_policy);
            }
        }
        Self(table)
    }

    /// What is said of the proxy of these names, the nearest first.
    pub(super) fn settings(&self, names: &[HostName]) -> ProxySettings {
        let mut settings = ProxySettings::default();
        let found = names.iter().find_map(|name| self.0.matching(name).next());
        let Some(policy) = found else {
            return settings;
        };
        if let Some(pool) = &policy.connection_pool {
            settings.max_connections = pool.tcp.max_connections.map(|count| count.0);
            settings.connect_timeout = pool.tcp.connect_timeout.map(|time| time.0);
        }
        if let Some(balancer) = &policy.load_balancer {
            settings.balance = match balancer.simple {
                Some(SimpleBalance::Random) => Balance::Random,
                Some(SimpleBalance::RoundRobin) => Balance::RoundRobin,
                Some(
                    SimpleBalance::LeastConn
                    | SimpleBalance::LeastRequest
                    | SimpleBalance::Unspecified,
                )
                | None => Balance::LeastActive,
            };
        }
        if let Some(outliers) = &policy.outlier_detection {
            let given = [
                outliers.consecutive_5xx_errors,
                outliers.consecutive_gateway_errors,
            ];
            // 0 takes one away, and both only together.
            let least = given.into_iter().flatten().filter(|after| *after > 0).min();
            let none_given = given.iter().all(Option::is_none);
            let default = Ejection::default();
            let time = outliers.base_ejection_time.map(|time| time.0);
            settings.ejection = Ejection {
                after: least.unwrap_or(if none_given { default.after } else { 0 }),
                base: time.unwrap_or(default.base).max(Duration::from_millis(1)),
                max_percent: outliers
                    .max_ejection_percent
                    .map_or(default.max_percent, |percent| percent.0),
            };
        }
        settings
    }
}

/// The fields that say something, by name.
fn fields(policy: &TrafficPolicy) -> impl Iterator<Item = &'static str> {
    let pool = policy.connection_pool.as_ref().is_some_and(|pool| {
        pool.tcp.max_connections.is_some() || pool.tcp.connect_timeout.is_some()
    });
    let outliers = policy.outlier_detection.is_some();
    let balancer = policy.load_balancer.as_ref();
    let balancer = balancer.is_some_and(|balancer| balancer.simple.is_some());
    [
        ("connectionPool", pool),
        ("loadBalancer", balancer),
        ("outlierDetection", outliers),
    ]
    .into_iter()
    .filter_map(|(field, is_there)| is_there.then_some(field))
}

/// What is said of hosts that are no proxies, of which `is_proxy` knows.
pub(super) fn idle(
    document: &Document<DestinationRule>,
    is_of_proxy: bool,
) -> impl Iterator<Item = Problem> {
    let spec = &document.object.spec;
    let reason = format!(
        "it is ignored: `{}` is no forward proxy, and underpass acts on this field of a {} for \
         proxies only",
        spec.host,
        DestinationRule::KIND
    );
    fields(&spec.traffic_policy)
        .filter(move |_| !is_of_proxy)
        .map(move |field| document.problem(&format!("spec.trafficPolicy.{field}"), &*reason))
}
