//! How much the agent takes on at a time. Past a limit a connection is refused at once, with the
//! name of the option in the log; nothing waits in a queue for room.

mod descriptors;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

pub use descriptors::{Descriptors, raise_descriptors};

use crate::telemetry::Limit;

/// The limits that the user sets. 0 is no limit, but for `connections`, which is also the size of
/// the flow map.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Connections in all.
    pub connections: u32,
    /// Connections of one workload: of the processes that were in one cgroup when they called
    /// `connect`. Who may make cgroups below his own may have more.
    pub per_workload: u32,
    /// Connections whose tunnel is not open yet.
    pub pending_tunnels: u32,
}

/// Counts what there is and lets in no more than [`Limits`] say.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    connections: AtomicU32,
    pending: AtomicU32,
    /// Descriptors that are no connection's for long.
    spared: AtomicU64,
    /// Connections by cgroup id; only cgroups that have some.
    workloads: Mutex<HashMap<u64, u32>>,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            connections: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            spared: AtomicU64::new(0),
            workloads: Mutex::default(),
        }
    }

    /// A place for a connection of the workload in the cgroup of this id, until it is dropped.
    ///
    /// # Errors
    /// There is none left, for this workload or for any.
    pub(crate) fn admit(self: &Arc<Self>, cgroup_id: u64) -> Result<Admitted, Refusal> {
        let limit = self.limits.per_workload;
        {
            let mut workloads = self.workloads.lock();
            let of_workload = workloads.entry(cgroup_id).or_default();
            if limit != 0 && *of_workload >= limit {
                return Err(Refusal::new(Limit::Workload, limit.into()));
            }
            *of_workload += 1;
        }
        // From here on its drop gives back what was taken.
        let mut admitted = Admitted {
            admission: Arc::clone(self),
            cgroup_id,
            counted: false,
        };
        let spared = self.spared.load(Ordering::Relaxed);
        if self.connections.load(Ordering::Relaxed) >= descriptors::connections_allowed(spared) {
            return Err(Refusal::descriptors());
        }
        let limit = self.limits.connections;
        if !take(&self.connections, limit) {
            return Err(Refusal::new(Limit::Connections, limit.into()));
        }
        admitted.counted = true;
        Ok(admitted)
    }

    /// Leaves this many descriptors to others, besides the reserve.
    pub(crate) fn spare_descriptors(&self, count: usize) {
        self.spared.store(count as u64, Ordering::Relaxed);
    }

    /// A place for a tunnel that is being opened, until it is dropped.
    ///
    /// # Errors
    /// There is none left.
    pub(crate) fn begin_tunnel(&self) -> Result<Pending<'_>, Refusal> {
        let limit = self.limits.pending_tunnels;
        if take(&self.pending, if limit == 0 { u32::MAX } else { limit }) {
            Ok(Pending(&self.pending))
        } else {
            Err(Refusal::new(Limit::PendingTunnels, limit.into()))
        }
    }
}

/// One more, unless there are `limit` already.
fn take(count: &AtomicU32, limit: u32) -> bool {
    // The number itself is all that is shared, so no order with other memory is needed.
    count
        .try_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            (now < limit).then_some(now + 1)
        })
        .is_ok()
}

/// The place of one connection.
#[derive(Debug)]
pub(crate) struct Admitted {
    admission: Arc<Admission>,
    cgroup_id: u64,
    /// Whether it is one of all connections, besides being one of its workload's.
    counted: bool,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.counted {
            self.admission.connections.fetch_sub(1, Ordering::Relaxed);
        }
        let mut workloads = self.admission.workloads.lock();
        if let Some(of_workload) = workloads.get_mut(&self.cgroup_id) {
            *of_workload -= 1;
            if *of_workload == 0 {
                workloads.remove(&self.cgroup_id);
            }
        }
    }
}

/// The place of one tunnel that is being opened.
#[derive(Debug)]
pub(crate) struct Pending<'a>(&'a AtomicU32);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection is one too many; says for which limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) limit: Limit,
    value: u64,
}

impl Refusal {
    fn new(limit: Limit, value: u64) -> Self {
        Self { limit, value }
    }

    /// The process has no descriptor left but those in reserve.
    pub(crate) fn descriptors() -> Self {
        Self::new(Limit::Descriptors, descriptors::soft_limit())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value;
        match self.limit {
            Limit::Connections => write!(
                f,
                "the limit of {value} connections (--max-connections) is reached"
            ),
            Limit::Workload => write!(
                f,
                "the limit of {value} connections of one workload \
                 (--max-connections-per-workload) is reached"
            ),
            Limit::PendingTunnels => write!(
                f,
                "the limit of {value} tunnels being opened (--max-pending-tunnels) is reached: \
                 is the proxy slow to answer?"
            ),
            Limit::Descriptors => write!(
                f,
                "the limit of {value} file descriptors (RLIMIT_NOFILE, `LimitNOFILE=` of systemd) \
                 is reached"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(connections: u32, per_workload: u32, pending_tunnels: u32) -> Arc<Admission> {
        Arc::new(Admission::new(Limits {
            connections,
            per_workload,
            pending_tunnels,
        }))
    }

    #[test]
    fn a_workload_has_its_share_and_all_have_the_whole() {
        let admission = admission(3, 2, 0);
        let first = admission.admit(1).unwrap();
        let _second = admission.admit(1).unwrap();
        let refusal = admission.admit(1).unwrap_err();
        assert_eq!(refusal, Refusal::new(Limit::Workload, 2));
        assert!(
            refusal
                .to_string()
                .contains("2 connections of one workload (--max-connections-per-workload)"),
            "{refusal}"
        );

        let other = admission.admit(2).unwrap();
        assert_eq!(
            admission.admit(2).unwrap_err(),
            Refusal::new(Limit::Connections, 3)
        );
        drop(first);
        // The refused took nothing: there is room for one, of either.
        let again = admission.admit(2).unwrap();
        drop((again, other));
        drop(admission.admit(1).unwrap());
        assert_eq!(
            admission.workloads.lock().keys().collect::<Vec<_>>(),
            [&1],
            "a workload without connections is forgotten"
        );
    }

    #[test]
    fn zero_is_no_limit_for_a_workload_and_for_tunnels() {
        let admission = admission(100, 0, 0);
        let held: Vec<_> = (0..100).map(|_| admission.admit(7).unwrap()).collect();
        assert_eq!(admission.admit(7).unwrap_err().limit, Limit::Connections);
        let _pending: Vec<_> = (0..100)
            .map(|_| admission.begin_tunnel().unwrap())
            .collect();
        drop(held);
        assert!(admission.workloads.lock().is_empty());
    }

    #[test]
    fn tunnels_being_opened_are_counted_until_they_are_open() {
        let admission = admission(10, 0, 2);
        let first = admission.begin_tunnel().unwrap();
        let _second = admission.begin_tunnel().unwrap();
        assert_eq!(
            admission.begin_tunnel().unwrap_err(),
            Refusal::new(Limit::PendingTunnels, 2)
        );
        drop(first);
        drop(admission.begin_tunnel().unwrap());
    }
}
