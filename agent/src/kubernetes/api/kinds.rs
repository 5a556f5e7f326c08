//! Where in the API the kinds are.

use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;

use crate::policy::ClusterKind;

/// The kinds of which all objects are followed.
pub(super) const FOLLOWED: [ClusterKind; 6] = [
    ClusterKind::Tunnel,
    ClusterKind::ServiceEntry,
    ClusterKind::DestinationRule,
    ClusterKind::IstioServiceEntry,
    ClusterKind::IstioDestinationRule,
    ClusterKind::IstioVirtualService,
];

/// The API group of Istio's kinds.
pub(super) const ISTIO: &str = "networking.istio.io";

/// Versions of it that policy knows, the best first.
pub(super) const ISTIO_VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha3"];

pub(super) fn group(kind: ClusterKind) -> &'static str {
    match kind {
        ClusterKind::Tunnel | ClusterKind::ServiceEntry | ClusterKind::DestinationRule => {
            "underpass.dev"
        }
        ClusterKind::IstioServiceEntry
        | ClusterKind::IstioDestinationRule
        | ClusterKind::IstioVirtualService => ISTIO,
        ClusterKind::Secret | ClusterKind::Service => "",
        ClusterKind::EndpointSlice => "discovery.k8s.io",
    }
}

/// The kind in this version, or in the only one that there is.
pub(super) fn resource(kind: ClusterKind, version: Option<&str>) -> ApiResource {
    let version = version.unwrap_or(match group(kind) {
        "underpass.dev" => "v1alpha1",
        _ => "v1",
    });
    let named = GroupVersionKind::gvk(group(kind), version, kind.kind());
    let resource = kind.resource();
    let plural = resource
        .split_once('.')
        .map_or(resource, |(plural, _)| plural);
    ApiResource::from_gvk_with_plural(&named, plural)
}
