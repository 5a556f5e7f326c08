//! Connections to targets that outlive those of workloads.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::time::sleep;

use super::targets::{SWEEP, Targets};

/// How many connections of one workload may be idle.
const MAX_IDLE: usize = 64;

/// Connections on which requests of HTTP/1.1 are streams of HTTP/2, by the cgroup of the workload.
/// What a target may have learnt on a connection it has learnt of that workload, and of no other.
#[derive(Debug, Default)]
pub(crate) struct SharedTargets {
    by_cgroup: Mutex<HashMap<u64, Arc<Targets>>>,
}

impl SharedTargets {
    /// Those of a workload. They are forgotten when it has none.
    pub(super) fn of(self: &Arc<Self>, cgroup: u64) -> Arc<Targets> {
        let mut all = self.by_cgroup.lock();
        let targets = all.entry(cgroup).or_insert_with(|| {
            tokio::spawn(sweep(Arc::downgrade(self), cgroup));
            Arc::new(Targets::new(MAX_IDLE))
        });
        Arc::clone(targets)
    }
}

/// Gives up connections that have been idle for too long, until there are none.
async fn sweep(shared: Weak<SharedTargets>, cgroup: u64) {
    loop {
        sleep(SWEEP).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let mut all = shared.by_cgroup.lock();
        let Some(targets) = all.get(&cgroup) else {
            return;
        };
        targets.sweep();
        // Who asks for them has to wait for the lock.
        if Arc::strong_count(targets) == 1 && targets.are_none() {
            all.remove(&cgroup);
            return;
        }
    }
}
