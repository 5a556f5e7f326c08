//! Bytes, by target and by proxy, live connections included.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Error, IntCounter, IntCounterVec, Opts, Registry};

use crate::telemetry::connections::ConnectionTable;
use crate::telemetry::label::{Destination, Label, Workload};
use crate::telemetry::outcome::ResponseFlag;

use super::target::{LABELS, target_values};

/// The byte counters. They are one collector, because each scrape must first fold in what live
/// connections relayed, and a registry collects in no particular order.
///
/// As in Istio, bytes counted while a connection lives have `response_flags="-"`, those counted
/// at its end have the flags it ended with.
#[derive(Clone, Debug)]
pub(crate) struct ByteMetrics {
    connections: ConnectionTable,
    target_sent: IntCounterVec,
    target_received: IntCounterVec,
    proxy_sent: IntCounterVec,
    proxy_received: IntCounterVec,
}

impl ByteMetrics {
    pub(super) fn new(registry: &Registry, connections: ConnectionTable) -> Result<Self, Error> {
        let counters = |name, help, labels| IntCounterVec::new(Opts::new(name, help), labels);
        super::register(
            registry,
            Self {
                connections,
                target_sent: counters(
                    "istio_tcp_sent_bytes_total",
                    "Bytes sent in responses, from the target to the workload.",
                    &LABELS,
                )?,
                target_received: counters(
                    "istio_tcp_received_bytes_total",
                    "Bytes received in requests, from the workload to the target.",
                    &LABELS,
                )?,
                proxy_sent: counters(
                    "underpass_proxy_sent_bytes_total",
                    "Payload bytes sent into tunnels.",
                    &["proxy"],
                )?,
                proxy_received: counters(
                    "underpass_proxy_received_bytes_total",
                    "Payload bytes received from tunnels.",
                    &["proxy"],
                )?,
            },
        )
    }

    pub(super) fn connections(&self) -> &ConnectionTable {
        &self.connections
    }

    /// Where the bytes of a connection are counted.
    pub(crate) fn series(
        &self,
        workload: &Workload,
        destination: &Destination,
        flag: ResponseFlag,
        proxy: Option<&Label>,
    ) -> ByteSeries {
        let values = target_values(workload, destination, flag);
        ByteSeries {
            target: Some((
                self.target_sent.with_label_values(&values),
                self.target_received.with_label_values(&values),
            )),
            proxy: proxy.map(|proxy| self.through(proxy)),
        }
    }

    /// Where the bytes of requests are counted, of which the target has metrics of its own.
    pub(crate) fn of_requests(&self, proxy: Option<&Label>) -> ByteSeries {
        ByteSeries {
            target: None,
            proxy: proxy.map(|proxy| self.through(proxy)),
        }
    }

    fn through(&self, proxy: &Label) -> ProxyBytes {
        let values = [proxy.as_str()];
        ProxyBytes {
            sent: self.proxy_sent.with_label_values(&values),
            received: self.proxy_received.with_label_values(&values),
        }
    }
}

impl ByteMetrics {
    fn counters(&self) -> [&IntCounterVec; 4] {
        [
            &self.target_sent,
            &self.target_received,
            &self.proxy_sent,
            &self.proxy_received,
        ]
    }
}

impl Collector for ByteMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.counters()
            .into_iter()
            .flat_map(Collector::desc)
            .collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.connections.fold();
        self.counters()
            .into_iter()
            .flat_map(Collector::collect)
            .collect()
    }
}

/// The counters that the bytes of one connection belong to.
#[derive(Debug)]
pub(crate) struct ByteSeries {
    target: Option<(IntCounter, IntCounter)>,
    proxy: Option<ProxyBytes>,
}

impl ByteSeries {
    /// Adds bytes, named from the workload's side.
    pub(crate) fn add(&self, sent: u64, received: u64) {
        if let Some((target_sent, target_received)) = &self.target {
            // Istio looks from the server's side.
            target_sent.inc_by(received);
            target_received.inc_by(sent);
        }
        if let Some(proxy) = &self.proxy {
            proxy.add(sent, received);
        }
    }
}

/// The counters of what goes through one proxy.
#[derive(Debug)]
struct ProxyBytes {
    sent: IntCounter,
    received: IntCounter,
}

impl ProxyBytes {
    fn add(&self, sent: u64, received: u64) {
        self.sent.inc_by(sent);
        self.received.inc_by(received);
    }
}
