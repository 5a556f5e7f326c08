//! A policy as the admin endpoint shows it: what was compiled, without secrets.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::compile::{Policy, Route, TargetRule};
use super::external::Side;
use super::failure_mode::FailureMode;
use super::no_proxy::HostEntry;
use super::ports::PortSet;
use crate::name::Host;

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let plan = self.capture_plan();
        PolicyDump {
            captured_ports: plan.ports,
            prefixes: plan
                .prefixes
                .into_iter()
                .map(|(prefix, side)| PrefixDump { prefix, side })
                .collect(),
            tunnels: self.tunnel.iter().map(RouteDump::new).collect(),
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
    tunnels: Vec<RouteDump<'a>>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct PrefixDump {
    prefix: IpNet,
    side: Side,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RouteDump<'a> {
    policy: &'a str,
    proxy: ProxyDump,
    /// As in a document; `null`: the best known name.
    target_host: Option<String>,
    /// `null`: the original port.
    target_port: Option<u16>,
    no_proxy: Vec<&'a HostEntry>,
    failure_mode: FailureMode,
}

#[derive(Serialize)]
struct ProxyDump {
    host: String,
    port: u16,
    /// Whether there are any; they are never shown.
    credentials: bool,
}

impl<'a> RouteDump<'a> {
    fn new(route: &'a Route) -> Self {
        let host = match &route.proxy.host {
            Host::Addr(IpAddr::V6(addr)) => addr.to_string(),
            host => host.to_string(),
        };
        Self {
            policy: &route.policy,
            proxy: ProxyDump {
                host,
                port: route.proxy.port,
                credentials: route.proxy.credentials.is_some(),
            },
            target_host: match &route.target_host {
                TargetRule::AutoSni => Some("AUTO_SNI".to_owned()),
                TargetRule::BestKnown => None,
                TargetRule::Fixed { host, .. } => Some(host.to_string()),
                TargetRule::OriginalDst => Some("ORIGINAL_DST".to_owned()),
            },
            target_port: route.target_port,
            no_proxy: route.no_proxy.entries().collect(),
            failure_mode: route.failure_mode,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use crate::policy::{Documents, HostList, Options, Policy, Proxy};

    #[test]
    fn the_dump_has_the_policy() {
        let mut documents = Documents::default();
        documents.add(
            Path::new("a.yaml"),
            "apiVersion: underpass.dev/v1alpha1\nkind: Tunnel\nmetadata: {name: all}\n\
             spec: {proxy: {host: '2001:db8::1', port: 3128}, targetHost: AUTO_SNI, \
             targetPort: 443, noProxy: ['*:25', .example.com]}\n",
        );
        let policy = Policy::compile(&documents, &Options::default()).unwrap();
        let dump = serde_json::to_value(&policy).unwrap();
        assert_eq!(
            dump["tunnels"],
            json!([{
                "policy": "Tunnel/all",
                "proxy": {"host": "2001:db8::1", "port": 3128, "credentials": false},
                "targetHost": "AUTO_SNI",
                "targetPort": 443,
                "noProxy": ["*:25", "*.example.com"],
                "failureMode": "closed",
            }])
        );
        assert_eq!(dump["capturedPorts"], "1-24,26-65535");
        let loopback = json!({"prefix": "127.0.0.0/8", "side": "internal"});
        assert!(dump["prefixes"].as_array().unwrap().contains(&loopback));
        let warnings = dump["warnings"].as_array().unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
    }

    #[test]
    fn no_secret_is_shown() {
        let proxy = Proxy::from_url("http://user:hunter2@proxy.example").unwrap();
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
