//! Which watches there are: of all policy, and of what it refers to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::client::Api;
use super::groups::Groups;
use super::kinds::FOLLOWED;
use super::{metrics, watch};
use crate::kubernetes::feed::{Feed, Scope};
use crate::policy::{ClusterKind, References};

/// Nothing must come for so long before policy is made anew: changes often come many at a time.
const QUIET: Duration = Duration::from_millis(30);

/// It is made after so long even if more comes.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long what is newly referred to may take to be known, before policy is made without it.
const FIRST_SIGHT: Duration = Duration::from_secs(2);

/// References that are followed at most, of each kind: each is a watch of its own.
const MAX_REFERENCES: usize = 512;

/// Keeps `feed` as the cluster is, with the pods of this node, for ever.
pub async fn follow(api: Api, node: String, feed: Arc<Feed>, registry: Registry) {
    if let Err(error) = metrics::register(&registry, Arc::clone(&feed)) {
        tracing::error!(%error, "the cluster has no metrics");
    }

    let mut watches = Watches {
        groups: Arc::new(Groups::new(api.plain())),
        api,
        feed: Arc::clone(&feed),
        tasks: JoinSet::new(),
        referred: BTreeMap::new(),
    };
    for kind in FOLLOWED {
        watches.open(Scope::Policy(kind, None));
    }
    watches.open(Scope::Pods(node));
    loop {
        feed.moved.notified().await;
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience {
            let quiet = patience.min(Instant::now() + QUIET);
            if timeout_at(quiet, feed.moved.notified()).await.is_err() {
                break;
            }
        }
        watches.refer_to(&feed.references()).await;
        if feed.is_complete() {
            feed.settled.notify_one();
        }
    }
}

struct Watches {
    api: Api,
    groups: Arc<Groups>,
    feed: Arc<Feed>,
    /// Their end is that of the watches.
    tasks: JoinSet<()>,
    referred: BTreeMap<Scope, AbortHandle>,
}

impl Watches {
    fn open(&mut self, scope: Scope) -> AbortHandle {
        self.feed.open(scope.clone());
        let (api, groups) = (self.api.clone(), Arc::clone(&self.groups));
        let feed = Arc::clone(&self.feed);
        self.tasks.spawn(watch::follow(scope, api, groups, feed))
    }

    /// Watches what is referred to and no more, and waits for what is new among it.
    async fn refer_to(&mut self, references: &References) {
        let wanted = scopes(references);
        let feed = Arc::clone(&self.feed);
        self.referred.retain(|scope, task| {
            let wanted = wanted.contains(scope);
            if !wanted {
                task.abort();
                feed.close(scope);
            }
            wanted
        });
        let new: Vec<Scope> = wanted
            .into_iter()
            .filter(|scope| !self.referred.contains_key(scope))
            .collect();
        for scope in &new {
            let task = self.open(scope.clone());
            self.referred.insert(scope.clone(), task);
        }
        let deadline = Instant::now() + FIRST_SIGHT;
        let mut moved = false;
        while !new.iter().all(|scope| feed.is_settled(scope)) {
            tokio::select! {
                () = feed.moved.notified() => moved = true,
                () = sleep_until(deadline) => break,
            }
        }
        if moved {
            // What came meanwhile may refer to more.
            feed.moved.notify_one();
        }
        // Ended tasks are of watches that were closed.
        while self.tasks.try_join_next().is_some() {}
    }
}

fn scopes(references: &References) -> Vec<Scope> {
    let secrets = references.secrets.iter().take(MAX_REFERENCES);
    let secrets = secrets.map(|name| Scope::Policy(ClusterKind::Secret, Some(name.clone())));
    let services = references.services.iter().take(MAX_REFERENCES);
    let services = services.flat_map(|name| {
        [ClusterKind::Service, ClusterKind::EndpointSlice]
            .map(|kind| Scope::Policy(kind, Some(name.clone())))
    });
    let scopes: Vec<Scope> = secrets.chain(services).collect();
    if references.secrets.len().max(references.services.len()) > MAX_REFERENCES {
        tracing::error!(
            "policy names more than {MAX_REFERENCES} Secrets or Services: the rest is not followed"
        );
    }
    scopes
}
