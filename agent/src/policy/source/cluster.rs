//! Documents that are objects of a cluster: kept as they come, one by one, and parsed only when they
//! have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Map, Value, json};

use crate::name::Host;
use crate::policy::api::destination_rule::TunnelProxy;
use crate::policy::api::metadata::Namespace;
use crate::policy::api::tls::TlsFields;
use crate::policy::api::tunnel::{CredentialRef, ProxyRef};
use crate::policy::document::Documents;

/// A kind of object that policy is made of, and the API that has it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ClusterKind {
    /// `underpass.dev`
    Tunnel,
    /// `underpass.dev`
    ServiceEntry,
    /// `underpass.dev`
    DestinationRule,
    /// `networking.istio.io`
    IstioServiceEntry,
    /// `networking.istio.io`
    IstioDestinationRule,
    /// `networking.istio.io`
    IstioVirtualService,
    /// `v1`
    Secret,
    /// `v1`
    Service,
    /// `discovery.k8s.io`
    EndpointSlice,
}

impl ClusterKind {
    /// The kind, as objects have it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Tunnel => "Tunnel",
            Self::ServiceEntry | Self::IstioServiceEntry => "ServiceEntry",
            Self::DestinationRule | Self::IstioDestinationRule => "DestinationRule",
            Self::IstioVirtualService => "VirtualService",
            Self::Secret => "Secret",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
        }
    }

    /// What the API calls its objects, in the plural; with the group where it is Istio's.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnels",
            Self::ServiceEntry => "serviceentries",
            Self::DestinationRule => "destinationrules",
            Self::IstioServiceEntry => "serviceentries.networking.istio.io",
            Self::IstioDestinationRule => "destinationrules.networking.istio.io",
            Self::IstioVirtualService => "virtualservices.networking.istio.io",
            Self::Secret => "secrets",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
        }
    }

    /// The kind of ours that takes the place of this one of Istio.
    fn ours(self) -> Option<Self> {
        match self {
            Self::IstioServiceEntry => Some(Self::ServiceEntry),
            Self::IstioDestinationRule => Some(Self::DestinationRule),
            _ => None,
        }
    }
}

/// What an object is called.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: ClusterKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// Where problems say that they are: `KIND NAMESPACE/NAME`.
    fn place(&self) -> PathBuf {
        let Self {
            kind,
            namespace,
            name,
        } = self;
        format!("{} {namespace}/{name}", kind.kind()).into()
    }
}

/// The objects of a cluster that policy is made of, as far as they are known.
///
/// One of ours takes the place of one of Istio's that has the same kind, namespace and name: on a
/// cluster with Istio that is how an object says what Istio's own cannot.
#[derive(Debug, Default)]
pub struct ClusterObjects(BTreeMap<ObjectKey, Held>);

/// All documents of a cluster, as they were at one moment.
#[derive(Debug)]
pub struct ClusterDocuments(pub(super) Documents);

#[derive(Debug)]
struct Held {
    /// Of what it was made.
    digest: [u8; 32],
    /// Itself, or what is wrong with it.
    documents: Documents,
}

impl ClusterObjects {
    /// Takes an object as the API has it, of the API version `version`. Returns whether that changes
    /// anything: what only the cluster itself is about, its status above all, does not.
    pub fn set(&mut self, key: ObjectKey, version: &str, object: Value) -> bool {
        let object = essence(&key, version, object);
        // Keys are sorted, so equal objects have equal texts.
        let text = zeroize_after(serde_json::to_vec(&object).unwrap_or_default());
        let mut of_text = [0; 32];
        of_text.copy_from_slice(digest(&SHA256, &text).as_ref());
        if self.0.get(&key).is_some_and(|held| held.digest == of_text) {
            return false;
        }
        let mut documents = Documents::default();
        documents.add_object(&key.place(), object);
        let held = Held {
            digest: of_text,
            documents,
        };
        self.0.insert(key, held);
        true
    }

    /// Forgets an object. Returns whether it was there.
    pub fn remove(&mut self, key: &ObjectKey) -> bool {
        self.0.remove(key).is_some()
    }

    /// All of them.
    pub fn documents(&self) -> ClusterDocuments {
        let mut documents = Documents::default();
        for (key, held) in &self.0 {
            let ours = key.kind.ours().map(|kind| ObjectKey {
                kind,
                ..key.clone()
            });
            if !ours.is_some_and(|ours| self.0.contains_key(&ours)) {
                documents.extend(&held.documents);
            }
        }
        ClusterDocuments(documents)
    }

    /// What they refer to by name.
    pub fn references(&self) -> References {
        let mut references = References::default();
        for held in self.0.values() {
            held.documents.refer(&mut references);
        }
        references
    }
}

