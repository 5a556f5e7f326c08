//! Documents as operators write them.
//!
//! The types hold what may stand in a document and check each value by itself; what several
//! values or documents mean together is for `compile`. They are also where the schemas of
//! `deploy/crds` come from.

pub(super) mod destination_rule;
pub(super) mod metadata;
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

use serde::de::DeserializeOwned;

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

/// The versions of Istio's API for traffic, and ours for clusters without Istio.
const ISTIO_VERSIONS: &[&str] = &[
    "networking.istio.io/v1",
    "networking.istio.io/v1beta1",
    "networking.istio.io/v1alpha3",
    "underpass.dev/v1alpha1",
];
