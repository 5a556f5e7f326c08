//! The metrics, by what they describe.
//!
//! Label values are enums, numbers of HTTP, or [`Label`](crate::telemetry::Label)s that
//! configuration gave. A name, port or address that came over the network never is one.

mod bytes;
mod capture;
mod circuits;
mod dns;
mod family;
mod http;
mod limits;
mod policy;
mod process;
mod proxy;
mod target;
mod traces;

use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::{Error, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::telemetry::connections::ConnectionTable;
use crate::telemetry::sources::Sources;

pub(crate) use bytes::ByteSeries;
pub use capture::{CaptureMetrics, CaptureSource, MapUsage, NotEnrolled};
pub use circuits::CircuitMetrics;
pub use dns::DnsMetrics;
pub(crate) use http::Ended;
pub use limits::LimitMetrics;
pub use policy::PolicyMetrics;
pub use proxy::{ActiveGuard, ProxyMetrics};
pub(crate) use target::{TargetMetrics, target_values};
pub use traces::TraceMetrics;

/// All metrics of the agent, registered in one registry.
#[derive(Debug)]
pub struct Metrics {
    /// Capture: what the kernel side did, and enrolment.
    pub capture: CaptureMetrics,
    /// Limits of targets.
    pub circuits: CircuitMetrics,
    /// DNS of workloads.
    pub dns: Arc<DnsMetrics>,
    /// Limits of the agent.
    pub limits: LimitMetrics,
    /// Policy: decisions, names, reloads.
    pub policy: PolicyMetrics,
    /// Proxies and tunnels.
    pub proxy: ProxyMetrics,
    /// Spans.
    pub traces: TraceMetrics,
    /// Workloads as labels.
    pub sources: Sources,
    /// Targets, under Istio's names.
    pub(crate) target: TargetMetrics,
    /// Requests to them, likewise.
    pub(crate) http: http::HttpMetrics,
    pub(crate) bytes: bytes::ByteMetrics,
}

impl Metrics {
    /// Registers them all.
    ///
    /// # Errors
    /// When the registry already has a metric of one of the names.
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        register(registry, process::ProcessCollector::new()?)?;
        let build_info = gauges(
            registry,
            "underpass_build_info",
            "Always 1; its labels say what was built.",
            &["version", "revision"],
        )?;
        build_info
            .with_label_values(&[
                env!("CARGO_PKG_VERSION"),
                option_env!("UNDERPASS_REVISION").unwrap_or("unknown"),
            ])
            .set(1);
        // The panel of Istio's mesh dashboard that says what is installed in which version.
        gauges(
            registry,
            "istio_build",
            "Always 1; the same under Istio's name and labels.",
            &["component", "tag"],
        )?
        .with_label_values(&["underpass", env!("CARGO_PKG_VERSION")])
        .set(1);
        Ok(Self {
            capture: CaptureMetrics::new(registry)?,
            circuits: CircuitMetrics::new(registry)?,
            dns: Arc::new(DnsMetrics::new(registry)?),
            limits: LimitMetrics::new(registry)?,
            policy: PolicyMetrics::new(registry)?,
            proxy: ProxyMetrics::new(registry)?,
            traces: TraceMetrics::new(registry)?,
            sources: Sources::default(),
            target: TargetMetrics::new(registry)?,
            http: http::HttpMetrics::new(registry)?,
            bytes: bytes::ByteMetrics::new(registry, ConnectionTable::default())?,
        })
    }

    /// The connections whose bytes a scrape counts.
    pub fn connections(&self) -> &ConnectionTable {
        self.bytes.connections()
    }
}

/// Registers `collector` and hands it back.
fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, Error> {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, Error> {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, Error> {
    register(registry, IntGauge::new(name, help)?)
}

#[cfg(test)]
mod tests;
