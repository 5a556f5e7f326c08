//! Bytes, by target and by proxy, live connections included.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Error, IntCounter, IntCounterVec, Opts, Registry};

use crate::telemetry::connections::ConnectionTable;
use crate::telemetry::label::{Destination, Label, Workload};
use crate::telemetry::outcome::ResponseFlag;

use super::target::{LABELS, target_values};

/// Who talks to whom, without how: as in Istio, messages are counted before it is known how their
/// request ends.
const PEERS: &[&str] = LABELS.split_at(LABELS.len() - 3).0;

/// The byte counters, and those of messages. They are one collector, because each scrape must first fold in what live
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
    request_messages: IntCounterVec,
    response_messages: IntCounterVec,
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
                request_messages: counters(
                    "istio_request_messages_total",
                    "Messages of gRPC from the workload to the target.",
                    PEERS,
                )?,
                response_messages: counters(
                    "istio_response_messages_total",
                    "Messages of gRPC from the target to the workload.",
                    PEERS,
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
            messages: None,
        }
    }

    /// Where the bytes of a request are counted, of which the target has metrics of its own, and
    /// its messages, if it is gRPC from this workload to this destination.
    pub(crate) fn of_requests(
        &self,
        proxy: Option<&Label>,
        grpc: Option<(&Workload, &Destination)>,
    ) -> ByteSeries {
        let messages = grpc.map(|(workload, destination)| {
            let values = target_values(workload, destination, ResponseFlag::None);
            let values = &values[..PEERS.len()];
            Box::new(Messages {
                requests: self.request_messages.with_label_values(values),
                responses: self.response_messages.with_label_values(values),
                counted: (0, 0),
            })
        });
        ByteSeries {
            target: None,
            proxy: proxy.map(|proxy| self.through(proxy)),
            messages,
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
    fn counters(&self) -> [&IntCounterVec; 6] {
        [
            &self.target_sent,
            &self.target_received,
            &self.proxy_sent,
            &self.proxy_received,
            &self.request_messages,
            &self.response_messages,
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
    /// Unless there are none, as nearly always.
    messages: Option<Box<Messages>>,
}

impl ByteSeries {
    /// Counts messages from the workload and to it, of which there are so many by now.
    pub(crate) fn count_messages(&mut self, now: impl FnOnce() -> (u64, u64)) {
        if let Some(messages) = &mut self.messages {
            messages.count(now());
        }
    }

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

/// The counters of messages, and how far they have come.
#[derive(Debug)]
struct Messages {
    requests: IntCounter,
    responses: IntCounter,
    counted: (u64, u64),
}

impl Messages {
    fn count(&mut self, now: (u64, u64)) {
        let (sent, received) = self.counted;
        self.requests.inc_by(now.0.saturating_sub(sent));
        self.responses.inc_by(now.1.saturating_sub(received));
        self.counted = now;
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
