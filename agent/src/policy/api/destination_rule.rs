//! `kind: DestinationRule`, as Istio has it, with `tunnel.proxy` added.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::rules;
use super::service_entry::ExportTo;
use super::tls::TlsFields;
use super::traffic::{ConnectionPool, LoadBalancer, OutlierDetection};
use super::tunnel::{CredentialRef, PlainHttpField};
use super::value::{HostField, HostPattern, Port, TargetHost};
use super::words::words;
use super::{ISTIO_VERSIONS, Resource, Spec};
use crate::policy::yaml::FieldNotes;

/// Says how connections to a host are made: to a target, inside its tunnel; to a proxy, the
/// connection to it.
pub(in crate::policy) type DestinationRule = Resource<DestinationRuleSpec>;

impl Spec for DestinationRuleSpec {
    const KIND: &'static str = "DestinationRule";
    const API_VERSIONS: &'static [&'static str] = ISTIO_VERSIONS;
    const NOTES: FieldNotes = FieldNotes {
        ignored: &[
            "spec.subsets",
            "spec.trafficPolicy.connectionPool.tcp.maxConnectionDuration",
            "spec.trafficPolicy.connectionPool.tcp.tcpKeepalive",
            "spec.trafficPolicy.loadBalancer.consistentHash",
            "spec.trafficPolicy.loadBalancer.localityLbSetting",
            "spec.trafficPolicy.loadBalancer.warmup",
            "spec.trafficPolicy.loadBalancer.warmupDurationSecs",
            "spec.trafficPolicy.outlierDetection.consecutiveErrors",
            "spec.trafficPolicy.outlierDetection.minHealthPercent",
            "spec.trafficPolicy.proxyProtocol",
            "spec.trafficPolicy.retryBudget",
            "spec.trafficPolicy.portLevelSettings[].connectionPool.tcp.maxConnectionDuration",
            "spec.trafficPolicy.portLevelSettings[].connectionPool.tcp.tcpKeepalive",
            "spec.trafficPolicy.portLevelSettings[].loadBalancer.consistentHash",
            "spec.trafficPolicy.portLevelSettings[].loadBalancer.localityLbSetting",
            "spec.trafficPolicy.portLevelSettings[].loadBalancer.warmup",
            "spec.trafficPolicy.portLevelSettings[].loadBalancer.warmupDurationSecs",
            "spec.trafficPolicy.portLevelSettings[].outlierDetection.consecutiveErrors",
            "spec.trafficPolicy.portLevelSettings[].outlierDetection.minHealthPercent",
            "spec.trafficPolicy.tls.caCrl",
        ],
        required: &[],
    };
}

/// What a [`DestinationRule`] says.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with host"
)]
pub(in crate::policy) struct DestinationRuleSpec {
    /// The host: a name, or `*.example.com` for every name below.
    pub(in crate::policy) host: HostPattern,
    /// How connections to it are made.
    #[serde(default)]
    pub(in crate::policy) traffic_policy: TrafficPolicy,
    /// The namespaces whose workloads it is for: `.` its own, `*` all; unset: all.
    #[serde(default)]
    #[schemars(length(max = rules::MOST_ITEMS))]
    pub(in crate::policy) export_to: Vec<ExportTo>,
    /// The pods that it is for; unset: all.
    pub(in crate::policy) workload_selector: Option<PodSelector>,
}

/// Selects pods by label.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with matchLabels"
)]
pub(in crate::policy) struct PodSelector {
    /// Labels of a pod, all of which must be there.
    #[serde(default)]
    pub(in crate::policy) match_labels: BTreeMap<String, String>,
}

/// How connections to a host are made.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(
    default,
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping"
)]
#[schemars(extend("x-kubernetes-validations" = rules::TRAFFIC_POLICY))]
pub(in crate::policy) struct TrafficPolicy {
    /// Through a forward proxy.
    pub(in crate::policy) tunnel: Option<TunnelFields>,
    /// The forward proxy, where it stands beside `tunnel` and not in it.
    pub(in crate::policy) proxy: Option<TunnelProxy>,
    /// TLS to the host.
    pub(in crate::policy) tls: Option<TlsFields>,
    /// Limits on connections and requests.
    pub(in crate::policy) connection_pool: Option<ConnectionPool>,
    /// Which endpoint of a proxy connections go to.
    pub(in crate::policy) load_balancer: Option<LoadBalancer>,
    /// When an endpoint of a proxy is passed over, or a target refused.
    pub(in crate::policy) outlier_detection: Option<OutlierDetection>,
    /// The same for single ports.
    #[schemars(length(max = rules::MOST_ITEMS))]
    pub(in crate::policy) port_level_settings: Vec<PortPolicy>,
}

/// How connections to one port of a host are made.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with port"
)]
pub(in crate::policy) struct PortPolicy {
    /// The port.
    pub(in crate::policy) port: PortRef,
    /// TLS to the port.
    pub(in crate::policy) tls: Option<TlsFields>,
    /// Limits on connections and requests.
    pub(in crate::policy) connection_pool: Option<ConnectionPool>,
    /// Which endpoint of a proxy connections go to.
    pub(in crate::policy) load_balancer: Option<LoadBalancer>,
    /// When an endpoint of a proxy is passed over, or a target refused.
    pub(in crate::policy) outlier_detection: Option<OutlierDetection>,
}

/// A port by number.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with number")]
pub(in crate::policy) struct PortRef {
    /// The number.
    pub(in crate::policy) number: Port,
}

/// A tunnel, as a DestinationRule asks for it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with targetHost and targetPort"
)]
pub(in crate::policy) struct TunnelFields {
    /// By which method; the version of HTTP is that of the proxy's ServiceEntry.
    pub(in crate::policy) protocol: Option<TunnelMethod>,
    /// Which host the proxy is asked for.
    pub(in crate::policy) target_host: Option<TargetHost>,
    /// Which port the proxy is asked for.
    pub(in crate::policy) target_port: Option<Port>,
    /// The forward proxy; unset: `host` is the proxy, and a VirtualService sends connections there.
    pub(in crate::policy) proxy: Option<TunnelProxy>,
}

words! {
    /// The method by which a tunnel is asked for.
    pub(in crate::policy) enum TunnelMethod {
        /// CONNECT.
        Connect = "CONNECT",
        /// POST, which needs HTTP/2.
        Post = "POST",
    }
}

/// The forward proxy of a DestinationRule.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with host"
)]
#[schemars(extend("x-kubernetes-validations" = rules::TUNNEL_PROXY))]
pub(in crate::policy) struct TunnelProxy {
    /// The host of the ServiceEntry or Service that describes it, or its name or address.
    pub(in crate::policy) host: HostField,
    /// Its port; unset: that of its ServiceEntry or Service.
    pub(in crate::policy) port: Option<Port>,
    /// What it wants to see before it opens a tunnel.
    pub(in crate::policy) authorization: Option<CredentialRef>,
    /// How requests of plain HTTP/1.1 go to it; unset: CONNECT.
    #[serde(default, rename = "plainHTTP")]
    pub(in crate::policy) plain_http: PlainHttpField,
}
