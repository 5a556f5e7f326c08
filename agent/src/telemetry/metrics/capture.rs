//! Capture: what the kernel side did, and which namespaces it may do it in.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Error, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::family::Family;

/// Fill of one BPF map.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MapUsage {
    /// The map, as it is named in the eBPF object.
    pub map: &'static str,
    /// Entries in it now.
    pub entries: u64,
    /// Entries it can hold.
    pub capacity: u64,
}

/// Counters and maps of the kernel side, read on every scrape. Each reason and each map may
/// appear once.
pub trait CaptureSource: Send + Sync {
    /// Connections redirected to the agent since the programs were loaded.
    fn redirected(&self) -> u64;

    /// Connections left alone, by reason.
    fn skipped(&self) -> Vec<(&'static str, u64)>;

    /// Connections refused in the kernel, by reason.
    fn refused(&self) -> Vec<(&'static str, u64)>;

    /// Datagrams refused in the kernel, by what they are.
    fn udp_refused(&self) -> Vec<(&'static str, u64)>;

    /// Answers of name servers that were not passed on to the agent.
    fn answers_lost(&self) -> u64;

    /// Queries that went to their name servers although policy serves, by reason.
    fn queries_passed(&self) -> Vec<(&'static str, u64)>;

    /// Fill of the maps.
    fn maps(&self) -> Vec<MapUsage>;
}

/// Why connections are not captured in a network namespace.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum NotEnrolled {
    /// The agent has no descriptors left.
    Descriptors,
    /// It may not look, or not enter.
    NotPermitted,
    /// The kernel did not let it, as its error says.
    Other,
    /// It does not see whose namespace it is.
    OtherPidNamespace,
    /// What runs there has a kernel or a machine of its own.
    Sandboxed,
    /// There are too many.
    TooMany,
}

impl NotEnrolled {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Descriptors,
        Self::NotPermitted,
        Self::Other,
        Self::OtherPidNamespace,
        Self::Sandboxed,
        Self::TooMany,
    ];

    /// As a label has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Descriptors => "descriptors",
            Self::NotPermitted => "not_permitted",
            Self::Other => "other",
            Self::OtherPidNamespace => "other_pid_namespace",
            Self::Sandboxed => "sandboxed",
            Self::TooMany => "too_many",
        }
    }

    /// What to do about it.
    pub const fn hint(self) -> &'static str {
        match self {
            Self::Descriptors => "raise the limit of file descriptors (RLIMIT_NOFILE)",
            Self::NotPermitted => {
                "the agent needs CAP_SYS_PTRACE to see them, and CAP_SYS_ADMIN to enter them (in a \
                 container: securityContext.capabilities.add)"
            }
            Self::Other => "the failure mode decides about connections from there",
            Self::OtherPidNamespace => {
                "the agent needs the pid namespace of the node (in Kubernetes: hostPID: true)"
            }
            Self::Sandboxed => {
                "what runs in a sandbox (gVisor, Kata Containers, a virtual machine) makes no connections \
                 that the node's kernel sees: nothing of it is captured, nor refused"
            }
            Self::TooMany => "somebody makes very many; the failure mode decides about the others",
        }
    }
}

/// Metrics of capture.
#[derive(Debug)]
pub struct CaptureMetrics {
    healthy: IntGaugeVec,
    misses: IntCounter,
    namespaces: IntGauge,
    namespace_failures: IntCounterVec,
}

