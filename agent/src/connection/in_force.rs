//! The policy in force, and what it looks like from each workload.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::policy::{Policy, View};
use crate::workload::Workload;

/// Views that are kept; past this many all are made anew.
const MAX_VIEWS: usize = 8192;

/// A policy in force. The views of its rules that workloads have are made once and live as long.
pub(crate) struct InForce {
    policy: Policy,
    /// By cgroup, and whether it is on the network of the node.
    views: RwLock<HashMap<(u64, bool), Seen>>,
}

/// What the workload in a cgroup sees.
struct Seen {
    who: Arc<Workload>,
    view: Arc<View>,
}

impl Deref for InForce {
    type Target = Policy;

    fn deref(&self) -> &Policy {
        &self.policy
    }
}

impl InForce {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            views: RwLock::default(),
        }
    }

    /// What the policy looks like from `who`, which is in the cgroup with this id, and with
    /// `host_network` on the network of the node, where others than pods are told apart.
    pub(crate) fn view_from(
        &self,
        cgroup_id: u64,
        who: &Arc<Workload>,
        host_network: bool,
    ) -> Arc<View> {
        if !self.policy.wants_workload() && !host_network {
            return Arc::clone(self.policy.view_of_stranger());
        }
        // More may have been learnt of the cgroup since.
        let same = |seen: &&Seen| Arc::ptr_eq(&seen.who, who);
        if let Some(seen) = self
            .views
            .read()
            .get(&(cgroup_id, host_network))
            .filter(same)
        {
            return Arc::clone(&seen.view);
        }
        let view = self.policy.view(&Workload {
            host_network,
            ..Workload::clone(who)
        });
        let mut views = self.views.write();
        if views.len() >= MAX_VIEWS {
            views.clear();
        }
        let seen = Seen {
            who: Arc::clone(who),
            view: Arc::clone(&view),
        };
        views.insert((cgroup_id, host_network), seen);
        view
    }
}