/// What is read of an object, without what is only about how it is kept.
fn essence(key: &ObjectKey, version: &str, mut object: Value) -> Value {
    let mut kept = Map::new();
    let mut metadata = json!({"name": key.name, "namespace": key.namespace});
    for field in ["creationTimestamp", "labels"] {
        if let Some(value) = object.pointer_mut(&format!("/metadata/{field}")) {
            metadata[field] = value.take();
        }
    }
    kept.insert("apiVersion".to_owned(), version.into());
    kept.insert("kind".to_owned(), key.kind.kind().into());
    kept.insert("metadata".to_owned(), metadata);
    if let Value::Object(fields) = object {
        for (field, value) in fields {
            if !matches!(&*field, "apiVersion" | "kind" | "metadata" | "status") {
                kept.insert(field, value);
            }
        }
    }
    Value::Object(kept)
}

fn zeroize_after(bytes: Vec<u8>) -> secrecy::zeroize::Zeroizing<Vec<u8>> {
    secrecy::zeroize::Zeroizing::new(bytes)
}

/// What objects refer to, by namespace and name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct References {
    /// Secrets: those of their own namespaces, as others are none of their business.
    pub secrets: BTreeSet<(String, String)>,
    /// What may be Services, if it is anything in the cluster.
    pub services: BTreeSet<(String, String)>,
}

impl References {
    fn secret(&mut self, reference: &str, namespace: &Namespace) {
        let own = namespace.as_ref();
        let name = match reference.split_once('/') {
            Some((namespace, name)) if namespace == own => name,
            Some(_) => return,
            None => reference,
        };
        // It goes into a selector of fields.
        if is_name(name) {
            self.secrets.insert((own.to_owned(), name.to_owned()));
        }
    }

    fn credential(&mut self, reference: Option<&CredentialRef>, namespace: &Namespace) {
        if let Some(reference) = reference {
            self.secret(&reference.credential_name, namespace);
        }
    }

    fn tls(&mut self, fields: Option<&TlsFields>, namespace: &Namespace) {
        if let Some(name) = fields.and_then(|fields| fields.credential_name.as_ref()) {
            self.secret(name, namespace);
        }
    }

    /// `NAME`, `NAME.NAMESPACE`, and that with `.svc` and the domain of the cluster.
    fn host(&mut self, host: &Host, namespace: &Namespace) {
        let Some(name) = host.name() else { return };
        let name = name.as_str();
        let short = name
            .strip_suffix(".svc.cluster.local")
            .or_else(|| name.strip_suffix(".svc"))
            .unwrap_or(name);
        let labels: Vec<&str> = short.split('.').collect();
        let (name, namespace) = match labels.as_slice() {
            [name] => (*name, namespace.as_ref()),
            [name, namespace] => (*name, *namespace),
            _ => return,
        };
        if is_name(name) && is_name(namespace) {
            let found = (namespace.to_owned(), name.to_owned());
            self.services.insert(found);
        }
    }

    fn proxy(&mut self, proxy: &ProxyRef, namespace: &Namespace) {
        self.host(&proxy.host.0, namespace);
        self.credential(proxy.authentication.as_ref(), namespace);
        self.tls(proxy.tls.as_ref(), namespace);
    }

    fn tunnel_proxy(&mut self, proxy: &TunnelProxy, namespace: &Namespace) {
        self.host(&proxy.host.0, namespace);
        self.credential(proxy.authorization.as_ref(), namespace);
    }
}

fn is_name(name: &str) -> bool {
    crate::policy::api::metadata::ObjectName::try_from(name.to_owned()).is_ok()
}

impl Documents {
    /// Adds what they refer to by name.
    fn refer(&self, to: &mut References) {
        for document in &self.tunnels {
            let spec = &document.object.spec;
            let Some(namespace) = document.namespace() else {
                continue;
            };
            for proxy in spec.proxy.iter().chain(spec.proxies.iter().flatten()) {
                to.proxy(proxy, namespace);
            }
        }
        for document in &self.destination_rules {
            let policy = &document.object.spec.traffic_policy;
            let Some(namespace) = document.namespace() else {
                continue;
            };
            let inside = policy
                .tunnel
                .as_ref()
                .and_then(|tunnel| tunnel.proxy.as_ref());
            for proxy in inside.into_iter().chain(&policy.proxy) {
                to.tunnel_proxy(proxy, namespace);
            }
            to.tls(policy.tls.as_ref(), namespace);
            for port in &policy.port_level_settings {
                to.tls(port.tls.as_ref(), namespace);
            }
        }
        for document in &self.virtual_services {
            let spec = &document.object.spec;
            let Some(namespace) = document.namespace() else {
                continue;
            };
            let routes = spec.tls.iter().map(|route| &route.route);
            let routes = routes.chain(spec.tcp.iter().map(|route| &route.route));
            for destination in routes.flatten() {
                to.host(&destination.destination.host.0, namespace);
            }
        }
    }
}

#[cfg(test)]
mod tests;
