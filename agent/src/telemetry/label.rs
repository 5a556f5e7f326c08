//! Label values that configuration gives, and the sets that describe the two ends of a connection.

use std::fmt;
use std::sync::Arc;

use crate::telemetry::text::printable;

/// What Istio writes where it does not know.
const UNKNOWN: &str = "unknown";

/// The `destination_service` of a target that no ServiceEntry declares.
const PASSTHROUGH: &str = "PassthroughCluster";

/// Bytes of a value: the longest host name has as many.
const MAX: usize = 253;

/// A label value that configuration gave: the name of a policy, a proxy, an endpoint as it is
/// configured, a declared host, a workload. There are as many of them as configuration has, which
/// is what keeps the number of series bounded; what a workload or a proxy *sent* never becomes
/// one.
///
/// Cheap to clone. Values that cannot be told are `unknown`, the default.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct Label(Repr);

#[derive(Clone, Eq, Hash, PartialEq)]
enum Repr {
    Fixed(&'static str),
    Shared(Arc<str>),
}

impl Label {
    /// A value known when the program was built.
    pub const fn fixed(value: &'static str) -> Self {
        Self(Repr::Fixed(value))
    }

    /// A value from configuration; made printable and cut at the length of the longest host name.
    pub fn of(value: &dyn fmt::Display) -> Self {
        Self(Repr::Shared(printable(value, MAX).into()))
    }

    /// The same of a text that others hold as well: fit as it stands, it is not copied.
    pub fn shared(value: &Arc<str>) -> Self {
        let is_fit = value.len() <= MAX && value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if is_fit {
            Self(Repr::Shared(Arc::clone(value)))
        } else {
            Self::of(value)
        }
    }

    /// The value as text.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Repr::Fixed(value) => value,
            Repr::Shared(value) => value,
        }
    }
}

impl Default for Label {
    fn default() -> Self {
        Self::fixed(UNKNOWN)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The captured process as Istio's `source_*` labels describe it.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Workload {
    /// `source_workload`: the Deployment or systemd unit.
    pub name: Label,
    /// `source_workload_namespace`.
    pub namespace: Label,
    /// `source_principal`.
    pub principal: Label,
    /// `source_app`.
    pub app: Label,
    /// `source_version`.
    pub version: Label,
    /// `source_canonical_service`.
    pub canonical_service: Label,
    /// `source_canonical_revision`.
    pub canonical_revision: Label,
    /// `source_cluster`.
    pub cluster: Label,
}

/// The target as Istio's `destination_service*` labels describe it. The other `destination_*`
/// labels describe a workload of the mesh, which an external target never is: always `unknown`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Destination {
    host: Label,
    namespace: Label,
}

impl Destination {
    /// A host that a ServiceEntry declares, as it is written there (a wildcard stays one), and
    /// the namespace of that ServiceEntry.
    pub fn declared(host: Label, namespace: Label) -> Self {
        Self { host, namespace }
    }

    /// `destination_service` and `destination_service_name`.
    pub fn host(&self) -> &Label {
        &self.host
    }

    /// `destination_service_namespace`.
    pub fn namespace(&self) -> &Label {
        &self.namespace
    }
}

impl Default for Destination {
    /// A target that nothing declares: `PassthroughCluster`.
    fn default() -> Self {
        Self::declared(Label::fixed(PASSTHROUGH), Label::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_text_is_as_any_other_and_not_copied_if_it_is_fit() {
        let long = "x".repeat(MAX + 1);
        for text in ["Tunnel/all", "", "a\nb", "ü", &long] {
            let text: Arc<str> = text.into();
            assert_eq!(Label::shared(&text), Label::of(&text));
        }
        let text: Arc<str> = "Tunnel/all".into();
        assert_eq!(Label::shared(&text).as_str().as_ptr(), text.as_ptr());
    }
}
