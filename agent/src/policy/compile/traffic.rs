//! What DestinationRules say of connections: how many, to which endpoint, and when one has failed too
//! often; of proxies here, of targets in `targets`.

use std::collections::HashSet;
use std::time::Duration;

use super::Report;
use crate::name::HostName;
use crate::policy::api::Object as _;
use crate::policy::api::destination_rule::{DestinationRule, TrafficPolicy};
use crate::policy::api::metadata::Namespace;
use crate::policy::api::quantity::Limit;
use crate::policy::api::traffic::{
    ConnectionPool, HttpPool, LoadBalancer, OutlierDetection, SimpleBalance,
};
use crate::policy::document::{Document, Documents};
use crate::policy::hosts::HostTable;
use crate::policy::proxy::{Balance, Ejection, ProxySettings};

/// What rules say of hosts, and of single ports of theirs; of one host the oldest first, and of one
/// rule its ports first.
#[derive(Debug)]
pub(super) struct Traffic<'a> {
    facets: Vec<Facet<'a>>,
    by_host: HostTable<usize>,
}

/// What a rule says of its host, or of one port of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facet<'a> {
    pub(super) document: &'a Document<DestinationRule>,
    /// The index of the item of `portLevelSettings`, and its port.
    pub(super) port: Option<(usize, u16)>,
    pub(super) pool: Option<&'a ConnectionPool>,
    pub(super) balancer: Option<&'a LoadBalancer>,
    pub(super) outliers: Option<&'a OutlierDetection>,
}

impl<'a> Facet<'a> {
    fn of_host(document: &'a Document<DestinationRule>) -> Self {
        let policy = &document.object.spec.traffic_policy;
        Self {
            document,
            port: None,
            pool: policy.connection_pool.as_ref(),
            balancer: policy.load_balancer.as_ref(),
            outliers: policy.outlier_detection.as_ref(),
        }
    }

    fn of_ports(document: &'a Document<DestinationRule>) -> impl Iterator<Item = Self> {
        let policy = &document.object.spec.traffic_policy;
        let ports = policy.port_level_settings.iter().enumerate();
        ports.map(move |(index, port)| Self {
            document,
            port: Some((index, port.port.number.get())),
            pool: port.connection_pool.as_ref(),
            balancer: port.load_balancer.as_ref(),
            outliers: port.outlier_detection.as_ref(),
        })
    }

    fn says_something(&self) -> bool {
        self.fields().next().is_some()
    }

    /// The fields that say something, by name.
    fn fields(&self) -> impl Iterator<Item = &'static str> {
        let balancer = self.balancer.is_some_and(|b| b.simple.is_some());
        [
            (
                "connectionPool",
                self.pool
                    .is_some_and(|pool| *pool != ConnectionPool::default()),
            ),
            ("loadBalancer", balancer),
            ("outlierDetection", self.outliers.is_some()),
        ]
        .into_iter()
        .filter_map(|(field, is_there)| is_there.then_some(field))
    }

    /// Whether it is about this port.
    fn is_on(&self, port: u16) -> bool {
        self.port.is_none_or(|(_, only)| only == port)
    }

    /// Where a field of it stands.
    pub(super) fn key(&self, field: &str) -> String {
        match self.port {
            None => format!("spec.trafficPolicy.{field}"),
            Some((index, _)) => format!("spec.trafficPolicy.portLevelSettings[{index}].{field}"),
        }
    }
}

impl<'a> Traffic<'a> {
    pub(super) fn new(documents: &'a Documents) -> Self {
        let mut rules: Vec<_> = documents.destination_rules.iter().collect();
        rules.sort_by(|a, b| a.seniority().cmp(&b.seniority()));
        let mut facets = Vec::new();
        let mut by_host = HostTable::default();
        for document in rules {
            let whole = Facet::of_host(document);
            let said = Facet::of_ports(document).chain([whole]);
            for facet in said.filter(Facet::says_something) {
                by_host.push(&document.object.spec.host, facets.len());
                facets.push(facet);
            }
        }
        Self { facets, by_host }
    }

    /// All there is, in order.
    pub(super) fn facets(&self) -> impl Iterator<Item = &Facet<'a>> {
        self.facets.iter()
    }

    /// What is said of this port of the proxy of these names, the nearest first.
    /// Only rules at some distance count, of those the nearest.
    pub(super) fn settings(
        &self,
        names: &[HostName],
        port: u16,
        distance: impl Fn(Option<&Namespace>) -> Option<u8>,
    ) -> ProxySettings {
        let mut settings = ProxySettings::default();
        let found = names.iter().find_map(|name| {
            let said = self
                .by_host
                .matching(name)
                .map(|index| &self.facets[*index]);
            let on_it = said.filter(|facet| facet.is_on(port));
            let near =
                on_it.filter_map(|facet| Some((distance(facet.document.namespace())?, facet)));
            near.min_by_key(|(distance, _)| *distance)
                .map(|(_, facet)| facet)
        });
        let Some(facet) = found else {
            return settings;
        };
        if let Some(pool) = facet.pool {
            settings.max_connections = pool.tcp.max_connections.and_then(Limit::get);
            settings.connect_timeout = pool.tcp.connect_timeout.map(|time| time.0);
            let max_pending = pool.http.http1_max_pending_requests;
            settings.max_pending = max_pending.and_then(Limit::get);
        }
        if let Some(balancer) = facet.balancer {
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
        if let Some(outliers) = facet.outliers {
            settings.ejection = ejection(outliers);
        }
        settings
    }
}

