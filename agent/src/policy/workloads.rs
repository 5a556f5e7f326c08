//! Which workloads a rule is for.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::api::metadata::Namespace;
use super::api::service_entry::ExportTo;
use super::api::workload_selector::WorkloadSelector;
use super::bits::Bits;
use crate::workload::Workload;

/// Tells whether a workload is meant. What is not known of it does not match.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct WorkloadMatch {
    selector: WorkloadSelector,
    visibility: Visibility,
}

impl WorkloadMatch {
    /// Those that are selected, of those to whom the rule shows.
    pub(super) fn new(selector: Option<&WorkloadSelector>, visibility: Visibility) -> Self {
        Self {
            selector: selector.cloned().unwrap_or_default(),
            visibility,
        }
    }

    /// Those with these labels.
    pub(super) fn labelled(labels: &BTreeMap<String, String>, visibility: Visibility) -> Self {
        Self {
            selector: WorkloadSelector {
                match_labels: labels.clone(),
                ..WorkloadSelector::default()
            },
            visibility,
        }
    }

    /// Whether every workload is meant.
    pub(super) fn is_everyone(&self) -> bool {
        *self == Self::default()
    }

    /// Whether workloads are named, by whatever is known of them.
    pub(super) fn is_selective(&self) -> bool {
        self.selector != WorkloadSelector::default()
    }

    /// Whether they are named by what processes have that are in no pod.
    pub(super) fn names_services(&self) -> bool {
        !self.selector.units.is_empty() || !self.selector.cgroups.is_empty()
    }

    /// Whether this one is.
    pub(super) fn matches(&self, workload: &Workload) -> bool {
        self.mismatch(workload).is_none()
    }

    /// Why this one is not, in words.
    pub(super) fn mismatch(&self, workload: &Workload) -> Option<&'static str> {
        let WorkloadSelector {
            namespaces,
            match_labels,
            service_accounts,
            units,
            cgroups,
        } = &self.selector;
        let one_of = |wanted: &[String], is: &Option<Box<str>>| {
            wanted.is_empty()
                || is
                    .as_ref()
                    .is_some_and(|is| wanted.iter().any(|w| **w == **is))
        };
        if !self.visibility.shows_to(workload.namespace.as_deref()) {
            return Some("exportTo does not show it to the workload's namespace");
        }
        if !one_of(namespaces, &workload.namespace) {
            return Some("workloadSelector asks for other namespaces");
        }
        if !one_of(service_accounts, &workload.service_account) {
            return Some("workloadSelector asks for other service accounts");
        }
        if !includes(&workload.labels, match_labels) {
            return Some("workloadSelector asks for other labels");
        }
        let unit = workload.unit.as_deref();
        if !units.is_empty() && !unit.is_some_and(|unit| units.iter().any(|u| glob(u, unit))) {
            return Some("workloadSelector asks for other units");
        }
        let cgroup = workload.cgroup.as_deref();
        if !cgroups.is_empty() && !cgroup.is_some_and(|at| cgroups.iter().any(|c| is_in(at, c))) {
            return Some("workloadSelector asks for other cgroups");
        }
        None
    }
}

/// To whom an object shows (`exportTo`).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) enum Visibility {
    /// To everybody.
    #[default]
    All,
    /// To these namespaces.
    Namespaces(Arc<[Box<str>]>),
}

impl Visibility {
    /// Of an object in `own`. Nothing listed shows it to all.
    pub(super) fn new(export_to: &[ExportTo], own: Option<&Namespace>) -> Self {
        // What a file says of an object without a namespace is for the whole node.
        let everybody = |export: &ExportTo| match export {
            ExportTo::All => true,
            ExportTo::Own => own.is_none(),
            ExportTo::Named(_) | ExportTo::Nobody => false,
        };
        if export_to.is_empty() || export_to.iter().any(everybody) {
            return Self::All;
        }
        let namespaces = export_to.iter().filter_map(|export| match export {
            ExportTo::All | ExportTo::Nobody => None,
            ExportTo::Own => own.map(|own| own.as_ref().into()),
            ExportTo::Named(name) => Some(name.clone()),
        });
        Self::Namespaces(namespaces.collect())
    }

    /// Whether it shows to what is in `namespace`.
    pub(super) fn shows_to(&self, namespace: Option<&str>) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(list) => {
                namespace.is_some_and(|namespace| list.iter().any(|n| **n == *namespace))
            }
        }
    }
}

