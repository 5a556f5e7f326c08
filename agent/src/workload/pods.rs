//! The pods of this node, as the API server tells of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long a connection of a pod waits until the API server has told of it. Its watch is a moment
/// behind kubelet, which has started the pod.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the API server tells of a pod.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pod {
    /// `metadata.namespace`.
    pub namespace: Box<str>,
    /// `metadata.name`.
    pub name: Box<str>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `spec.serviceAccountName`.
    pub service_account: Option<Box<str>>,
    /// What has made it.
    pub owner: Option<Owner>,
}

/// What has made a pod, and will make others like it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Owner {
    /// `Deployment`, `StatefulSet`, …
    pub kind: Box<str>,
    /// Its name, in the namespace of the pod.
    pub name: Box<str>,
}

impl Owner {
    /// Of the controller that the pod names (`ownerReferences` with `controller: true`). A
    /// ReplicaSet is one of a Deployment, and a Job named after a time one of a CronJob: those last.
    pub fn of(kind: &str, name: &str, labels: &BTreeMap<String, String>) -> Self {
        let owner = |kind: &str, name: &str| Self {
            kind: kind.into(),
            name: name.into(),
        };
        let without = |suffix: &str| name.strip_suffix(suffix)?.strip_suffix('-');
        match kind {
            "ReplicaSet" => {
                let hash = labels.get("pod-template-hash");
                match hash.and_then(|hash| without(hash)) {
                    Some(name) => owner("Deployment", name),
                    None => owner(kind, name),
                }
            }
            "Job" => match name.rsplit_once('-') {
                // The time at which it was due, in minutes.
                Some((cron_job, due))
                    if due.len() >= 8 && due.bytes().all(|byte| byte.is_ascii_digit()) =>
                {
                    owner("CronJob", cron_job)
                }
                _ => owner(kind, name),
            },
            _ => owner(kind, name),
        }
    }
}

/// The pods of this node, by the names that their cgroups have for them
/// ([`Container::pod`](super::Container)). Whoever watches the API server keeps it.
#[derive(Debug)]
pub struct Pods {
    known: ArcSwap<HashMap<Box<str>, Arc<Pod>>>,
    /// Told of each change.
    changed: watch::Sender<()>,
}

impl Default for Pods {
    fn default() -> Self {
        Self {
            known: ArcSwap::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl Pods {
    /// These are the pods from now on. A pod that has not changed stays the same to those who know
    /// it, so nothing is found out anew.
    pub fn replace(&self, pods: impl IntoIterator<Item = (Box<str>, Pod)>) {
        let known = self.known.load();
        let now = pods.into_iter().map(|(uid, pod)| {
            let same = known.get(&uid).filter(|known| ***known == pod);
            let pod = same.map_or_else(|| Arc::new(pod), Arc::clone);
            (uid, pod)
        });
        self.known.store(Arc::new(now.collect()));
        self.changed.send_replace(());
    }

    /// Is told of each change.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The pod of this name.
    pub fn get(&self, uid: &str) -> Option<Arc<Pod>> {
        self.known.load().get(uid).cloned()
    }

    /// The same, and waits some seconds for one that is not known yet.
    pub async fn find(&self, uid: &str) -> Option<Arc<Pod>> {
        let mut changed = self.subscribe();
        let told = async {
            loop {
                if let Some(pod) = self.get(uid) {
                    return pod;
                }
                if changed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        timeout(PATIENCE, told).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Pod {
        Pod {
            namespace: "shop".into(),
            name: name.into(),
            ..Pod::default()
        }
    }

    #[test]
    fn owners_are_what_lasts() {
        let labels: BTreeMap<_, _> =
            [("pod-template-hash".to_owned(), "5d8c7f9b4".to_owned())].into();
        let none = BTreeMap::new();
        for (kind, name, labels, expected) in [
            (
                "ReplicaSet",
                "web-5d8c7f9b4",
                &labels,
                ("Deployment", "web"),
            ),
            (
                "ReplicaSet",
                "web-5d8c7f9b4",
                &none,
                ("ReplicaSet", "web-5d8c7f9b4"),
            ),
            (
                "ReplicaSet",
                "web5d8c7f9b4",
                &labels,
                ("ReplicaSet", "web5d8c7f9b4"),
            ),
            ("StatefulSet", "db", &none, ("StatefulSet", "db")),
            ("DaemonSet", "log", &none, ("DaemonSet", "log")),
            ("Job", "backup-29384756", &none, ("CronJob", "backup")),
            ("Job", "backup-2", &none, ("Job", "backup-2")),
            ("Job", "migrate", &none, ("Job", "migrate")),
        ] {
            let owner = Owner::of(kind, name, labels);
            assert_eq!((&*owner.kind, &*owner.name), expected, "{kind}/{name}");
        }
    }

    #[test]
    fn what_has_not_changed_stays_the_same() {
        let pods = Pods::default();
        pods.replace([("a".into(), pod("one")), ("b".into(), pod("two"))]);
        let (one, two) = (pods.get("a").unwrap(), pods.get("b").unwrap());
        pods.replace([("a".into(), pod("one")), ("b".into(), pod("other"))]);
        assert!(Arc::ptr_eq(&one, &pods.get("a").unwrap()));
        assert!(!Arc::ptr_eq(&two, &pods.get("b").unwrap()));
        pods.replace([]);
        assert!(pods.get("a").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_known_yet_is_waited_for_but_not_for_ever() {
        let pods = Arc::new(Pods::default());
        let waiting = tokio::spawn({
            let pods = Arc::clone(&pods);
            async move { pods.find("a").await }
        });
        tokio::task::yield_now().await;
        pods.replace([("b".into(), pod("two"))]);
        tokio::task::yield_now().await;
        pods.replace([("a".into(), pod("one"))]);
        assert_eq!(&*waiting.await.unwrap().unwrap().name, "one");
        let before = tokio::time::Instant::now();
        assert!(pods.find("c").await.is_none());
        assert_eq!(before.elapsed(), PATIENCE);
    }
}
