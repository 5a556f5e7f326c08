//! What DestinationRules say of targets into settings.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::Report;
use super::tenancy::Tenancy;
use super::tls::workloads;
use super::traffic::{Facet, Traffic};
use crate::name::HostName;
use crate::policy::api::quantity::{Bound, Limit};
use crate::policy::api::traffic::{ConnectionPool, H2Upgrade, OutlierDetection};
use crate::policy::api::value::HostPattern;
use crate::policy::hosts::HostTable;
use crate::policy::rule::{ByTarget, TargetRules};
use crate::policy::target::{HttpSettings, Outliers, TargetSettings};

/// The settings for targets: those that are not only about proxies.
pub(super) fn compile(
    traffic: &Traffic<'_>,
    proxies: &HashSet<HostName>,
    tenancy: Tenancy<'_>,
    report: &mut Report,
) -> TargetRules<TargetSettings> {
    let mut seen: HashMap<(&HostPattern, Option<u16>), &Facet<'_>> = HashMap::new();
    let mut list = Vec::new();
    let mut by_host = HostTable::default();
    for facet in traffic.facets() {
        let host = &facet.document.object.spec.host;
        if host.name().is_some_and(|name| proxies.contains(name)) {
            continue;
        }
        check(facet, report);
        let port = facet.port.map(|(_, port)| port);
        let workloads = workloads(facet.document, tenancy);
        if workloads.is_everyone() {
            match seen.get(&(host, port)) {
                Some(first) => {
                    let reason = format!(
                        "it never applies: {} in {} has the limits of `{host}`, and the oldest \
                         wins, then the first by name",
                        first.document.subject(),
                        first.document.place("spec.trafficPolicy")
                    );
                    let field = if facet.pool.is_some() {
                        "connectionPool"
                    } else {
                        "outlierDetection"
                    };
                    let problem = facet.document.problem(&facet.key(field), reason);
                    report.warnings.push(problem);
                }
                None => {
                    seen.insert((host, port), facet);
                }
            }
        }
        if facet.pool.is_none() && facet.outliers.is_none() && facet.port.is_none() {
            // It is about endpoints, of which a target has none.
            continue;
        }
        by_host.push(host, list.len());
        list.push(ByTarget {
            host: host.clone(),
            port,
            workloads,
            says: Arc::new(settings(facet)),
        });
    }
    TargetRules { list, by_host }
}

fn check(facet: &Facet<'_>, report: &mut Report) {
    let http = facet.pool.map(|pool| &pool.http);
    let both = http.is_some_and(|http| {
        http.use_client_protocol && http.h2_upgrade_policy == Some(H2Upgrade::Upgrade)
    });
    if both {
        let reason = "`h2UpgradePolicy: UPGRADE` wants another protocol than the client's";
        let key = facet.key("connectionPool.http.useClientProtocol");
        report.problems.push(facet.document.problem(&key, reason));
    }
}

fn settings(facet: &Facet<'_>) -> TargetSettings {
    let ConnectionPool { tcp, http } = facet.pool.cloned().unwrap_or_default();
    let limit = |limit: Option<Limit>| limit.and_then(Limit::get);
    TargetSettings {
        policy: Some(facet.document.id().into()),
        max_connections: limit(tcp.max_connections),
        connect_timeout: tcp.connect_timeout.map(|time| time.0),
        idle_timeout: tcp.idle_timeout.map(Bound::get),
        http: HttpSettings {
            max_pending: limit(http.http1_max_pending_requests),
            max_requests: limit(http.http2_max_requests),
            max_requests_per_connection: limit(http.max_requests_per_connection),
            max_retries: limit(http.max_retries),
            idle_timeout: http.idle_timeout.map(|time| time.0),
            upgrades: http.h2_upgrade_policy == Some(H2Upgrade::Upgrade),
            max_streams: limit(http.max_concurrent_streams),
        },
        outliers: facet.outliers.map(outliers),
    }
}

fn outliers(given: &OutlierDetection) -> Outliers {
    let usual = Outliers::default();
    Outliers {
        failures: given.consecutive_5xx_errors.unwrap_or(usual.failures),
        gateway_failures: given
            .consecutive_gateway_errors
            .unwrap_or(usual.gateway_failures),
        local_failures: given
            .split_external_local_origin_errors
            .then(|| given.consecutive_local_origin_failures.unwrap_or(5)),
        base: given
            .base_ejection_time
            .map_or(usual.base, |time| time.0)
            .max(Duration::from_millis(1)),
        interval: given
            .interval
            .map_or(usual.interval, |time| time.0)
            .max(Duration::from_millis(1)),
        ejects: given.max_ejection_percent.is_none_or(|most| most.0 > 0),
    }
}

#[cfg(test)]
mod tests;
