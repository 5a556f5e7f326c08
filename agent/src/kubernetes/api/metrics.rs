//! How the cluster is followed, as metrics.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Error, IntGauge, IntGaugeVec, Opts, Registry};

use crate::kubernetes::feed::Feed;

struct FeedCollector {
    feed: Arc<Feed>,
    connected: IntGauge,
    objects: IntGaugeVec,
}

/// Has `registry` tell how well `feed` is.
pub(super) fn register(registry: &Registry, feed: Arc<Feed>) -> Result<(), Error> {
    registry.register(Box::new(FeedCollector {
        feed,
        connected: IntGauge::new(
            "underpass_kubernetes_connected",
            "Whether the API server answers: 1, or 0 while policy stays as it was last known.",
        )?,
        objects: IntGaugeVec::new(
            Opts::new(
                "underpass_kubernetes_objects",
                "Objects of the cluster that are known, by kind.",
            ),
            &["kind"],
        )?,
    }))
}

impl Collector for FeedCollector {
    fn desc(&self) -> Vec<&Desc> {
        [self.connected.desc(), self.objects.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.connected.set(self.feed.outage().is_none().into());
        for (kind, count) in self.feed.counts() {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.objects.with_label_values(&[kind]).set(count);
        }
        [self.connected.collect(), self.objects.collect()].concat()
    }
}
