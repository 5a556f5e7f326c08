//! discovery.k8s.io/v1 `kind: EndpointSlice`: where the pods of a Service are.

use std::net::IpAddr;

use serde::Deserialize;

use super::Object;
use super::metadata::Metadata;
use super::value::Port;
use crate::policy::yaml::FieldNotes;

/// The label that names the Service.
const SERVICE: &str = "kubernetes.io/service-name";

/// Some of the endpoints of a Service. Only read: most of its fields are for others.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a mapping with endpoints")]
pub(in crate::policy) struct EndpointSlice {
    /// Name, namespace, and the label that names the Service.
    pub(in crate::policy) metadata: Metadata,
    /// The pods.
    #[serde(default)]
    endpoints: Option<Vec<Endpoint>>,
    /// Their ports, by the names that the Service gives them.
    #[serde(default)]
    ports: Option<Vec<EndpointPort>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Conditions,
}

#[derive(Debug, Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct EndpointPort {
    name: Option<String>,
    port: Option<Port>,
}

impl Object for EndpointSlice {
    const KIND: &'static str = "EndpointSlice";
    const API_VERSIONS: &'static [&'static str] = &["discovery.k8s.io/v1"];
    const NOTES: FieldNotes = FieldNotes {
        ignored: &[],
        required: &[],
    };

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl EndpointSlice {
    /// The Service that it is of.
    pub(in crate::policy) fn service(&self) -> Option<&str> {
        let labels = self.metadata.labels.as_ref()?;
        labels.get(SERVICE).map(String::as_str)
    }

    /// Where the port of this name is served by pods that are ready.
    pub(in crate::policy) fn ready(&self, port: Option<&str>) -> Vec<(IpAddr, u16)> {
        let port = port.unwrap_or_default();
        let is_it = |found: &&EndpointPort| found.name.as_deref().unwrap_or_default() == port;
        let ports = self.ports.iter().flatten().find(is_it);
        let Some(number) = ports.and_then(|found| found.port) else {
            return Vec::new();
        };
        let endpoints = self.endpoints.iter().flatten();
        // What is not said to be unready counts as ready.
        let ready = endpoints.filter(|endpoint| endpoint.conditions.ready != Some(false));
        // The addresses of one endpoint are of one pod, and all the same.
        ready
            .filter_map(|endpoint| endpoint.addresses.first()?.parse::<IpAddr>().ok())
            .map(|addr| (addr.to_canonical(), number.get()))
            .collect()
    }
}
