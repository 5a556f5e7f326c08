//! Workloads as labels: as few as a node has of them, whatever they are called.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::telemetry::label::{Label, Workload};
use crate::workload;

/// How many different workloads labels tell apart; of more nothing is told.
const MAX: usize = 512;

/// For how many workloads it is remembered which labels are theirs; past that it is found out anew
/// for all.
const MAX_REMEMBERED: usize = 8192;

/// Labels of pods that tell their service, the first that is there.
const CANONICAL_NAME: [&str; 3] = [
    "service.istio.io/canonical-name",
    "app.kubernetes.io/name",
    "app",
];

/// Those that tell its revision.
const CANONICAL_REVISION: [&str; 3] = [
    "service.istio.io/canonical-revision",
    "app.kubernetes.io/version",
    "version",
];

/// The labels of workloads, so that each set of them is there once.
#[derive(Debug, Default)]
pub struct Sources {
    sets: Mutex<HashSet<Arc<Workload>>>,
    /// By the address of the workload, which is held here so that it stays its own.
    remembered: RwLock<HashMap<usize, Remembered>>,
}

#[derive(Debug)]
struct Remembered {
    _who: Arc<workload::Workload>,
    source: Arc<Workload>,
}

impl Sources {
    /// Those of one; of the same one it costs a look into a table.
    pub fn of(&self, who: &Arc<workload::Workload>) -> Arc<Workload> {
        let address = Arc::as_ptr(who).addr();
        if let Some(known) = self.remembered.read().get(&address) {
            return Arc::clone(&known.source);
        }
        let source = self.found(who);
        let mut remembered = self.remembered.write();
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        let known = Remembered {
            _who: Arc::clone(who),
            source: Arc::clone(&source),
        };
        remembered.insert(address, known);
        source
    }

    /// `source_workload` is what has made the pod (a bare pod is its own), or the
    /// systemd unit; what else is told is what Kubernetes knows of a pod, but not the pod's name, of
    /// which there is no end. What stands in for labels that a pod has not is as Istio has it.
    fn found(&self, who: &workload::Workload) -> Arc<Workload> {
        let given = |value: Option<&str>| value.map(|value| Label::of(&value)).unwrap_or_default();
        let label = |name: &str| given(who.labels.get(name).map(String::as_str));
        let first = |names: &[&str]| {
            let mut found = names.iter().filter_map(|name| who.labels.get(*name));
            found.next().map(String::as_str)
        };
        let maker = who.owner.as_ref().map(|owner| &*owner.name);
        let name = match maker.or(who.name.as_deref()) {
            Some(name) => Some(name.to_owned()),
            None => who.unit.as_deref().and_then(lasting),
        };
        let is_pod = who.namespace.is_some();
        let service = first(&CANONICAL_NAME).or(name.as_deref().filter(|_| is_pod));
        let revision = first(&CANONICAL_REVISION).or(is_pod.then_some("latest"));
        let source = Workload {
            name: given(name.as_deref()),
            namespace: given(who.namespace.as_deref()),
            app: label("app"),
            version: label("version"),
            canonical_service: given(service),
            canonical_revision: given(revision),
            ..Workload::default()
        };
        let mut known = self.sets.lock();
        if let Some(source) = known.get(&source) {
            return Arc::clone(source);
        }
        if known.len() >= MAX {
            return Arc::default();
        }
        let source = Arc::new(source);
        known.insert(Arc::clone(&source));
        source
    }
}

/// What stays of the name of a unit when it is started again: not the instance of a template, nor
/// the numbers of what is made at run time (all scopes, and the services of `systemd-run`).
fn lasting(unit: &str) -> Option<String> {
    let (name, kind) = unit.rsplit_once('.')?;
    if let Some((template, _)) = name.split_once('@') {
        return Some(format!("{template}@.{kind}"));
    }
    if kind != "scope" && !name.starts_with("run-") {
        return Some(unit.to_owned());
    }
    let is_lasting = |part: &&str| !part.bytes().any(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = name.split('-').filter(is_lasting).collect();
    (!parts.is_empty()).then(|| format!("{}.{kind}", parts.join("-")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_cgroup(path: &str) -> Arc<workload::Workload> {
        Arc::new(workload::Workload::in_cgroup(path))
    }

    #[test]
    fn a_unit_is_told_by_what_stays_of_its_name() {
        for (unit, expected) in [
            ("backup.service", "backup.service"),
            ("k8s-node-2.service", "k8s-node-2.service"),
            ("getty@tty1.service", "getty@.service"),
            ("session-3.scope", "session.scope"),
            ("init.scope", "init.scope"),
            ("docker-0a1b2c.scope", "docker.scope"),
            ("cri-containerd-0a1b2c.scope", "cri-containerd.scope"),
            ("app-gnome-terminal-4711.scope", "app-gnome-terminal.scope"),
            ("run-u12.service", "run.service"),
            ("run-rf00d1e.scope", "run.scope"),
            ("4711.scope", "unknown"),
        ] {
            let source = Sources::default().of(&in_cgroup(&format!("/system.slice/{unit}")));
            assert_eq!(source.name.as_str(), expected, "{unit}");
        }
        let nobody = Sources::default().of(&Arc::default());
        assert_eq!(*nobody, Workload::default());
    }

    #[test]
    fn a_pod_is_told_by_its_namespace_and_labels() {
        let labels = [
            ("app", "web"),
            ("version", "v1"),
            ("pod-template-hash", "5d8"),
        ];
        let source = Sources::default().of(&Arc::new(workload::Workload {
            namespace: Some("shop".into()),
            name: Some("web-5d8-x2x".into()),
            owner: Some(workload::Owner {
                kind: "Deployment".into(),
                name: "web".into(),
            }),
            labels: labels
                .map(|(name, value)| (name.into(), value.into()))
                .into(),
            ..workload::Workload::default()
        }));
        let expected = Workload {
            name: Label::fixed("web"),
            namespace: Label::fixed("shop"),
            app: Label::fixed("web"),
            version: Label::fixed("v1"),
            canonical_service: Label::fixed("web"),
            canonical_revision: Label::fixed("v1"),
            ..Workload::default()
        };
        let shown = |source: &Workload| format!("{source:?}");
        assert_eq!(shown(&source), shown(&expected));
    }

    #[test]
    fn a_bare_pod_is_its_own_maker() {
        let source = Sources::default().of(&Arc::new(workload::Workload {
            namespace: Some("shop".into()),
            name: Some("debug".into()),
            ..workload::Workload::in_cgroup(
                "/kubepods.slice/kubepods-podX.slice/cri-containerd-0a.scope",
            )
        }));
        let shown = [
            &source.name,
            &source.canonical_service,
            &source.canonical_revision,
        ];
        assert_eq!(shown.map(Label::as_str), ["debug", "debug", "latest"]);
    }

    #[test]
    fn there_are_only_so_many() {
        let sources = Sources::default();
        let of = |number: usize| sources.of(&in_cgroup(&format!("/a-{number}.service")));
        for number in 0..MAX {
            assert_eq!(of(number).name.as_str(), format!("a-{number}.service"));
        }
        assert_eq!(of(MAX).name.as_str(), "unknown");
        assert_eq!(of(7).name.as_str(), "a-7.service");
    }
}
