//! Which workloads a rule is for.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

/// Selects workloads. A workload must match every field that is given; of a list, one item.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(
    default,
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping"
)]
pub(in crate::policy) struct WorkloadSelector {
    /// Namespaces of pods.
    pub(in crate::policy) namespaces: Vec<String>,
    /// Labels of pods, all of which must be there.
    pub(in crate::policy) match_labels: BTreeMap<String, String>,
    /// Service accounts of pods.
    pub(in crate::policy) service_accounts: Vec<String>,
    /// Units of systemd: `backup.service`. A `*` stands for any characters.
    pub(in crate::policy) units: Vec<String>,
    /// Cgroups, as paths from the root of the hierarchy: `/system.slice/backup.service`. Those
    /// below are meant as well.
    pub(in crate::policy) cgroups: Vec<String>,
}
