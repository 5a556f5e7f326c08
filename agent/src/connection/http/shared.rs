//! Connections to targets that outlive those of workloads.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::time::sleep;

use super::super::Origin;
use super::targets::{SWEEP, Targets};
use crate::sockets::Vantage;

/// How many connections of one workload may be idle.
const MAX_IDLE: usize = 64;

/// Connections on which requests of HTTP/1.1 are streams of HTTP/2, by the workload. What a target
/// may have learnt on a connection it has learnt of that workload, and of no other.
#[derive(Debug, Default)]
pub(crate) struct SharedTargets {
    by_workload: Mutex<HashMap<Key, Arc<Targets>>>,
}

/// Its cgroup, and its network namespace if that is not the agent's.
type Key = (u64, Option<u64>);

impl SharedTargets {
    /// Those of a workload. They are forgotten when it has none.
    pub(super) fn of(self: &Arc<Self>, origin: &Origin) -> Arc<Targets> {
        let from = origin.from.as_ref();
        let key = (origin.cgroup_id, from.map(|vantage| vantage.id()));
        let mut all = self.by_workload.lock();
        if from.is_some_and(|vantage| !vantage.is_lived_in()) {
            return Arc::new(Targets::new(MAX_IDLE));
        }
        let targets = all.entry(key).or_insert_with(|| {
            tokio::spawn(sweep(Arc::downgrade(self), key));
            Arc::new(Targets::new(MAX_IDLE))
        });
        Arc::clone(targets)
    }

    /// Nobody [lives there](Vantage::leave) any more.
    pub(crate) fn leave(&self, vantage: &Vantage) {
        let is_there = |key: &Key| key.1 == Some(vantage.id());
        self.by_workload.lock().retain(|key, _| !is_there(key));
    }
}

/// Gives up connections that have been idle for too long, until there are none.
async fn sweep(shared: Weak<SharedTargets>, key: Key) {
    loop {
        sleep(SWEEP).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let mut all = shared.by_workload.lock();
        let Some(targets) = all.get(&key) else {
            return;
        };
        targets.sweep();
        // Who asks for them has to wait for the lock.
        if Arc::strong_count(targets) == 1 && targets.are_none() {
            all.remove(&key);
            return;
        }
    }
}
