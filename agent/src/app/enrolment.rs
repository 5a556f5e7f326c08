//! Follows the network namespaces of the captured workloads: listeners where one has come, none
//! where the last process is gone.
//!
//! A listener keeps its namespace alive, with its devices, though nobody lives there any more. So
//! it is closed as soon as two looks in a row have found nobody: one look reads one cgroup after
//! the other, and could miss a process whose parent ended meanwhile.

mod roll;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::accept::Acceptor;
use super::cgroups::Cgroups;
use super::fronts::Place;
use crate::capture::{
    Capture, CaptureError, Discovery, Netns, NetnsId, Newcomers, Resident, Sight, SocketsWithin,
};
use crate::sockets::Vantage;
use crate::telemetry::metrics::NotEnrolled;
use roll::{Entry, Roll};

/// Between two looks when nothing is told. A namespace that cannot be enrolled is tried again after
/// that.
const INTERVAL: Duration = Duration::from_secs(5);

/// After something was told: a process joins its cgroup first, and its namespace a moment later.
const SOON: Duration = Duration::from_millis(250);

/// Between two looks at least, and how many times as long as the look itself took: on a node with
/// very many processes, finding namespaces takes a fifth of one processor at the most.
const SHORTEST: Duration = Duration::from_millis(10);
const PAUSE: u32 = 4;

/// Namespaces in all, and those of one cgroup: nobody can use up all with his own.
const MOST: usize = 2048;
const MOST_PER_CGROUP: usize = 64;

/// What every namespace costs: its listeners, and itself.
const DESCRIPTORS: usize = 3;

/// Enrols namespaces and lets them go.
pub(super) struct Enrolment {
    acceptor: Acceptor,
    capture: Arc<Mutex<Capture>>,
    cgroups: Arc<Cgroups>,
    discovery: Discovery,
    /// The agent's own, which is enrolled by itself and for good.
    own: NetnsId,
    roll: Mutex<Roll>,
}

impl Enrolment {
    pub(super) fn new(
        acceptor: Acceptor,
        capture: Arc<Mutex<Capture>>,
        cgroups: Arc<Cgroups>,
    ) -> Result<Self, CaptureError> {
        Ok(Self {
            acceptor,
            capture,
            cgroups,
            discovery: Discovery::new()?,
            own: Netns::own()?.id(),
            roll: Mutex::default(),
        })
    }

