//! `kind: ServiceEntry`, as Istio has it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use super::rules;
use super::tunnel::Weight;
use super::value::{HostField, HostPattern, Port};
use super::words::words;
use super::{ISTIO_VERSIONS, Resource, Spec};
use crate::policy::prefix;
use crate::policy::problem::quotable;
use crate::policy::yaml::FieldNotes;

/// Describes an external service, or a forward proxy.
pub(in crate::policy) type ServiceEntry = Resource<ServiceEntrySpec>;

impl Spec for ServiceEntrySpec {
    const KIND: &'static str = "ServiceEntry";
    const API_VERSIONS: &'static [&'static str] = ISTIO_VERSIONS;
    const NOTES: FieldNotes = FieldNotes {
        ignored: &[
            "spec.workloadSelector",
            "spec.endpoints[].labels",
            "spec.endpoints[].locality",
            "spec.endpoints[].network",
            "spec.endpoints[].serviceAccount",
        ],
        required: &[],
    };
}

/// What a [`ServiceEntry`] describes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with hosts"
)]
#[schemars(extend("x-kubernetes-validations" = rules::SERVICE_ENTRY))]
pub(in crate::policy) struct ServiceEntrySpec {
    /// Its names; `*.example.com` stands for every name below. The first is the target host where
    /// a fixed one is needed.
    #[schemars(length(max = rules::MOST_ITEMS))]
    pub(in crate::policy) hosts: Vec<HostPattern>,
    /// Its addresses and ranges; unset: it may be at any.
    #[serde(default)]
    #[schemars(length(max = rules::MOST_ITEMS))]
    pub(in crate::policy) addresses: Vec<AddressField>,
    /// Its ports; unset: any.
    #[serde(default)]
    #[schemars(length(max = rules::MOST_ITEMS))]
    pub(in crate::policy) ports: Vec<ServicePort>,
    /// Whether it is external.
    #[serde(default)]
    pub(in crate::policy) location: Location,
    /// How the addresses of a proxy are found.
    #[serde(default)]
    pub(in crate::policy) resolution: Resolution,
    /// Where a proxy is, if not at its host.
    #[serde(default)]
    #[schemars(length(max = rules::MOST_ITEMS))]
    pub(in crate::policy) endpoints: Vec<ServiceEndpoint>,
    /// The namespaces whose workloads see it: `.` its own, `*` all; unset: all.
    #[serde(default)]
    #[schemars(length(max = rules::MOST_ITEMS))]
    pub(in crate::policy) export_to: Vec<ExportTo>,
    /// One of these must be in the certificate of the service, where TLS is originated.
    #[serde(default)]
    pub(in crate::policy) subject_alt_names: Vec<String>,
}

/// A port of a service.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with number, name and protocol"
)]
pub(in crate::policy) struct ServicePort {
    /// The number.
    pub(in crate::policy) number: Port,
    /// What endpoints call it.
    pub(in crate::policy) name: Option<String>,
    /// What is spoken there; unset: found out.
    #[serde(default)]
    pub(in crate::policy) protocol: PortProtocol,
    /// The port of the target, if it is another.
    pub(in crate::policy) target_port: Option<Port>,
}

words! {
    /// On which side of the egress boundary a service is.
    #[derive(Default)]
    pub(in crate::policy) enum Location {
        /// Beyond it.
        #[default]
        External = "MESH_EXTERNAL",
        /// On this side.
        Internal = "MESH_INTERNAL",
    }
}

words! {
    /// How addresses are found.
    #[derive(Default)]
    pub(in crate::policy) enum Resolution {
        /// By the endpoints, else by the name of the host.
        #[default]
        None = "NONE",
        /// The endpoints are addresses.
        Static = "STATIC",
        /// The endpoints, or the hosts, are names.
        Dns = "DNS",
        /// The same; the agent tries every address of a name anyway.
        DnsRoundRobin = "DNS_ROUND_ROBIN",
        /// The name that a connection asks for, if the hosts are wildcards.
        DynamicDns = "DYNAMIC_DNS",
    }
}

