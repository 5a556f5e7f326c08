//! One watch: the objects that it is of, as they come, and its recovery.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::Value;
use tokio::time::sleep;

use super::backoff::Backoff;
use super::client::{Observer, Outcome};
use super::groups::Groups;
use super::kinds;
use crate::kubernetes::feed::{Arrived, Feed, Name, Scope, TunnelFacts, Turn};
use crate::policy::ClusterKind;

/// Between two looks for a kind that the cluster does not have; as often as the kubelet says that its
/// node lives, and cheaper.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// A kind is gone when it was not there so often: a server that has just started may not know it yet.
const LOOKS_UNTIL_GONE: u32 = 3;

/// Follows what `scope` is of, for ever.
pub(super) async fn follow(scope: Scope, api: super::Api, groups: Arc<Groups>, feed: Arc<Feed>) {
    let observer = Arc::new(Sight {
        scope: scope.clone(),
        feed: Arc::clone(&feed),
    });
    let client = api.observed(observer);
    let mut backoff = Backoff::default();
    let mut looks = 0;
    loop {
        let watched = Watched {
            scope: &scope,
            client: &client,
            groups: &groups,
            feed: &feed,
        };
        match watched.until_it_ends(&mut backoff, &mut looks).await {
            End::Absent => {
                looks += 1;
                let is_gone = looks >= LOOKS_UNTIL_GONE;
                if is_gone {
                    feed.keep_only(&scope, &HashSet::new());
                }
                if is_gone || !scope.is_vital() {
                    feed.absent(&scope);
                }
                sleep(LOOK_AGAIN.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
            }
            End::Desynced => sleep(backoff.next()).await,
        }
    }
}

/// Why a watch has to begin anew.
enum End {
    /// There is no such kind.
    Absent,
    /// What was missed cannot be had.
    Desynced,
}

struct Watched<'a> {
    scope: &'a Scope,
    client: &'a kube::Client,
    groups: &'a Groups,
    feed: &'a Feed,
}

impl Watched<'_> {
    async fn until_it_ends(&self, backoff: &mut Backoff, looks: &mut u32) -> End {
        let (kind, only) = match self.scope {
            Scope::Policy(kind, only) => (kind, only),
            Scope::Pods(node) => {
                let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
                let objects = Api::all_with(self.client.clone(), &resource);
                let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
                return self
                    .until_events_end(&resource, objects, config, backoff, looks)
                    .await;
            }
        };
        let version = match kinds::group(*kind) {
            kinds::ISTIO => match self.groups.istio_version().await {
                Ok(Some(version)) => Some(version),
                Ok(None) => return End::Absent,
                Err(error) => {
                    tracing::debug!(scope = %self.scope, %error, "cannot look for the kind");
                    return End::Desynced;
                }
            },
            _ => None,
        };
        let resource = kinds::resource(*kind, version);
        // Lists are of the present: one from a stale cache could bring a policy back.
        let mut config = watcher::Config::default();
        let objects: Api<DynamicObject> = match only {
            None => Api::all_with(self.client.clone(), &resource),
            Some((namespace, name)) => {
                config = match kind {
                    ClusterKind::EndpointSlice => {
                        config.labels(&format!("kubernetes.io/service-name={name}"))
                    }
                    _ => config.fields(&format!("metadata.name={name}")),
                };
                Api::namespaced_with(self.client.clone(), namespace, &resource)
            }
        };
        self.until_events_end(&resource, objects, config, backoff, looks)
            .await
    }

    async fn until_events_end(
        &self,
        resource: &ApiResource,
        objects: Api<DynamicObject>,
        config: watcher::Config,
        backoff: &mut Backoff,
        looks: &mut u32,
    ) -> End {
        let mut events = pin!(watcher(objects, config));
        let mut seen = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => seen.clear(),
                Ok(Event::InitApply(object)) => {
                    seen.extend(self.take(&resource.api_version, object));
                }
                Ok(Event::InitDone) => {
                    self.feed.keep_only(self.scope, &seen);
                    self.feed.synced(self.scope);
                    seen = HashSet::new();
                    *looks = 0;
                    backoff.reset();
                }
                Ok(Event::Apply(object)) => {
                    self.take(&resource.api_version, object);
                    backoff.reset();
                }
                Ok(Event::Delete(object)) => {
                    if let Some(name) = name_of(&object) {
                        self.feed.remove(self.scope, &name);
                    }
                    backoff.reset();
                }
                Err(error) => match status(&error) {
                    Some(404) => return End::Absent,
                    // Told at the start of a watch, it would be told for ever.
                    Some(410) => return End::Desynced,
                    _ => {
                        tracing::debug!(scope = %self.scope, %error, "watch interrupted");
                        sleep(backoff.next()).await;
                    }
                },
            }
        }
        End::Desynced
    }

    fn take(&self, version: &str, object: DynamicObject) -> Option<Name> {
        let name = name_of(&object)?;
        if let Scope::Pods(_) = self.scope {
            let (uid, pod) = super::pods::pod(object)?;
            self.feed.set_pod(self.scope, name.clone(), uid, pod);
            return Some(name);
        }
        let facts = TunnelFacts {
            uid: object.metadata.uid.clone().unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            status: object.data.get("status").cloned().unwrap_or_default(),
        };
        let arrived = Arrived {
            name: name.clone(),
            facts,
            json: json(object),
        };
        self.feed.set(self.scope, version, arrived);
        Some(name)
    }
}

fn name_of(object: &DynamicObject) -> Option<Name> {
    let namespace = object.metadata.namespace.clone()?;
    Some((namespace, object.metadata.name.clone()?))
}

/// The object without what is only about who has written it, which can be most of it.
fn json(mut object: DynamicObject) -> Value {
    object.metadata.managed_fields = None;
    object.metadata.annotations = None;
    serde_json::to_value(object).unwrap_or_default()
}

/// What the server answered, if it did.
fn status(error: &watcher::Error) -> Option<u16> {
    let error = match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error,
        // It lists anew by itself.
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => return None,
    };
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// What has come in the way of a watch.
pub(super) fn cause(error: watcher::Error) -> kube::Error {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error,
        watcher::Error::WatchError(status) => kube::Error::Api(status),
        watcher::Error::NoResourceVersion => kube::Error::Service(Box::new(error)),
    }
}

/// Tells the feed how the requests of one watch fare, and the log what that turns.
struct Sight {
    scope: Scope,
    feed: Arc<Feed>,
}

impl Observer for Sight {
    fn saw(&self, outcome: Outcome) {
        let (failing, refused) = match outcome {
            Outcome::Answered => (None, None),
            Outcome::Refused(why) => (None, Some(why)),
            Outcome::Failed(why) => (Some(why), None),
        };
        let turned = self.feed.fared(&self.scope, failing, refused);
        match turned {
            Some(Turn::Lost(reason)) => tracing::warn!(
                reason,
                "the API server is not to be had: policy stays as it was last known"
            ),
            Some(Turn::Back(after)) => tracing::info!(
                seconds = after.as_secs(),
                "the API server is there again: policy follows it"
            ),
            Some(Turn::Refused(why)) => tracing::error!(
                "the API server does not let us read {}: {why}; the role of the agent's service \
                 account has to allow list and watch",
                self.scope
            ),
            None => {}
        }
    }
}
