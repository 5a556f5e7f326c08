//! `kind: Tunnel`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::quantity::Time;
use super::rules;
use super::tls::TlsFields;
use super::value::{HostField, Port, TargetHost};
use super::words::words;
use super::workload_selector::WorkloadSelector;
use super::{Resource, Spec};
use crate::policy::failure_mode::FailureMode;
use crate::policy::no_proxy::HostEntry;

/// Says what becomes of connections: through a forward proxy, direct, or refused.
pub(in crate::policy) type Tunnel = Resource<TunnelSpec>;

impl Spec for TunnelSpec {
    const KIND: &'static str = "Tunnel";
    const API_VERSIONS: &'static [&'static str] = &[
        "underpass.dev/v1alpha1",
        "networking.istio.io/v1alpha1",
        "networking.istio.io/v1beta1",
    ];
}

/// What a [`Tunnel`] does.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with proxy"
)]
#[schemars(extend("x-kubernetes-validations" = rules::TUNNEL))]
pub(in crate::policy) struct TunnelSpec {
    /// To which services the connections are, by the labels of their ServiceEntry; unset: all that
    /// are external.
    pub(in crate::policy) selector: Option<Selector>,
    /// Which workloads the connections come from; unset: all.
    pub(in crate::policy) workload_selector: Option<WorkloadSelector>,
    /// What becomes of them.
    #[serde(default)]
    pub(in crate::policy) action: Action,
    /// The forward proxy.
    pub(in crate::policy) proxy: Option<ProxyRef>,
    /// Several forward proxies instead of one.
    #[schemars(length(max = rules::MOST_ITEMS))]
    pub(in crate::policy) proxies: Option<Vec<ProxyRef>>,
    /// Which host the proxy is asked for: a name or address, `AUTO_SNI`, or `ORIGINAL_DST`; unset:
    /// the first host of the ServiceEntry, else the best known name, else the address.
    pub(in crate::policy) target_host: Option<TargetHost>,
    /// Which port the proxy is asked for; unset: that of the ServiceEntry, else the original one.
    pub(in crate::policy) target_port: Option<Port>,
    /// What does not go through the proxy: names, addresses, ranges, each with a port if need be.
    pub(in crate::policy) no_proxy: Option<Vec<HostEntry>>,
    /// What becomes of connections when there is no tunnel to be had.
    pub(in crate::policy) failure_mode: Option<FailureMode>,
    /// What the DNS of workloads is good for, and whether the agent answers it; unset: Observe.
    pub(in crate::policy) dns: Option<Dns>,
    /// What becomes of a connection that claims a name which was not resolved to its address; unset:
    /// UseName.
    pub(in crate::policy) on_mismatch: Option<OnMismatch>,
    /// What becomes of a TLS connection whose ClientHello may hide its server name (ECH); unset:
    /// UseResolvedName.
    #[serde(rename = "onECH")]
    pub(in crate::policy) on_ech: Option<OnEch>,
    /// What becomes of the keys with which clients encrypt their ClientHello, in answers of name
    /// servers; unset: Keep.
    pub(in crate::policy) ech_keys: Option<EchKeys>,
    /// What becomes of UDP to them; unset: Allow for `action: Direct`, Deny for an `action: Deny` that
    /// is for all workloads, else DenyQUIC.
    pub(in crate::policy) udp: Option<Udp>,
}

words! {
    /// What the DNS of workloads is good for.
    pub(in crate::policy) enum Dns {
        /// Names that they have resolved count, where a connection says none.
        Observe = "Observe",
        /// Nothing.
        Off = "Off",
        /// The same as Observe, and hosts of ServiceEntries have addresses that the agent gives them.
        Serve = "Serve",
    }
}

words! {
    /// What becomes of a connection that claims a name which was not resolved to its address.
    #[derive(Default)]
    pub(in crate::policy) enum OnMismatch {
        /// It is refused.
        Deny = "Deny",
        /// The proxy is asked for the address.
        UseAddress = "UseAddress",
        /// The proxy is asked for the name.
        #[default]
        UseName = "UseName",
    }
}

words! {
    /// What becomes of a TLS connection whose ClientHello may hide its server name (ECH).
    #[derive(Default)]
    pub(in crate::policy) enum OnEch {
        /// It is refused if the workload has resolved no name of the address.
        Deny = "Deny",
        /// The name counts that the workload has resolved, else the server name in the open.
        #[default]
        UseResolvedName = "UseResolvedName",
        /// The server name in the open counts.
        UseServerName = "UseServerName",
    }
}

words! {
    /// What becomes of the keys with which clients encrypt their ClientHello (ECH).
    #[derive(Default)]
    pub(in crate::policy) enum EchKeys {
        /// They stay in the answers of name servers.
        #[default]
        Keep = "Keep",
        /// They are taken out, so that clients do not encrypt.
        Remove = "Remove",
    }
}

