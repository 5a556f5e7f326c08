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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::policy::{Materials, Options, Policy};

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
            "{ connectionPool: { tcp: { maxConnections: 7, connectTimeout: 2s } },
               loadBalancer: { simple: ROUND_ROBIN },
               outlierDetection: { consecutive5xxErrors: 9, consecutiveGatewayErrors: 4,
                 baseEjectionTime: 1m, maxEjectionPercent: 50 } }",
        );
        // The exact host goes before a wildcard.
        let other = rule("any", "*.example", "{ loadBalancer: { simple: RANDOM } }");
        let (settings, warnings) = compile(&[other.clone(), everything]);
        let expected = ProxySettings {
            balance: Balance::RoundRobin,
            connect_timeout: Some(Duration::from_secs(2)),
            ejection: Ejection {
                after: 4,
                base: Duration::from_secs(60),
                max_percent: 50,
            },
            max_connections: Some(7),
            max_pending: None,
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
    fn what_is_not_acted_on_is_said() {
        let fields = "{ connectionPool: { tcp: { maxConnections: 7 }, http: { maxRetries: 1 } },
                        outlierDetection: { interval: 1s } }";
        let (_, of_proxy) = compile(&[rule("rule", "proxy.example", fields)]);
        let (_, of_other) = compile(&[rule("rule", "www.example.com", fields)]);
        let keys = |warnings: &[String]| -> Vec<String> {
            let key = |text: &String| text.split(": ").nth(2).unwrap_or_default().to_owned();
            warnings.iter().map(key).collect()
        };
        let unknown = [
            "spec.trafficPolicy.connectionPool.http",
            "spec.trafficPolicy.outlierDetection.interval",
        ];
        assert_eq!(keys(&of_proxy), unknown);
        let mut idle = keys(&of_other);
        idle.retain(|key| !unknown.contains(&key.as_str()));
        let expected = [
            "spec.trafficPolicy.connectionPool",
            "spec.trafficPolicy.outlierDetection",
        ];
        assert_eq!(idle, expected);
        let reason = "it is ignored: `www.example.com` is no forward proxy";
        assert!(of_other.iter().any(|warning| warning.contains(reason)));
    }
}
