//! Which namespaces are enrolled, and which could not be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::app::fronts::Place;
use crate::capture::{NetnsId, Resident, Sandboxes, Sight};
use crate::sockets::Vantage;
use crate::telemetry::metrics::NotEnrolled;

/// All of them but the agent's own.
#[derive(Default)]
pub(super) struct Roll {
    enrolled: BTreeMap<NetnsId, Entry>,
    failed: BTreeMap<NetnsId, Failure>,
    /// Processes of which not even the namespace is known.
    unseen: BTreeMap<NotEnrolled, usize>,
    /// Of which nothing is captured, wherever they live.
    sandboxes: Sandboxes,
    /// The reasons that were logged: once each, until there is no failure left.
    logged: BTreeSet<NotEnrolled>,
    /// Whether queries are to come to the agent.
    pub(super) fronts_wanted: bool,
}

/// An enrolled namespace.
pub(super) struct Entry {
    /// Somebody who lives there, as of the last look that found anybody.
    pub(super) resident: Resident,
    /// By the kernel's name for the namespace, its cookie.
    pub(super) vantage: Arc<Vantage>,
    /// Where the agent listens.
    pub(super) place: Place,
    /// Ends the acceptors, and the fronts.
    pub(super) closing: CancellationToken,
    /// One of each listener.
    pub(super) acceptors: Vec<JoinHandle<()>>,
    /// Whether the last look found nobody.
    pub(super) empty: bool,
}

impl Entry {
    /// Whether an acceptor has ended though nobody asked it to.
    pub(super) fn has_ended(&self) -> bool {
        let has_ended = || self.acceptors.iter().any(JoinHandle::is_finished);
        !self.closing.is_cancelled() && (has_ended() || self.place.has_ended())
    }
}

struct Failure {
    resident: Resident,
    reason: NotEnrolled,
    error: String,
    at: Instant,
}

impl Roll {
    /// How many are enrolled.
    pub(super) fn len(&self) -> usize {
        self.enrolled.len()
    }

    /// How many of them are known by a process of this cgroup.
    pub(super) fn of_cgroup(&self, cgroup: Option<&Path>) -> usize {
        let entries = self.enrolled.values();
        entries
            .filter(|entry| entry.resident.cgroup.as_deref() == cgroup)
            .count()
    }

    pub(super) fn insert(&mut self, id: NetnsId, entry: Entry) {
        self.failed.remove(&id);
        self.enrolled.insert(id, entry);
    }

    /// Those that are enrolled.
    pub(super) fn entries(&mut self) -> impl Iterator<Item = (NetnsId, &mut Entry)> {
        self.enrolled.iter_mut().map(|(id, entry)| (*id, entry))
    }

    /// Keeps those for which `keep` says so.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(NetnsId, &mut Entry) -> bool) {
        self.enrolled.retain(|id, entry| keep(*id, entry));
    }

    /// Notes that a namespace cannot be enrolled.
    pub(super) fn failed(
        &mut self,
        id: NetnsId,
        resident: Resident,
        reason: NotEnrolled,
        error: String,
    ) {
        if self.logged.insert(reason) {
            tracing::warn!(
                %error,
                netns = id.inode(),
                thread = resident.thread,
                "cannot capture in every network namespace: {}",
                reason.hint()
            );
        }
        let failure = Failure {
            resident,
            reason,
            error,
            at: Instant::now(),
        };
        self.failed.insert(id, failure);
    }

    /// Notes how many processes it is not known of where they live; whether there are more than
    /// before.
    pub(super) fn set_unseen(&mut self, reason: NotEnrolled, processes: usize) -> bool {
        let before = self.unseen.insert(reason, processes).unwrap_or_default();
        if processes > 0 && self.logged.insert(reason) {
            tracing::warn!(
                processes,
                "cannot tell in which network namespaces they are: {}",
                reason.hint()
            );
        }
        processes > before
    }

    /// Notes which sandboxes there are; how many of them are new. Each is logged once.
    pub(super) fn set_sandboxes(&mut self, now: Sandboxes) -> usize {
        let before = std::mem::replace(&mut self.sandboxes, now);
        let new = self.sandboxes.iter();
        let new = new.filter(|(cgroup, _)| !before.contains_key(*cgroup));
        new.inspect(|(cgroup, kind)| {
            tracing::warn!(
                cgroup = %cgroup.display(),
                kind,
                "a pod is not covered: {}",
                NotEnrolled::Sandboxed.hint()
            );
        })
        .count()
    }

    /// Whether it was tried less than this ago, in vain.
    pub(super) fn failed_within(&self, id: NetnsId, time: Duration) -> bool {
        let failure = self.failed.get(&id);
        failure.is_some_and(|failure| failure.at.elapsed() < time)
    }

    /// Forgets failures with namespaces in which nobody lives any more.
    pub(super) fn forget_failures(&mut self, sight: &Sight) {
        let failed = &mut self.failed;
        failed.retain(|id, _| sight.namespaces.contains_key(id));
        if failed.is_empty() && sight.hidden == 0 && sight.strangers == 0 {
            self.logged.clear();
        }
    }

    /// For `/status`. The agent's own namespace counts.
    pub(super) fn to_json(&self) -> Value {
        let whose = |resident: &Resident| {
            json!({
                "pid": resident.thread,
                "cgroup": resident.cgroup,
            })
        };
        let workloads = self.enrolled.iter().map(|(id, entry)| {
            let mut told = whose(&entry.resident);
            told["inode"] = id.inode().into();
            told["cookie"] = entry.vantage.id().into();
            told["ports"] = json!([entry.place.ports().port_v4, entry.place.ports().port_v6]);
            told
        });
        let failed = self.failed.iter().map(|(id, failure)| {
            let mut told = whose(&failure.resident);
            told["inode"] = id.inode().into();
            told["reason"] = failure.reason.as_str().into();
            told["error"] = failure.error.as_str().into();
            told
        });
        let unseen = self.unseen.iter().filter(|(_, processes)| **processes > 0);
        let unseen =
            unseen.map(|(reason, processes)| (reason.as_str().to_owned(), json!(processes)));
        json!({
            "enrolled": self.enrolled.len() + 1,
            "workloads": workloads.collect::<Vec<_>>(),
            "not_enrolled": failed.collect::<Vec<_>>(),
            "sandboxed": self.sandboxes,
            "unseen_processes": unseen.collect::<serde_json::Map<_, _>>(),
        })
    }
}

#[cfg(test)]
mod tests;