impl CaptureMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let namespace_failures = super::counters(
            registry,
            "underpass_namespace_failures_total",
            "Times that a network namespace could not be enrolled.",
            &["reason"],
        )?;
        for reason in NotEnrolled::ALL {
            namespace_failures.with_label_values(&[reason.as_str()]);
        }
        Ok(Self {
            namespace_failures,
            healthy: super::gauges(
                registry,
                "underpass_capture_healthy",
                "Whether a part of capture works: 1, or 0 if it does not.",
                &["check"],
            )?,
            misses: super::register(
                registry,
                IntCounter::new(
                    "underpass_capture_original_destination_misses_total",
                    "Connections reset by the agent because nothing is known about where they \
                     were going.",
                )?,
            )?,
            namespaces: super::gauge(
                registry,
                "underpass_namespaces_enrolled",
                "Network namespaces in which the agent has a listener.",
            )?,
        })
    }

    /// A connection was accepted whose original destination is not known.
    pub fn original_destination_missed(&self) {
        self.misses.inc();
    }

    /// Says whether the part of capture that this check is about works.
    pub fn set_healthy(&self, check: &'static str, healthy: bool) {
        self.healthy.with_label_values(&[check]).set(healthy.into());
    }

    /// Says in how many network namespaces the agent has a listener now.
    pub fn set_namespaces_enrolled(&self, count: usize) {
        self.namespaces
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A network namespace could not be enrolled.
    pub fn namespace_failed(&self, reason: NotEnrolled) {
        let failures = &self.namespace_failures;
        failures.with_label_values(&[reason.as_str()]).inc();
    }

    /// Has every scrape of `registry` read the kernel side through `source`.
    ///
    /// # Errors
    /// When that registry already has a source.
    pub fn watch(&self, registry: &Registry, source: Arc<dyn CaptureSource>) -> Result<(), Error> {
        registry.register(Box::new(CaptureCollector::new(source)?))
    }
}

struct CaptureCollector {
    source: Arc<dyn CaptureSource>,
    redirected: Family,
    skipped: Family,
    refused: Family,
    udp_refused: Family,
    answers_lost: Family,
    queries_passed: Family,
    map_entries: Family,
    map_capacity: Family,
}

impl CaptureCollector {
    fn new(source: Arc<dyn CaptureSource>) -> Result<Self, Error> {
        Ok(Self {
            source,
            redirected: Family::counter(
                "underpass_capture_redirected_total",
                "Connections that the hooks redirected to the agent.",
                None,
            )?,
            skipped: Family::counter(
                "underpass_capture_skipped_total",
                "Connections that the hooks left alone.",
                Some("reason"),
            )?,
            refused: Family::counter(
                "underpass_capture_refused_total",
                "Connections that the hooks refused.",
                Some("reason"),
            )?,
            udp_refused: Family::counter(
                "underpass_capture_udp_refused_total",
                "Datagrams that the hooks refused: QUIC (port 443) and others.",
                Some("kind"),
            )?,
            answers_lost: Family::counter(
                "underpass_dns_answers_lost_total",
                "Answers of name servers that were too long to be passed on, or too many.",
                None,
            )?,
            queries_passed: Family::counter(
                "underpass_dns_queries_passed_total",
                "Queries that went to their name servers although policy has the agent answer.",
                Some("reason"),
            )?,
            map_entries: Family::gauge(
                "underpass_capture_map_entries",
                "Entries in a BPF map.",
                Some("map"),
            )?,
            map_capacity: Family::gauge(
                "underpass_capture_map_capacity",
                "Entries that a BPF map can hold.",
                Some("map"),
            )?,
        })
    }
}

impl Collector for CaptureCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![
            self.redirected.desc(),
            self.skipped.desc(),
            self.refused.desc(),
            self.udp_refused.desc(),
            self.answers_lost.desc(),
            self.queries_passed.desc(),
            self.map_entries.desc(),
            self.map_capacity.desc(),
        ]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let maps = self.source.maps();
        let entries = maps.iter().map(|usage| (usage.map, usage.entries));
        let capacity = maps.iter().map(|usage| (usage.map, usage.capacity));
        vec![
            self.redirected.single(self.source.redirected()),
            self.skipped.samples(self.source.skipped()),
            self.refused.samples(self.source.refused()),
            self.udp_refused.samples(self.source.udp_refused()),
            self.answers_lost.single(self.source.answers_lost()),
            self.queries_passed.samples(self.source.queries_passed()),
            self.map_entries.samples(entries),
            self.map_capacity.samples(capacity),
        ]
    }
}
