//! core/v1 `kind: Service`, as far as it describes a forward proxy.

use serde::Deserialize;

use super::value::{HostNameField, Port};
use super::{Resource, Spec};

/// A service of the cluster. Only read: most of its fields are for others.
pub(in crate::policy) type Service = Resource<ServiceSpec>;

impl Spec for ServiceSpec {
    const KIND: &'static str = "Service";
    const API_VERSIONS: &'static [&'static str] = &["v1"];
}

/// What a [`Service`] describes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a mapping")]
pub(in crate::policy) struct ServiceSpec {
    /// Where it really is, for a service outside the cluster.
    pub(in crate::policy) external_name: Option<HostNameField>,
    /// Its own address, which `None` or nothing stands for the lack of.
    #[serde(rename = "clusterIP")]
    pub(in crate::policy) cluster_ip: Option<String>,
    /// Its ports.
    #[serde(default)]
    pub(in crate::policy) ports: Vec<ClusterPort>,
}

/// A port of a [`Service`].
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a mapping with port")]
pub(in crate::policy) struct ClusterPort {
    /// What endpoints call it.
    pub(in crate::policy) name: Option<String>,
    /// The number.
    pub(in crate::policy) port: Port,
    /// What is spoken there.
    pub(in crate::policy) app_protocol: Option<String>,
}
