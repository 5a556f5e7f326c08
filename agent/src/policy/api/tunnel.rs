//! `kind: Tunnel`.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::metadata::Metadata;
use super::value::{HostField, Port, TargetHost};
use crate::policy::failure_mode::FailureMode;
use crate::policy::no_proxy::HostEntry;
use crate::policy::yaml::FieldNotes;

/// The kind.
pub(in crate::policy) const KIND: &str = "Tunnel";

/// Under which `apiVersion` it may stand in a file.
pub(in crate::policy) const API_VERSIONS: &[&str] = &[
    "underpass.dev/v1alpha1",
    "networking.istio.io/v1alpha1",
    "networking.istio.io/v1beta1",
];

/// What the types below do not say.
pub(in crate::policy) const NOTES: FieldNotes = FieldNotes {
    later: &[
        "spec.action",
        "spec.proxy.authentication",
        "spec.proxy.tls",
        "spec.selector",
        "spec.workloadSelector",
    ],
    required: &[(
        "spec.proxy.port",
        "only a ServiceEntry or a Service could give it, and these are not supported by this \
         version",
    )],
};

/// Sends connections through a forward proxy.
#[derive(Debug, Deserialize)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with apiVersion, kind, metadata and spec"
)]
pub(in crate::policy) struct Tunnel {
    // Both are checked before, because they say that this type is the one to use.
    #[serde(rename = "apiVersion")]
    _api_version: Option<IgnoredAny>,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    /// Name and age.
    pub(in crate::policy) metadata: Metadata,
    /// What it does.
    pub(in crate::policy) spec: TunnelSpec,
}

/// What a [`Tunnel`] does.
#[derive(Debug, Deserialize)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with proxy"
)]
pub(in crate::policy) struct TunnelSpec {
    /// The forward proxy.
    pub(in crate::policy) proxy: ProxyRef,
    /// Which host the proxy is asked for; unset: the best known name, else the address.
    pub(in crate::policy) target_host: Option<TargetHost>,
    /// Which port the proxy is asked for; unset: the original one.
    pub(in crate::policy) target_port: Option<Port>,
    /// What does not go through the proxy.
    pub(in crate::policy) no_proxy: Option<Vec<HostEntry>>,
    /// What becomes of connections when there is no tunnel to be had.
    #[serde(default)]
    pub(in crate::policy) failure_mode: FailureMode,
}

/// A forward proxy.
#[derive(Debug, Deserialize)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with host and port"
)]
pub(in crate::policy) struct ProxyRef {
    /// Its name or address.
    pub(in crate::policy) host: HostField,
    /// Its port.
    pub(in crate::policy) port: Port,
    /// How a tunnel is asked for; one way is known, so there is nothing to keep.
    #[serde(default, rename = "protocol")]
    _protocol: Option<Protocol>,
}

/// How a tunnel is asked for.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Protocol;

impl TryFrom<String> for Protocol {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "HTTP-CONNECT" => Ok(Self),
            "HTTP2-CONNECT" | "HTTP2-POST" | "HTTP" | "HTTPS" | "TCP" | "TLS" => {
                Err("only `HTTP-CONNECT` is supported by this version")
            }
            _ => Err("expected `HTTP-CONNECT`"),
        }
    }
}