fn ejection(outliers: &OutlierDetection) -> Ejection {
    let given = [
        outliers.consecutive_5xx_errors,
        outliers.consecutive_gateway_errors,
    ];
    // 0 takes one away, and both only together.
    let least = given.into_iter().flatten().filter(|after| *after > 0).min();
    let none_given = given.iter().all(Option::is_none);
    let default = Ejection::default();
    let time = outliers.base_ejection_time.map(|time| time.0);
    Ejection {
        after: least.unwrap_or(if none_given { default.after } else { 0 }),
        base: time.unwrap_or(default.base).max(Duration::from_millis(1)),
        max_percent: outliers
            .max_ejection_percent
            .map_or(default.max_percent, |percent| percent.0),
    }
}

/// Warns of what is said and does not count.
pub(super) fn warn(documents: &Documents, proxies: &HashSet<HostName>, report: &mut Report) {
    for document in &documents.destination_rules {
        let host = &document.object.spec.host;
        let is_of_proxy = proxies.iter().any(|proxy| host.matches(proxy));
        let is_a_proxy = host.name().is_some_and(|name| proxies.contains(name));
        let whole = Facet::of_host(document);
        for facet in Facet::of_ports(document).chain([whole]) {
            let mut warn = |field: &str, reason: String| {
                report
                    .warnings
                    .push(document.problem(&facet.key(field), reason));
            };
            if !is_of_proxy && facet.balancer.is_some_and(|b| b.simple.is_some()) {
                let reason = format!(
                    "it is ignored: `{host}` is no forward proxy, and the agent chooses among the \
                     endpoints of proxies only"
                );
                warn("loadBalancer", reason);
            }
            if is_a_proxy {
                for field in only_for_targets(&facet) {
                    let reason = format!(
                        "it is ignored: `{host}` is a forward proxy, and underpass acts on this \
                         field of a {} for targets only",
                        DestinationRule::KIND
                    );
                    warn(field, reason);
                }
            }
            let local = facet
                .outliers
                .filter(|o| !o.split_external_local_origin_errors);
            if local.is_some_and(|o| o.consecutive_local_origin_failures.is_some()) {
                let reason = "it has no effect without `splitExternalLocalOriginErrors: true`";
                warn(
                    "outlierDetection.consecutiveLocalOriginFailures",
                    reason.to_owned(),
                );
            }
            if facet.port.is_none() || !facet.says_something() {
                continue;
            }
            let own: Vec<_> = facet.fields().collect();
            for field in whole.fields().filter(|field| !own.contains(field)) {
                let reason = format!(
                    "`trafficPolicy.{field}` does not count for this port: the settings of a port \
                     take the place of all of those for the host, as in Istio"
                );
                warn("port", reason);
            }
        }
    }
}

