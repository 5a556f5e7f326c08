//! `kind: VirtualService`, as far as it sends connections to a forward proxy, or says how long and
//! how often requests are tried.

use schemars::JsonSchema;
use serde::Deserialize;

use super::http_route::HttpRoute;
use super::service_entry::ExportTo;
use super::value::{HostField, HostPattern, Port};
use super::{Resource, Spec};
use crate::policy::yaml::FieldNotes;

/// Sends connections to a host elsewhere, to a forward proxy; gives requests times and retries.
pub(in crate::policy) type VirtualService = Resource<VirtualServiceSpec>;

impl Spec for VirtualServiceSpec {
    const KIND: &'static str = "VirtualService";
    const API_VERSIONS: &'static [&'static str] = &[
        "networking.istio.io/v1",
        "networking.istio.io/v1beta1",
        "networking.istio.io/v1alpha3",
    ];
    const NOTES: FieldNotes = FieldNotes {
        ignored: &[
            "spec.http[].match[].statPrefix",
            "spec.http[].retries.retryIgnorePreviousHosts",
            "spec.http[].retries.retryRemoteLocalities",
            "spec.http[].route[].destination.subset",
            "spec.tls[].match[].destinationSubnets",
            "spec.tls[].match[].gateways",
            "spec.tls[].match[].sourceLabels",
            "spec.tls[].match[].sourceNamespace",
            "spec.tls[].route[].destination.subset",
            "spec.tcp[].match[].destinationSubnets",
            "spec.tcp[].match[].gateways",
            "spec.tcp[].match[].sourceLabels",
            "spec.tcp[].match[].sourceNamespace",
            "spec.tcp[].match[].sourceSubnet",
            "spec.tcp[].route[].destination.subset",
        ],
        required: &[],
    };
}

/// What a [`VirtualService`] says.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with hosts"
)]
pub(in crate::policy) struct VirtualServiceSpec {
    /// The hosts that connections are for.
    pub(in crate::policy) hosts: Vec<HostPattern>,
    /// Where it applies; on a node there is only `mesh`.
    #[serde(default)]
    pub(in crate::policy) gateways: Vec<String>,
    /// Times and retries of requests of HTTP.
    #[serde(default)]
    pub(in crate::policy) http: Vec<HttpRoute>,
    /// Routes of TLS connections, by server name.
    #[serde(default)]
    pub(in crate::policy) tls: Vec<TlsRoute>,
    /// Routes of other connections, by port.
    #[serde(default)]
    pub(in crate::policy) tcp: Vec<TcpRoute>,
    /// The namespaces whose workloads it is for: `.` its own, `*` all; unset: all.
    #[serde(default)]
    pub(in crate::policy) export_to: Vec<ExportTo>,
}

/// A route of TLS connections.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with match and route"
)]
pub(in crate::policy) struct TlsRoute {
    /// Which connections.
    #[serde(rename = "match")]
    pub(in crate::policy) matches: Vec<TlsMatch>,
    /// Where to.
    pub(in crate::policy) route: Vec<RouteDestination>,
}

/// Matches TLS connections.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with sniHosts"
)]
pub(in crate::policy) struct TlsMatch {
    /// The server names.
    pub(in crate::policy) sni_hosts: Vec<HostPattern>,
    /// The port; unset: any.
    pub(in crate::policy) port: Option<Port>,
}

/// A route of connections.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with match and route"
)]
pub(in crate::policy) struct TcpRoute {
    /// Which connections; unset: all to the hosts.
    #[serde(default, rename = "match")]
    pub(in crate::policy) matches: Vec<TcpMatch>,
    /// Where to.
    pub(in crate::policy) route: Vec<RouteDestination>,
}

/// Matches connections.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with port"
)]
pub(in crate::policy) struct TcpMatch {
    /// The port; unset: any.
    pub(in crate::policy) port: Option<Port>,
}

/// Where a route leads.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with destination"
)]
pub(in crate::policy) struct RouteDestination {
    /// The forward proxy.
    pub(in crate::policy) destination: Destination,
    /// Its share in percent, if there are several.
    #[serde(default)]
    pub(in crate::policy) weight: Option<u16>,
}

/// A host and port.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with host"
)]
pub(in crate::policy) struct Destination {
    /// The host.
    pub(in crate::policy) host: HostField,
    /// The port; unset: the only one of its ServiceEntry or Service.
    pub(in crate::policy) port: Option<super::destination_rule::PortRef>,
}
