//! On which cgroups the programs are, as pods, units and policy come and go.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::reload::must_outlive;
use crate::capture::{
    Attachment, Capture, CaptureError, Discovery, Hooks,
    cgroup::{self, Hierarchy},
    supersede,
};
use crate::connection::Way;

/// What is captured.
#[derive(Clone, Debug)]
pub enum Scope {
    /// Whatever is in this cgroup or below it.
    Cgroup(PathBuf),
    /// The pods of the node, in the cgroup that kubelet makes for all of them; of what is on the
    /// agent's own network, in pods or not, only what policy names.
    Pods(Hierarchy),
}

impl Scope {
    /// By which the next agent knows what is for it to take over.
    pub(super) fn key(&self) -> &Path {
        match self {
            Self::Cgroup(path) => path,
            Self::Pods(hierarchy) => hierarchy.root(),
        }
    }
}

/// The cgroups that are captured. Nothing is before [`settle`](Self::settle).
pub(super) struct Cgroups {
    scope: Scope,
    capture: Arc<Mutex<Capture>>,
    way: Arc<Way>,
    outlives_us: bool,
    state: Mutex<State>,
    asked: Notify,
}

struct State {
    /// As of the last look: in which one everything is that is captured, whatever policy says.
    main: Option<PathBuf>,
    /// Likewise, on which the programs should be, each with its id. None is below another.
    wanted: BTreeMap<PathBuf, u64>,
    /// On which they are.
    attached: BTreeMap<PathBuf, Attached>,
    must_outlive: bool,
    is_waiting: bool,
    /// Whether what earlier agents left has been taken over.
    has_succeeded: bool,
    is_over: bool,
}

struct Attached {
    id: u64,
    attachment: Attachment,
    hooks: Hooks,
}

impl Cgroups {
    /// Of this scope, under the policy that is in force.
    ///
    /// # Errors
    /// It cannot be told which the agent's own network namespace is.
    pub(super) fn new(
        scope: Scope,
        capture: Arc<Mutex<Capture>>,
        way: Arc<Way>,
        outlives_us: bool,
    ) -> Result<Self, CaptureError> {
        let (main, wanted) = match &scope {
            // What it was when the agent started, come what may.
            Scope::Cgroup(path) => (Some(path.clone()), [(path.clone(), 0)].into()),
            Scope::Pods(_) => {
                capture.lock().spare_own_namespace()?;
                (None, BTreeMap::new())
            }
        };
        let state = State {
            main,
            wanted,
            attached: BTreeMap::new(),
            must_outlive: must_outlive(&way.policy.load()),
            is_waiting: false,
            has_succeeded: false,
            is_over: false,
        };
        Ok(Self {
            scope,
            capture,
            way,
            outlives_us,
            state: Mutex::new(state),
            asked: Notify::new(),
        })
    }

    /// Has somebody look again, who waits for [`asked`](Self::asked): there is another policy.
    pub(super) fn ask(&self) {
        self.asked.notify_one();
    }

    /// Waits for that.
    pub(super) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Finds out which cgroups are to be captured, and tells the programs which of them on the node's
    /// network as well. `discovery` is told where there could be others.
    pub(super) fn look(&self, discovery: &Discovery) -> Vec<PathBuf> {
        if let Scope::Pods(hierarchy) = &self.scope {
            let main = hierarchy.pods();
            watch_for_pods(hierarchy, main.as_deref(), discovery);
            let selected = self.selected(hierarchy, main.as_deref(), discovery);
            let ids: HashSet<u64> = selected.iter().map(|(_, id)| *id).collect();
            if let Err(error) = self.capture.lock().rules().set_selected(&ids) {
                tracing::error!(%error, "cannot tell the programs what policy names on the node's network");
            }
            let mut wanted: BTreeMap<PathBuf, u64> = selected.into_iter().collect();
            if let Some(main) = &main {
                wanted.retain(|path, _| !path.starts_with(main));
                let is_within = wanted.keys().any(|path| main.starts_with(path));
                if let (false, Some(id)) = (is_within, id_of(main)) {
                    wanted.insert(main.clone(), id);
                }
            }
            let mut state = self.state.lock();
            let was_waiting = std::mem::replace(&mut state.is_waiting, main.is_none());
            if state.is_waiting && !was_waiting {
                tracing::info!(root = %hierarchy.root().display(), "waiting for the cgroup of pods");
            }
            state.main = main;
            state.wanted = wanted;
        }
        self.state.lock().wanted.keys().cloned().collect()
    }

    /// What policy names, of the pods and, if it does so by units or cgroups, of the whole node.
    fn selected(
        &self,
        hierarchy: &Hierarchy,
        pods: Option<&Path>,
        discovery: &Discovery,
    ) -> Vec<(PathBuf, u64)> {
        let policy = self.way.policy.load_full();
        let named = policy.names_workloads();
        let within = match (named.any, named.by_services) {
            (_, true) => Some(hierarchy.root()),
            (true, false) => pods,
            (false, false) => None,
        };
        let Some(within) = within else {
            return Vec::new();
        };
        let workloads = &self.way.workloads;
        workloads.outermost(within, |directory, workload| {
            discovery.watch(directory);
            policy.names(workload)
        })
    }

