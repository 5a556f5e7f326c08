//! The agent's part in a cluster: policy from its API before anything is captured, and as it changes.

use std::sync::Arc;

use prometheus::Registry;

use super::StartError;
#[cfg(feature = "kubernetes")]
use super::health;
use super::vital::VitalTasks;
use crate::admin::Readiness;
use crate::dns::Resolver;
use crate::kubernetes::{ClusterConfig, Feed};
use crate::name::Target;
use crate::sockets::SocketFactory;
use crate::telemetry::Metrics;

/// Follows the cluster, whose API server is told, and waits until all of its policy is known, however long that takes: without
/// it nothing may be captured, nor let go that an earlier agent left refused. Readiness says meanwhile
/// what is waited for.
#[cfg(feature = "kubernetes")]
pub(super) async fn join(
    config: &ClusterConfig,
    sockets: &Arc<dyn SocketFactory>,
    resolver: &Resolver,
    vital: &VitalTasks,
    readiness: &Readiness,
    registry: &Registry,
    metrics: &Metrics,
) -> Result<(Arc<Feed>, Option<Target>), StartError> {
    use std::time::Duration;

    use tokio::time::timeout;

    use crate::kubernetes::{Api, follow, report};

    /// Between two looks at what is the matter.
    const LOOK: Duration = Duration::from_secs(1);

    let api = Api::new(config, Arc::clone(sockets), resolver.clone()).await?;
    let server = api.server();
    let feed = Arc::new(Feed::default());
    let following = follow(
        api.clone(),
        config.node.clone(),
        Arc::clone(&feed),
        registry.clone(),
    );
    vital.spawn("cluster", following);
    let requests = metrics.proxy.tunnel_requests();
    let reporting = report(api, config.clone(), requests, Arc::clone(&feed));
    vital.spawn("reports to the cluster", reporting);
    // Or knowing policy would pass for being ready: nothing is captured before health is watched.
    readiness.check(health::PROGRAMS);
    let check = readiness.check("cluster");
    tracing::info!(node = config.node, "waiting for the policy of the cluster");
    while timeout(LOOK, feed.changed()).await.is_err() {
        if let Some(reason) = feed.obstacle() {
            check.failed(&format_args!("no policy from the API server yet: {reason}"));
        }
    }
    check.ok();
    Ok((feed, server))
}

/// There is none to follow.
#[cfg(not(feature = "kubernetes"))]
#[expect(clippy::unused_async, reason = "as with the feature")]
pub(super) async fn join(
    _: &ClusterConfig,
    _: &Arc<dyn SocketFactory>,
    _: &Resolver,
    _: &VitalTasks,
    _: &Readiness,
    _: &Registry,
    _: &Metrics,
) -> Result<(Arc<Feed>, Option<Target>), StartError> {
    Ok((Arc::default(), None))
}