words! {
    /// What becomes of UDP, which goes through no tunnel. DNS, port 53, passes in any case.
    pub(in crate::policy) enum Udp {
        /// It passes.
        Allow = "Allow",
        /// It is refused.
        Deny = "Deny",
        /// It passes but for port 443, so that HTTP/3 falls back to TCP.
        DenyQuic = "DenyQUIC",
    }
}

words! {
    /// What becomes of a connection.
    #[derive(Default)]
    pub(in crate::policy) enum Action {
        /// It goes to its original destination.
        Direct = "Direct",
        /// It is refused.
        Deny = "Deny",
        /// It goes through a proxy.
        #[default]
        Tunnel = "Tunnel",
    }
}

/// Selects services.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with matchLabels"
)]
pub(in crate::policy) struct Selector {
    /// Labels of a ServiceEntry, all of which must be there.
    #[serde(default)]
    pub(in crate::policy) match_labels: BTreeMap<String, String>,
}

/// A forward proxy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with host"
)]
#[schemars(extend("x-kubernetes-validations" = rules::PROXY))]
pub(in crate::policy) struct ProxyRef {
    /// Its name or address, or the host of a ServiceEntry or Service that describes it.
    pub(in crate::policy) host: HostField,
    /// Its port; unset: that of its ServiceEntry or Service.
    pub(in crate::policy) port: Option<Port>,
    /// How a tunnel is asked for; unset: as its ServiceEntry or Service says, else HTTP-CONNECT.
    pub(in crate::policy) protocol: Option<ProxyProtocol>,
    /// What it wants to see before it opens a tunnel.
    pub(in crate::policy) authentication: Option<CredentialRef>,
    /// TLS to the proxy; unset: as its DestinationRule says.
    pub(in crate::policy) tls: Option<TlsFields>,
    /// Fields that the request for a tunnel carries besides.
    #[serde(default)]
    pub(in crate::policy) headers: BTreeMap<String, String>,
    /// In which network namespace connections to it are made; unset: in the agent's own, `node`.
    #[serde(default)]
    pub(in crate::policy) dial_from: DialFromField,
    /// How its endpoints are checked while nobody uses them; unset: they are not.
    pub(in crate::policy) health_check: Option<HealthCheck>,
    /// How requests of plain HTTP/1.1 go to it; unset: CONNECT.
    #[serde(default, rename = "plainHTTP")]
    pub(in crate::policy) plain_http: PlainHttpField,
    /// Of several proxies one is used only while none with a lower number can be; unset: 0.
    #[serde(default)]
    pub(in crate::policy) priority: u16,
    /// Of several proxies its share among those of its priority; unset: 1.
    pub(in crate::policy) weight: Option<Weight>,
    /// Whether connections to it are made ahead of demand while there is demand, over HTTP/1.1;
    /// some proxies log those that come to no use.
    #[serde(default)]
    pub(in crate::policy) warm_connections: bool,
}

/// A check of a proxy's endpoints by a tunnel that nobody uses.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with targetHost and targetPort"
)]
pub(in crate::policy) struct HealthCheck {
    /// Which host the endpoint is asked for.
    pub(in crate::policy) target_host: HostField,
    /// Which port; unset: 443.
    pub(in crate::policy) target_port: Option<Port>,
    /// How often, from 1s; unset: 30s.
    pub(in crate::policy) interval: Option<Time>,
}

/// A share, from 1 to 65535.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(try_from = "i64")]
#[schemars(with = "Port")]
pub(in crate::policy) struct Weight(pub(in crate::policy) u16);

impl TryFrom<i64> for Weight {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        u16::try_from(number)
            .ok()
            .filter(|weight| *weight > 0)
            .map(Self)
            .ok_or_else(|| format!("expected a weight from 1 to 65535, found {number}"))
    }
}

words! {
    /// How a tunnel is asked for.
    pub(in crate::policy) enum ProxyProtocol {
        /// CONNECT over HTTP/1.1.
        Http1Connect = "HTTP-CONNECT",
        /// CONNECT over HTTP/2.
        Http2Connect = "HTTP2-CONNECT",
        /// POST over HTTP/2.
        Http2Post = "HTTP2-POST",
    }
}

words! {
    /// In which network namespace connections to a proxy are made.
    #[derive(Default)]
    pub(in crate::policy) enum DialFromField {
        /// In the agent's own.
        #[default]
        Node = "node",
        /// In that of the workload.
        Workload = "workload",
    }
}

words! {
    /// How requests of plain HTTP/1.1 go to a proxy.
    #[derive(Default)]
    pub(in crate::policy) enum PlainHttpField {
        /// To the proxy itself, with a whole URI.
        AbsoluteForm = "ABSOLUTE_FORM",
        /// Through a tunnel.
        #[default]
        Connect = "CONNECT",
    }
}

/// Credentials by name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with credentialName"
)]
pub(in crate::policy) struct CredentialRef {
    /// The Secret: `NAME` in the namespace of the document, or `NAMESPACE/NAME`.
    #[schemars(extend("x-kubernetes-validations" = rules::SECRET, "maxLength" = rules::LONGEST_NAME))]
    pub(in crate::policy) credential_name: String,
}