    /// Has the programs be on the cgroups that were found, and on no others.
    ///
    /// # Errors
    /// They cannot be attached; those that could be are, and the rest may be tried again.
    pub(super) fn settle(&self) -> Result<(), CaptureError> {
        let mut state = self.state.lock();
        let State {
            wanted, attached, ..
        } = &mut *state;
        let is_stale = |path: &PathBuf, it: &mut Attached| wanted.get(path) != Some(&it.id);
        let stale: Vec<_> = attached.extract_if(.., is_stale).collect();
        for (path, mut it) in stale {
            tracing::info!(cgroup = %path.display(), "captures no more");
            if let Err(error) = it.attachment.set_outliving(false) {
                tracing::error!(%error, "a pin stays behind; `underpass detach` removes it");
            }
        }
        if state.is_over {
            return Ok(());
        }
        let mut failed = None;
        for (path, id) in state.wanted.clone() {
            if state.attached.contains_key(&path) {
                continue;
            }
            match self.attach(&path, id, state.must_outlive) {
                Ok(it) => {
                    tracing::info!(cgroup = %path.display(), "capturing");
                    state.attached.insert(path, it);
                }
                // It has gone since.
                Err(_) if id != 0 && id_of(&path) != Some(id) => {}
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        // Ours are on the hooks, so those of an earlier agent may go: there is no gap.
        if self.outlives_us && state.main.is_some() && !state.has_succeeded {
            let ours = state.attached.values().map(|it| &it.attachment);
            let cgroups = supersede(self.scope.key(), ours)?;
            state.has_succeeded = true;
            tracing::info!(cgroups, "taken over from earlier agents");
        }
        Ok(())
    }

    fn attach(&self, path: &Path, id: u64, outliving: bool) -> Result<Attached, CaptureError> {
        let (mut attachment, hooks) = {
            let mut capture = self.capture.lock();
            (
                capture.attach(path, self.scope.key())?,
                capture.hooks(path)?,
            )
        };
        if self.outlives_us {
            for path in cgroup::leftovers(path) {
                cgroup::end(&path)?;
            }
            attachment.set_outliving(outliving)?;
        }
        Ok(Attached {
            id,
            attachment,
            hooks,
        })
    }

    /// Decides whether the programs stay when the agent ends.
    ///
    /// # Errors
    /// They cannot be pinned, or a pin cannot be removed.
    pub(super) fn set_outliving(&self, outliving: bool) -> Result<(), CaptureError> {
        if !self.outlives_us {
            return Ok(());
        }
        let mut state = self.state.lock();
        state.must_outlive = outliving;
        let mut attached = state.attached.values_mut();
        attached.try_for_each(|it| it.attachment.set_outliving(outliving))
    }

    /// Takes the programs off, as far as they are not to outlive us, and attaches them no more.
    pub(super) fn let_go(&self) {
        let mut state = self.state.lock();
        state.is_over = true;
        state.attached.clear();
    }

    /// The cgroup in which everything is captured; none where kubelet has not made it yet.
    pub(super) fn main(&self) -> Option<PathBuf> {
        let state = self.state.lock();
        state.main.clone().filter(|main| {
            let mut attached = state.attached.keys();
            attached.any(|path| main.starts_with(path))
        })
    }

    /// Checks that the programs are where they should be.
    ///
    /// # Errors
    /// Names those that are not, or says what is waited for.
    pub(super) fn check(&self) -> Result<(), CaptureError> {
        let state = self.state.lock();
        if let (Scope::Pods(hierarchy), None) = (&self.scope, &state.main) {
            return Err(CaptureError::NoPods(hierarchy.root().to_owned()));
        }
        for (path, id) in &state.wanted {
            // One that is gone is let go at the next look.
            if *id != 0 && id_of(path) != Some(*id) {
                continue;
            }
            match state.attached.get(path) {
                Some(it) => it.hooks.check()?,
                None => return Err(CaptureError::NotAttached(path.clone())),
            }
        }
        Ok(())
    }

    /// For `/status`.
    pub(super) fn to_json(&self) -> Value {
        let state = self.state.lock();
        let others = state
            .attached
            .keys()
            .filter(|path| Some(*path) != state.main.as_ref());
        json!({
            "main": state.main,
            "named": others.collect::<Vec<_>>(),
        })
    }
}

/// Kubelet may make it any time, or make it anew.
fn watch_for_pods(hierarchy: &Hierarchy, pods: Option<&Path>, discovery: &Discovery) {
    match pods.and_then(Path::parent) {
        Some(parent) => discovery.watch(parent),
        None => {
            for parent in hierarchy.parents_of_pods() {
                discovery.watch(&parent);
            }
        }
    }
}

fn id_of(cgroup: &Path) -> Option<u64> {
    Some(fs::metadata(cgroup).ok()?.ino())
}
