//! A policy as the admin endpoint shows it: what was compiled, without secrets.

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::compile::Policy;
use super::external::Captured;
use super::failure_mode::FailureMode;
use super::no_proxy::HostEntry;
use super::ports::PortSet;
use super::proxy::{PlainHttp, Proxy, RankedProxy, TunnelProtocol};
use super::rule::{Action, Route, Rule, Scope, TargetRule};
use crate::tls::ClientTls;

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let plan = self.capture_plan();
        PolicyDump {
            captured_ports: plan.ports,
            prefixes: plan
                .prefixes
                .into_iter()
                .map(|(prefix, sides)| PrefixDump { prefix, sides })
                .collect(),
            services: self.services.len(),
            rules: self.rules.iter().map(RuleDump::new).collect(),
            warnings: self.warnings.iter().map(ToString::to_string).collect(),
        }
        .serialize(serializer)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyDump<'a> {
    captured_ports: PortSet,
    prefixes: Vec<PrefixDump>,
    /// How many.
    services: usize,
    /// In the order of precedence.
    rules: Vec<RuleDump<'a>>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct PrefixDump {
    prefix: IpNet,
    #[serde(flatten)]
    sides: Captured,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RuleDump<'a> {
    policy: &'a str,
    place: &'a str,
    /// `null`: every external service.
    about: Option<String>,
    action: &'static str,
    udp: String,
    #[serde(flatten)]
    route: Option<RouteDump<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RouteDump<'a> {
    proxies: Vec<ProxyDump>,
    /// As in a document; `null`: the best known name.
    target_host: Option<String>,
    /// `null`: that of the service, else the original one.
    target_port: Option<u16>,
    no_proxy: Vec<&'a HostEntry>,
    failure_mode: FailureMode,
    /// `null`: as other rules for the workload say.
    dns: Option<String>,
    on_mismatch: String,
    #[serde(rename = "onECH")]
    on_ech: String,
    /// `null`: as other rules for the workload say.
    ech_keys: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProxyDump {
    proxy: String,
    endpoints: Vec<String>,
    protocol: TunnelProtocol,
    tls: &'static str,
    /// Whether there are any; they are never shown.
    credentials: bool,
    /// As in documents, with what they stand for left open.
    headers: Vec<String>,
    #[serde(rename = "plainHTTP")]
    plain_http: PlainHttp,
    priority: u16,
    weight: u16,
}

impl<'a> RuleDump<'a> {
    fn new(rule: &'a Rule) -> Self {
        let (action, route) = match &rule.action {
            Action::Deny => ("Deny", None),
            Action::Direct => ("Direct", None),
            Action::Tunnel(route) => ("Tunnel", Some(RouteDump::new(route))),
        };
        Self {
            policy: &rule.policy,
            place: &rule.place,
            about: match &rule.scope {
                Scope::All => None,
                Scope::Host { pattern, .. } => Some(pattern.to_string()),
                Scope::Labels(labels) => {
                    let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    Some(labels.join(","))
                }
            },
            action,
            udp: rule.udp.to_string(),
            route,
        }
    }
}

impl<'a> RouteDump<'a> {
    fn new(route: &'a Route) -> Self {
        Self {
            proxies: route.proxies.iter().map(ProxyDump::new).collect(),
            target_host: match &route.target_host {
                TargetRule::AutoSni => Some("AUTO_SNI".to_owned()),
                TargetRule::BestKnown => None,
                TargetRule::Fixed(host) => Some(host.to_string()),
                TargetRule::OriginalDst => Some("ORIGINAL_DST".to_owned()),
            },
            target_port: route.target_port,
            no_proxy: route.no_proxy.entries().collect(),
            failure_mode: route.failure_mode,
            dns: route.dns.map(|dns| dns.to_string()),
            on_mismatch: route.on_mismatch.to_string(),
            on_ech: route.on_ech.to_string(),
            ech_keys: route.ech_keys.map(|keys| keys.to_string()),
        }
    }
}

impl ProxyDump {
    fn new(ranked: &RankedProxy) -> Self {
        let proxy: &Proxy = &ranked.proxy;
        Self {
            proxy: proxy.to_string(),
            endpoints: proxy.endpoints.iter().map(ToString::to_string).collect(),
            protocol: proxy.protocol,
            tls: tls(proxy.tls.as_deref()),
            credentials: proxy.credentials.is_some(),
            headers: proxy.headers.iter().map(ToString::to_string).collect(),
            plain_http: proxy.plain_http,
            priority: ranked.priority,
            weight: ranked.weight,
        }
    }
}

/// The mode of TLS, as documents have it.
pub(super) fn tls(client: Option<&ClientTls>) -> &'static str {
    match client.map(ClientTls::settings) {
        None => "DISABLE",
        Some(settings) if settings.identity.is_some() => "MUTUAL",
        Some(_) => "SIMPLE",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use crate::policy::{Documents, HostList, Materials, Options, Policy, Proxy};
    use crate::tls::SystemRoots;

    #[test]
    fn the_dump_has_the_policy() {
        let mut documents = Documents::default();
        documents.add(
            Path::new("a.yaml"),
            "apiVersion: underpass.dev/v1alpha1\nkind: Tunnel\nmetadata: {name: all}\n\
             spec: {proxy: {host: '2001:db8::1', port: 3128}, targetHost: AUTO_SNI, \
             targetPort: 443, noProxy: ['*:25', .example.com]}\n",
        );
        let policy = Policy::compile(&documents, &Materials::none(), &Options::default()).unwrap();
        let dump = serde_json::to_value(&policy).unwrap();
        assert_eq!(
            dump["rules"],
            json!([{
                "policy": "Tunnel/all",
                "place": "a.yaml:3",
                "about": null,
                "action": "Tunnel",
                "udp": "DenyQUIC",
                "proxies": [{
                    "proxy": "[2001:db8::1]:3128",
                    "endpoints": ["[2001:db8::1]:3128"],
                    "protocol": "HTTP-CONNECT",
                    "tls": "DISABLE",
                    "credentials": false,
                    "headers": [],
                    "plainHTTP": "CONNECT",
                    "priority": 0,
                    "weight": 1,
                }],
                "targetHost": "AUTO_SNI",
                "targetPort": 443,
                "noProxy": ["*:25", "*.example.com"],
                "failureMode": "closed",
                "dns": "Observe",
                "onMismatch": "UseName",
                "onECH": "UseResolvedName",
                "echKeys": "Keep",
            }])
        );
        assert_eq!(dump["capturedPorts"], "1-24,26-65535");
        let loopback = json!({
            "prefix": "127.0.0.0/8", "tcp": "internal", "quic": "internal", "udp": "internal",
        });
        assert!(dump["prefixes"].as_array().unwrap().contains(&loopback));
        let warnings = dump["warnings"].as_array().unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
    }

    #[test]
    fn no_secret_is_shown() {
        let proxy =
            Proxy::from_url("http://user:hunter2@proxy.example", SystemRoots::none).unwrap();
        let secret = proxy.credentials.clone().unwrap();
        let encoded = secret.header().trim_start_matches("Basic ");
        let policy = Policy::for_proxy(proxy, HostList::default(), &Options::default());
        let json = serde_json::to_string(&policy).unwrap();
        assert!(json.contains("\"credentials\":true"), "{json}");
        for text in [json, format!("{policy:?}"), format!("{policy:#?}")] {
            assert!(
                !text.contains("hunter2") && !text.contains(encoded),
                "{text}"
            );
        }
    }
}