    /// Looks until the agent closes: when cgroups or processes come and go, when a workload connects
    /// from a namespace that is not enrolled, when policy names others, and from time to time. Has the
    /// programs follow.
    pub(super) async fn follow(self: Arc<Self>, mut newcomers: Newcomers) {
        let closing = self.acceptor.closing();
        let mut pods = self.acceptor.way().workloads.of_pods();
        let mut wait = SOON;
        loop {
            let told = tokio::select! {
                biased;
                () = closing.cancelled() => return,
                threads = newcomers.arrived() => Some(threads),
                changed = self.discovery.changed() => Some(changed.map(|()| Vec::new())),
                () = self.cgroups.asked() => Some(Ok(Vec::new())),
                () = changed(&mut pods) => Some(Ok(Vec::new())),
                () = sleep(wait) => None,
            };
            let is_told = told.is_some();
            let threads = match told.transpose() {
                Ok(threads) => threads.unwrap_or_default(),
                Err(error) => {
                    tracing::error!(%error, "not told of new network namespaces");
                    sleep(INTERVAL).await;
                    Vec::new()
                }
            };
            let began = Instant::now();
            let again = self.look(threads).await;
            self.settle().await;
            wait = if is_told || again { SOON } else { INTERVAL };
            let pause = SHORTEST.max(began.elapsed() * PAUSE);
            if closing.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// One look, which takes these threads into account; whether there should be another one soon.
    pub(super) async fn look(self: &Arc<Self>, newcomers: Vec<u32>) -> bool {
        let this = Arc::clone(self);
        let looked = spawn_blocking(move || {
            let cgroups = this.cgroups.look(&this.discovery);
            let sight = this.discovery.look(&cgroups, &newcomers);
            this.reconcile(sight)
        });
        looked.await.unwrap_or_else(|error| {
            tracing::error!(%error, "looking for network namespaces failed");
            true
        })
    }

    /// Has the programs be where they should, after a look.
    async fn settle(&self) {
        let cgroups = Arc::clone(&self.cgroups);
        let settled = spawn_blocking(move || cgroups.settle()).await;
        match settled {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "not everything is captured that should be"),
            Err(error) => tracing::error!(%error, "attaching programs failed"),
        }
    }

    /// Opens fronts in every namespace that is enrolled, and will be, or closes them. To be called on the
    /// runtime.
    pub(super) fn set_fronts(&self, wanted: bool) {
        let mut roll = self.roll.lock();
        roll.fronts_wanted = wanted;
        self.open_or_close_fronts(&mut roll);
    }

    fn open_or_close_fronts(&self, roll: &mut Roll) {
        let wanted = roll.fronts_wanted;
        for (id, entry) in roll.entries() {
            if let Err(error) = entry.place.set(wanted, &self.acceptor, &self.capture) {
                // It is tried again with every look.
                tracing::warn!(%error, netns = id.inode(), wanted, "queries of workloads do not come here");
            }
        }
    }

    /// For `/status`.
    pub(super) fn to_json(&self) -> Value {
        self.roll.lock().to_json()
    }

    fn reconcile(&self, mut sight: Sight) -> bool {
        let mut roll = self.roll.lock();
        sight.namespaces.remove(&self.own);
        let again = self.release(&mut roll, &mut sight);
        roll.forget_failures(&sight);
        let metrics = &self.acceptor.way().metrics.capture;
        for (unseen, reason) in [
            (sight.hidden, NotEnrolled::NotPermitted),
            (sight.strangers, NotEnrolled::OtherPidNamespace),
        ] {
            if roll.set_unseen(reason, unseen) {
                metrics.namespace_failed(reason);
            }
        }
        for _ in 0..roll.set_sandboxes(sight.sandboxes) {
            metrics.namespace_failed(NotEnrolled::Sandboxed);
        }
        for (id, resident) in sight.namespaces {
            if roll.failed_within(id, INTERVAL) {
                continue;
            }
            match self.enrol(&roll, id, &resident) {
                Ok(Some(entry)) => roll.insert(id, entry),
                // The resident has moved on, or is gone.
                Ok(None) => {}
                Err((reason, error)) => {
                    metrics.namespace_failed(reason);
                    roll.failed(id, resident, reason, error);
                }
            }
        }
        self.open_or_close_fronts(&mut roll);
        // Ours as well.
        metrics.set_namespaces_enrolled(roll.len() + 1);
        let admission = &self.acceptor.way().admission;
        let fronts: usize = roll
            .entries()
            .map(|(_, entry)| entry.place.descriptors())
            .sum();
        admission.spare_descriptors(roll.len() * DESCRIPTORS + fronts);
        again
    }

    /// Lets go what nobody lives in, and takes from `sight` what is enrolled; whether something was
    /// empty for the first time.
    fn release(&self, roll: &mut Roll, sight: &mut Sight) -> bool {
        let mut again = false;
        roll.retain(|id, entry| {
            if entry.has_ended() {
                // While it is in sight it is enrolled anew.
                tracing::error!(netns = id.inode(), "a listener ended by itself");
                self.dismiss(id, entry);
                return false;
            }
            if let Some(resident) = sight.namespaces.remove(&id) {
                entry.resident = resident;
                entry.empty = false;
                return true;
            }
            // A thread that has left its process's namespace is in no list.
            let resident = &entry.resident;
            if resident.cgroup.is_none() && self.discovery.is_in(resident.thread, id) {
                return true;
            }
            if !entry.empty {
                entry.empty = true;
                again = true;
                return true;
            }
            tracing::debug!(netns = id.inode(), "let a network namespace go");
            self.dismiss(id, entry);
            false
        });
        again
    }

    fn dismiss(&self, id: NetnsId, entry: &Entry) {
        if let Err(error) = self.capture.lock().dismiss(entry.vantage.id()) {
            tracing::error!(%error, netns = id.inode(), "a network namespace stays enrolled");
        }
        let way = self.acceptor.way();
        way.forwarder.leave(&entry.vantage);
        way.tunneler.leave(&entry.vantage);
        way.shared_targets.leave(&entry.vantage);
        entry.closing.cancel();
    }

    /// Enrols the namespace in which the resident was met, if he still is there.
    fn enrol(
        &self,
        roll: &Roll,
        id: NetnsId,
        resident: &Resident,
    ) -> Result<Option<Entry>, (NotEnrolled, String)> {
        if roll.len() >= MOST || roll.of_cgroup(resident.cgroup.as_deref()) >= MOST_PER_CGROUP {
            let error = format!("there are {MOST} of them, or {MOST_PER_CGROUP} of this cgroup");
            return Err((NotEnrolled::TooMany, error));
        }
        let enrolled = Netns::of(resident.thread).and_then(|netns| {
            if netns.id() != id {
                return Ok(None);
            }
            let netns = Arc::new(netns);
            let mut capture = self.capture.lock();
            let enrolled = capture.enrol_in(&netns)?;
            let sockets = SocketsWithin::new(Arc::clone(&netns), capture.sockets());
            let vantage = Vantage::new(enrolled.cookie, Arc::new(sockets));
            Ok(Some((netns, vantage, enrolled)))
        });
        match enrolled {
            Ok(enrolled) => Ok(enrolled.map(|(netns, vantage, enrolled)| {
                tracing::debug!(
                    netns = id.inode(),
                    thread = resident.thread,
                    "enrolled a network namespace"
                );
                let closing = self.acceptor.closing().child_token();
                let vantage = Arc::new(vantage);
                let accept = |listener| {
                    let there = Arc::clone(&vantage);
                    self.acceptor.start(listener, there, closing.clone())
                };
                let acceptors = enrolled.listeners.into_iter().map(accept).collect();
                let there = Some((netns, Arc::clone(&vantage)));
                let cookie = enrolled.cookie;
                Entry {
                    resident: resident.clone(),
                    vantage,
                    place: Place::new(cookie, there, enrolled.ports, closing.clone()),
                    closing,
                    acceptors,
                    empty: false,
                }
            })),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err((reason(&error), error.to_string())),
        }
    }
}

/// Waits until pods are known that were not, if that is ever told.
async fn changed(pods: &mut Option<watch::Receiver<()>>) {
    let told = match pods {
        Some(pods) => pods.changed().await.is_ok(),
        None => false,
    };
    if !told {
        std::future::pending::<()>().await;
    }
}

/// Whoever led there has ended.
fn is_gone(error: &CaptureError) -> bool {
    use nix::libc::{ENOENT, ESRCH};
    matches!(error, CaptureError::Netns { .. }) && matches!(error.os_error(), Some(ENOENT | ESRCH))
}

fn reason(error: &CaptureError) -> NotEnrolled {
    use nix::libc::{EACCES, EMFILE, ENFILE, EPERM};
    match error.os_error() {
        Some(EACCES | EPERM) => NotEnrolled::NotPermitted,
        Some(EMFILE | ENFILE) => NotEnrolled::Descriptors,
        _ => NotEnrolled::Other,
    }
}