/// What is spoken on a port. Letter case does not matter, as in Istio.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("x-kubernetes-validations" = Self::rules(), "maxLength" = 32))]
pub(in crate::policy) enum PortProtocol {
    /// Not said.
    #[default]
    Auto,
    /// HTTP/1.1, or by its preface HTTP/2.
    Http,
    /// HTTP/2 or gRPC without TLS.
    Http2,
    /// TLS with a server name.
    Tls,
    /// Bytes of which the client sends the first, or the server.
    Tcp,
    /// A proxy, by CONNECT over HTTP/1.1.
    HttpConnect,
    /// A proxy, by CONNECT over HTTP/2.
    Http2Connect,
    /// A proxy, by POST over HTTP/2.
    Http2Post,
}

impl PortProtocol {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("HTTP", Self::Http),
        ("HTTPS", Self::Tls),
        ("HTTP2", Self::Http2),
        ("GRPC", Self::Http2),
        ("GRPC-WEB", Self::Http),
        ("TLS", Self::Tls),
        ("TCP", Self::Tcp),
        ("MONGO", Self::Tcp),
        ("MYSQL", Self::Tcp),
        ("REDIS", Self::Tcp),
        ("HTTP-CONNECT", Self::HttpConnect),
        ("HTTP2-CONNECT", Self::Http2Connect),
        ("HTTP2-POST", Self::Http2Post),
    ];

    /// The protocol that is written so.
    pub(in crate::policy) fn from_word(text: &str) -> Option<Self> {
        let is = |(word, _): &&(&str, Self)| word.eq_ignore_ascii_case(text);
        Self::WORDS.iter().find(is).map(|(_, protocol)| *protocol)
    }

    fn rules() -> Vec<rules::Rule> {
        let words: Vec<_> = Self::WORDS.iter().map(|(word, _)| *word).collect();
        let words = words.join("', '");
        vec![rules::Rule {
            rule: format!("self.upperAscii() in ['{words}']").into(),
            message: format!("expected one of '{words}'").into(),
        }]
    }

    /// Whether it says how to ask for tunnels.
    pub(in crate::policy) fn is_of_proxy(self) -> bool {
        matches!(
            self,
            Self::HttpConnect | Self::Http2Connect | Self::Http2Post
        )
    }
}

impl TryFrom<String> for PortProtocol {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::from_word(&text).ok_or_else(|| {
            let words: Vec<_> = Self::WORDS.iter().map(|(word, _)| *word).collect();
            format!(
                "`{}` is not a protocol of a port, expected one of `{}`",
                quotable(&text),
                words.join("`, `")
            )
        })
    }
}

/// Where a proxy is.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with address"
)]
pub(in crate::policy) struct ServiceEndpoint {
    /// Its address or name.
    pub(in crate::policy) address: HostField,
    /// The number of each port, by name; unset: as in `spec.ports`.
    #[serde(default)]
    pub(in crate::policy) ports: BTreeMap<String, Port>,
    /// Its share; unset: 1.
    pub(in crate::policy) weight: Option<Weight>,
}

/// An address or a range, as a document gives it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("x-kubernetes-validations" = rules::ADDRESS, "maxLength" = 64))]
pub(in crate::policy) struct AddressField(pub(in crate::policy) IpNet);

impl TryFrom<String> for AddressField {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Ok(addr) = text.parse::<IpAddr>() {
            return Ok(Self(addr.to_canonical().into()));
        }
        let net: IpNet = text.parse().map_err(|_| {
            format!(
                "`{}` is not an address or a range such as 203.0.113.0/24",
                quotable(&text)
            )
        })?;
        if net != net.trunc() {
            return Err(format!(
                "`{net}` has bits set beyond the prefix; write `{}`",
                net.trunc()
            ));
        }
        Ok(Self(prefix::canonical(net)))
    }
}

/// Namespaces to which an object shows.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("x-kubernetes-validations" = rules::EXPORT_TO, "maxLength" = 63))]
pub(in crate::policy) enum ExportTo {
    /// `*`
    All,
    /// `~`: to nobody.
    Nobody,
    /// `.`: its own.
    Own,
    /// A namespace by name.
    Named(Box<str>),
}

impl TryFrom<String> for ExportTo {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "*" => Ok(Self::All),
            "." => Ok(Self::Own),
            "~" => Ok(Self::Nobody),
            _ => super::metadata::Namespace::try_from(text)
                .map(|name| Self::Named(name.to_string().into()))
                .map_err(|err| format!("{err}; or `.` for its own namespace, `*` for all")),
        }
    }
}
