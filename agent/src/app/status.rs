//! What `/status` shows besides readiness: the state of an agent at a glance.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::cgroups::Cgroups;
use super::enrolment::Enrolment;
use super::kernel_side::KernelSide;
use super::reload::PolicyState;
use crate::capabilities;
use crate::capture::Capture;
use crate::connection::Way;
use crate::kubernetes::Feed;
use crate::telemetry::metrics::CaptureSource;

/// Names that are shown of each workload.
const MAX_NAMES: usize = 100;

/// Where it is read from.
pub(super) struct Status {
    pub(super) capture: Arc<Mutex<Capture>>,
    pub(super) cgroups: Arc<Cgroups>,
    /// `None` where only the agent's own namespace is captured.
    pub(super) enrolment: Option<Arc<Enrolment>>,
    pub(super) kernel: Arc<KernelSide>,
    pub(super) policy: Arc<PolicyState>,
    pub(super) way: Arc<Way>,
    /// `None` where the node is in no cluster.
    pub(super) feed: Option<Arc<Feed>>,
}

impl Status {
    /// Nothing in it is secret.
    pub(super) fn to_json(&self) -> Value {
        let policy = self.way.policy.load();
        let cgroups = self.cgroups.to_json();
        let plan = policy.capture_plan();
        let proxies: Vec<String> = policy.proxies().map(ToString::to_string).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "cgroup": cgroups["main"],
            "named_cgroups": cgroups["named"],
            "capabilities": capabilities::kept().ok(),
            "policy": {
                "generation": self.policy.generation(),
                "reload": self.policy.reload(),
                "rules": policy.rule_count(),
                "proxies": proxies,
                "prefixes": plan.prefixes.len() + plan.exceptions.len(),
                "warnings": policy.warnings().len(),
            },
            "cluster": self.feed.as_ref().map(|feed| feed.to_json()),
            "connections": self.way.metrics.connections().len(),
            "capture": {
                "redirected": self.kernel.redirected(),
                "skipped": by_reason(self.kernel.skipped()),
                "refused": by_reason(self.kernel.refused()),
            },
            "namespaces": self.enrolment.as_ref().map(|enrolment| enrolment.to_json()),
            "dns": {
                "served": policy.serves_dns(),
                "virtual_hosts": policy.virtual_hosts() + self.way.virtuals.len(),
            },
            "names": self.names(),
            "maps": self.maps(),
        })
    }

    /// What workloads have resolved, by the path of the cgroup as far as it is known.
    fn names(&self) -> Vec<Value> {
        let all = self.way.knowledge.all(MAX_NAMES).into_iter();
        all.map(|(cgroup_id, names)| {
            let names = names
                .iter()
                .map(|(name, address)| json!({"name": name.as_str(), "address": address}));
            json!({
                "cgroup_id": cgroup_id,
                "cgroup": self.way.workloads.path(cgroup_id),
                "names": names.collect::<Vec<_>>(),
            })
        })
        .collect()
    }

    fn maps(&self) -> Map<String, Value> {
        let fill = |entries: u64, capacity: u64| json!({"entries": entries, "capacity": capacity});
        let flows = self.kernel.maps().into_iter();
        let flows = flows.map(|usage| (usage.map.to_owned(), fill(usage.entries, usage.capacity)));
        let rules = self.capture.lock().rules().fill();
        let rules = rules.map(|(map, entries, capacity)| {
            (map.to_owned(), fill(entries as u64, capacity as u64))
        });
        flows.chain(rules).collect()
    }
}

fn by_reason(counts: Vec<(&'static str, u64)>) -> Map<String, Value> {
    counts
        .into_iter()
        .map(|(reason, count)| (reason.to_owned(), count.into()))
        .collect()
}
