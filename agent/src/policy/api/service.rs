//! core/v1 `kind: Service`, as far as it describes a forward proxy.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Object;
use super::metadata::Metadata;
use super::value::{HostNameField, Port};
use crate::policy::yaml::FieldNotes;

/// A service of the cluster. Only read: most of its fields are for others.
#[derive(Debug, Deserialize)]
#[serde(
    rename_all = "camelCase",
    expecting = "a mapping with apiVersion, kind, metadata and spec"
)]
pub(in crate::policy) struct Service {
    #[serde(rename = "apiVersion")]
    _api_version: Option<IgnoredAny>,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    /// Name and namespace.
    pub(in crate::policy) metadata: Metadata,
    /// What it describes.
    pub(in crate::policy) spec: ServiceSpec,
}

impl Object for Service {
    const KIND: &'static str = "Service";
    const API_VERSIONS: &'static [&'static str] = &["v1"];
    const NOTES: FieldNotes = FieldNotes {
        ignored: &[],
        required: &[],
    };

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

/// What a [`Service`] describes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a mapping")]
pub(in crate::policy) struct ServiceSpec {
    /// Where it really is, for a service outside the cluster.
    pub(in crate::policy) external_name: Option<HostNameField>,
    /// Its ports.
    #[serde(default)]
    pub(in crate::policy) ports: Vec<ClusterPort>,
}

/// A port of a [`Service`].
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a mapping with port")]
pub(in crate::policy) struct ClusterPort {
    /// The number.
    pub(in crate::policy) port: Port,
    /// What is spoken there.
    pub(in crate::policy) app_protocol: Option<String>,
}