/// What a policy looks like from a workload: which of its rules are for it.
///
/// It is made once for a workload and a policy, so that a connection costs no selector.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The rules that are for the workload.
    pub(super) rules: Bits,
    /// The first of them that is for all services.
    pub(super) for_all: Option<usize>,
    /// The settings of TLS to targets that are for the workload.
    pub(super) tls_settings: Bits,
    /// The settings of targets that are.
    pub(super) targets: Bits,
    /// The routes of requests that are.
    pub(super) http_routes: Bits,
    /// The workload's namespace.
    pub(super) namespace: Option<Box<str>>,
    /// Whether names count that the workload has resolved.
    pub(super) observes_dns: bool,
    /// Whether the agent answers it for hosts of services.
    pub(super) serves_dns: bool,
    /// Whether keys for ECH are taken out of what it is answered.
    pub(super) removes_ech_keys: bool,
}

impl View {
    /// Whether names count that the workload has resolved, where a connection says none.
    pub fn observes_dns(&self) -> bool {
        self.observes_dns
    }
}

/// Whether all of `wanted` stand in `labels`.
pub(super) fn includes(
    labels: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, String>,
) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether the cgroup at `path` is `cgroup` or below it.
fn is_in(path: &str, cgroup: &str) -> bool {
    let cgroup = cgroup.trim_end_matches('/');
    path.strip_prefix(cgroup)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether `text` is as `pattern` has it, in which `*` stands for any characters.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, text, expected) in [
            ("backup.service", "backup.service", true),
            ("backup.service", "backup.service2", false),
            ("backup@*.service", "backup@home.service", true),
            ("backup@*.service", "backup@.service", true),
            ("backup@*.service", "backup.service", false),
            ("*", "anything", true),
            ("*.scope", "session-1.scope", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "ac", false),
            ("a*ba", "aba", true),
            ("a*ba", "ba", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_cgroup_means_those_below_as_well() {
        for (path, cgroup, expected) in [
            ("/a/b", "/a/b", true),
            ("/a/b/c", "/a/b", true),
            ("/a/b/c", "/a/b/", true),
            ("/a/bc", "/a/b", false),
            ("/a", "/a/b", false),
            ("/a", "/", true),
        ] {
            assert_eq!(is_in(path, cgroup), expected, "{path} {cgroup}");
        }
    }

    #[test]
    fn every_field_that_is_given_must_match() {
        let workload = Workload {
            namespace: Some("team-a".into()),
            service_account: Some("builder".into()),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ..Workload::in_cgroup("/system.slice/backup@1.service/payload")
        };
        let matches = |yaml: &str| {
            let selector: WorkloadSelector = serde_saphyr::from_str(yaml).unwrap();
            WorkloadMatch::new(Some(&selector), Visibility::All).matches(&workload)
        };
        for yes in [
            "{}",
            "namespaces: [other, team-a]",
            "matchLabels: {app: web}",
            "serviceAccounts: [builder]",
            "units: [backup@*.service]",
            "cgroups: [/system.slice]",
            "namespaces: [team-a]\nunits: [backup@1.service]",
        ] {
            assert!(matches(yes), "{yes}");
        }
        for no in [
            "namespaces: [other]",
            "matchLabels: {app: web, tier: front}",
            "serviceAccounts: [default]",
            "units: [backup]",
            "cgroups: [/system.slice/backup]",
            "namespaces: [team-a]\nunits: [cron.service]",
        ] {
            assert!(!matches(no), "{no}");
        }
        let unknown = Workload::default();
        let selector: WorkloadSelector = serde_saphyr::from_str("namespaces: [a]").unwrap();
        assert!(!WorkloadMatch::new(Some(&selector), Visibility::All).matches(&unknown));
        assert!(WorkloadMatch::default().matches(&unknown));
    }

    #[test]
    fn what_is_exported_shows_only_there() {
        let own = Namespace::try_from("team-a".to_owned()).unwrap();
        let shows = |exports: &[ExportTo], to: Option<&str>| {
            Visibility::new(exports, Some(&own)).shows_to(to)
        };
        assert!(shows(&[], None));
        assert!(shows(&[ExportTo::Own, ExportTo::All], None));
        assert!(shows(&[ExportTo::Own], Some("team-a")));
        assert!(!shows(&[ExportTo::Own], Some("team-b")));
        assert!(!shows(&[ExportTo::Own], None));
        assert!(shows(&[ExportTo::Named("team-b".into())], Some("team-b")));
        assert!(!shows(&[ExportTo::Nobody], Some("team-a")));
    }
}
