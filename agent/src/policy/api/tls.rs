//! TLS as a client, in the words of Istio's `ClientTLSSettings`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::rules;
use super::value::HostNameField;
use super::words::words;

words! {
    /// Whether the client speaks TLS, and as whom.
    pub(in crate::policy) enum TlsMode {
        /// No TLS.
        Disable = "DISABLE",
        /// TLS; the server shows who it is.
        Simple = "SIMPLE",
        /// TLS; both show who they are.
        Mutual = "MUTUAL",
    }
}

words! {
    /// The oldest version of TLS that is spoken.
    pub(in crate::policy) enum TlsVersion {
        /// TLS 1.2, the default.
        Tls12 = "TLSV1_2",
        /// TLS 1.3.
        Tls13 = "TLSV1_3",
    }
}

/// How to be a TLS client. Files are read on the node.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with mode"
)]
#[schemars(extend("x-kubernetes-validations" = rules::TLS))]
pub(in crate::policy) struct TlsFields {
    /// Whether TLS is spoken, and whether with a certificate of our own.
    pub(in crate::policy) mode: TlsMode,
    /// The server name that is sent and expected; unset: the name that is connected to.
    pub(in crate::policy) sni: Option<HostNameField>,
    /// A PEM file with the certificates that the server's must come from; unset: those of the
    /// system.
    pub(in crate::policy) ca_certificates: Option<String>,
    /// A PEM file with our certificate and those between it and its root, for MUTUAL.
    pub(in crate::policy) client_certificate: Option<String>,
    /// A PEM file with the key of our certificate, for MUTUAL.
    pub(in crate::policy) private_key: Option<String>,
    /// The Secret with `ca.crt`, and for MUTUAL `tls.crt` and `tls.key`, instead of files.
    #[schemars(extend("x-kubernetes-validations" = rules::SECRET, "maxLength" = rules::LONGEST_NAME))]
    pub(in crate::policy) credential_name: Option<String>,
    /// One of these must be in the server's certificate, instead of the server name.
    #[serde(default)]
    pub(in crate::policy) subject_alt_names: Vec<String>,
    /// Take any certificate. Everybody on the way can then read and change what is sent.
    #[serde(default)]
    pub(in crate::policy) insecure_skip_verify: bool,
    /// The oldest version of TLS that is spoken; unset: 1.2.
    pub(in crate::policy) min_protocol_version: Option<TlsVersion>,
}
