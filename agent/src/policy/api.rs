//! Documents as operators write them.
//!
//! The types hold what may stand in a document and check each value by itself; what several
//! values or documents mean together is for `compile`. They are also where the schemas of
//! `deploy/crds` come from.

pub(super) mod destination_rule;
pub(super) mod endpoint_slice;
pub(super) mod http_route;
pub(super) mod metadata;
pub(super) mod quantity;
pub(super) mod secret;
pub(super) mod service;
pub(super) mod service_entry;
pub(super) mod tls;
pub(super) mod traffic;
pub(super) mod tunnel;
pub(super) mod value;
pub(super) mod virtual_service;
pub(super) mod words;
pub(super) mod workload_selector;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::yaml::FieldNotes;
use metadata::Metadata;

/// A kind of document.
pub(super) trait Object: DeserializeOwned {
    /// The kind.
    const KIND: &'static str;
    /// Under which `apiVersion` it may stand in a file.
    const API_VERSIONS: &'static [&'static str];
    /// What the type does not say.
    const NOTES: FieldNotes;
    /// Whether its values must be forgotten once they are taken.
    const SECRET: bool = false;

    /// Name, namespace, age.
    fn metadata(&self) -> &Metadata;
}

/// A document that says what it has to say in its `spec`.
#[derive(Debug, Deserialize)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with apiVersion, kind, metadata and spec"
)]
pub(super) struct Resource<S> {
    // Both are checked before, because they say that this type is the one to use.
    #[serde(rename = "apiVersion")]
    _api_version: Option<IgnoredAny>,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    /// Name, namespace, labels and age.
    pub(super) metadata: Metadata,
    /// What it says.
    pub(super) spec: S,
    // What an API server adds.
    #[serde(rename = "status")]
    _status: Option<IgnoredAny>,
}

/// The `spec` of a kind; see [`Object`].
pub(super) trait Spec: DeserializeOwned {
    const KIND: &'static str;
    const API_VERSIONS: &'static [&'static str];
    const NOTES: FieldNotes = FieldNotes {
        ignored: &[],
        required: &[],
    };
}

impl<S: Spec> Object for Resource<S> {
    const KIND: &'static str = S::KIND;
    const API_VERSIONS: &'static [&'static str] = S::API_VERSIONS;
    const NOTES: FieldNotes = S::NOTES;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

/// The versions of Istio's API for traffic, and ours for clusters without Istio.
const ISTIO_VERSIONS: &[&str] = &[
    "networking.istio.io/v1",
    "networking.istio.io/v1beta1",
    "networking.istio.io/v1alpha3",
    "underpass.dev/v1alpha1",
];