/// The fields that mean something for targets and nothing for proxies.
fn only_for_targets(facet: &Facet<'_>) -> impl Iterator<Item = &'static str> {
    let pool = facet.pool.cloned().unwrap_or_default();
    let outliers = facet.outliers.cloned().unwrap_or_default();
    let http = HttpPool {
        // Openings of tunnels are what waits at a proxy.
        http1_max_pending_requests: None,
        ..pool.http.clone()
    };
    [
        ("connectionPool.http", http != HttpPool::default()),
        (
            "connectionPool.tcp.idleTimeout",
            pool.tcp.idle_timeout.is_some(),
        ),
        ("outlierDetection.interval", outliers.interval.is_some()),
        (
            "outlierDetection.splitExternalLocalOriginErrors",
            outliers.split_external_local_origin_errors,
        ),
    ]
    .into_iter()
    .filter_map(|(field, is_there)| is_there.then_some(field))
}

/// Whether a rule says something that counts for targets.
pub(super) fn is_about_targets(policy: &TrafficPolicy) -> bool {
    let whole = policy.connection_pool.is_some() || policy.outlier_detection.is_some();
    let mut ports = policy.port_level_settings.iter();
    whole || ports.any(|port| port.connection_pool.is_some() || port.outlier_detection.is_some())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::policy::{DialFrom, Materials, Options, Policy};

    const TUNNEL: &str = "\
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: { name: all }
spec:
  proxy: { host: proxy.example, port: 3128, warmConnections: true }
";

    fn rule(name: &str, host: &str, policy: &str) -> String {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{ name: {name} }}\nspec:\n  host: '{host}'\n  trafficPolicy: {policy}\n"
        )
    }

    /// The settings of the one proxy, and the warnings.
    fn compile(rules: &[String]) -> (ProxySettings, Vec<String>) {
        let mut documents = Documents::default();
        documents.add(Path::new("a.yaml"), &(TUNNEL.to_owned() + &rules.concat()));
        let policy = Policy::compile(&documents, &Materials::none(), &Options::default());
        let policy = policy.unwrap();
        let warnings = policy.warnings().iter().map(ToString::to_string).collect();
        (policy.proxies().next().unwrap().settings, warnings)
    }

    #[test]
    fn what_istio_calls_a_traffic_policy_is_heeded_for_proxies() {
        let everything = rule(
            "proxy",
            "proxy.example",
            "{ connectionPool: { tcp: { maxConnections: 7, connectTimeout: 2s },
                 http: { http1MaxPendingRequests: 9 } },
               loadBalancer: { simple: ROUND_ROBIN },
               outlierDetection: { consecutive5xxErrors: 9, consecutiveGatewayErrors: 4,
                 baseEjectionTime: 1m, maxEjectionPercent: 50 } }",
        );
        // The exact host goes before a wildcard.
        let other = rule("any", "*.example", "{ loadBalancer: { simple: RANDOM } }");
        let (settings, warnings) = compile(&[other.clone(), everything]);
        let expected = ProxySettings {
            dial_from: DialFrom::Node,
            balance: Balance::RoundRobin,
            connect_timeout: Some(Duration::from_secs(2)),
            ejection: Ejection {
                after: 4,
                base: Duration::from_secs(60),
                max_percent: 50,
            },
            max_connections: Some(7),
            max_pending: Some(9),
            warm: true,
        };
        assert_eq!(settings, expected);
        assert_eq!(warnings, [""; 0]);

        assert_eq!(compile(&[other]).0.balance, Balance::Random);
        let usual = ProxySettings {
            warm: true,
            ..ProxySettings::default()
        };
        assert_eq!(compile(&[]).0, usual);
        for (errors, after) in [
            ("consecutive5xxErrors: 0", 0),
            ("consecutive5xxErrors: 0, consecutiveGatewayErrors: 5", 5),
            ("maxEjectionPercent: 100", usual.ejection.after),
        ] {
            let policy = format!("{{ outlierDetection: {{ {errors} }} }}");
            let (settings, _) = compile(&[rule("proxy", "proxy.example", &policy)]);
            assert_eq!(settings.ejection.after, after, "{errors}");
        }
    }

    #[test]
    fn the_settings_of_a_port_take_the_place_of_the_others() {
        let of_port = |port: u16| {
            let policy = format!(
                "{{ connectionPool: {{ tcp: {{ maxConnections: 7 }} }},
                    outlierDetection: {{ consecutive5xxErrors: 9 }},
                    portLevelSettings: [{{ port: {{ number: {port} }},
                      connectionPool: {{ tcp: {{ maxConnections: 8 }} }} }}] }}"
            );
            compile(&[rule("proxy", "proxy.example", &policy)])
        };
        let (other, _) = of_port(3129);
        assert_eq!((other.max_connections, other.ejection.after), (Some(7), 9));
        let (own, warnings) = of_port(3128);
        let usual = ProxySettings::default().ejection.after;
        assert_eq!((own.max_connections, own.ejection.after), (Some(8), usual));
        let reason = "`trafficPolicy.outlierDetection` does not count for this port";
        assert!(
            warnings.len() == 1 && warnings[0].contains(reason),
            "{warnings:?}"
        );
    }

    #[test]
    fn what_is_not_acted_on_is_said() {
        let fields = "{ connectionPool: { tcp: { maxConnections: 7, idleTimeout: 0s },
                          http: { maxRetries: 1 } }, loadBalancer: { simple: RANDOM },
                        outlierDetection: { interval: 1s, splitExternalLocalOriginErrors: true } }";
        let (_, of_proxy) = compile(&[rule("rule", "proxy.example", fields)]);
        let (_, of_other) = compile(&[rule("rule", "www.example.com", fields)]);
        let keys = |warnings: &[String]| -> Vec<String> {
            let key = |text: &String| text.split(": ").nth(2).unwrap_or_default().to_owned();
            warnings.iter().map(key).collect()
        };
        let unknown = [
            "spec.trafficPolicy.connectionPool.tcp.idleTimeout",
            "spec.trafficPolicy.connectionPool.http",
            "spec.trafficPolicy.outlierDetection.interval",
            "spec.trafficPolicy.outlierDetection.splitExternalLocalOriginErrors",
        ];
        assert_eq!(keys(&of_proxy), unknown);
        assert_eq!(keys(&of_other), ["spec.trafficPolicy.loadBalancer"]);
        let reason = "it is ignored: `www.example.com` is no forward proxy";
        assert!(of_other[0].contains(reason), "{of_other:?}");
    }
}
