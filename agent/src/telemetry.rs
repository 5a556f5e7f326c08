//! What the operator sees: metrics, the access log, and the log itself.
//!
//! Every accepted connection owns one [`ConnectionRecord`]. It is filled on the way, stands in the
//! [`ConnectionTable`] while the connection lives, and on drop writes exactly one access-log line
//! and counts the connection as closed. One that carries HTTP leaves that to the
//! [`RequestRecord`]s of its requests. [`Metrics`] is registered into a registry that is passed
//! in; nothing here is global but the subscriber that [`logging::init`] installs.
//!
//! **Direction.** Everywhere in Underpass `sent` is what the workload sent and `received` is what
//! it received. Istio's `istio_tcp_sent_bytes_total` looks from the server's side (sent in the
//! response), so there, and only there, the two change places.

pub mod connections;
pub mod label;
pub mod logging;
pub mod metrics;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod outcome;
pub mod record;
pub mod request;
#[cfg(test)]
pub(crate) mod scrape;
pub mod sources;
pub(crate) mod text;
mod trail;

pub use connections::{ByteCounts, ConnectionTable};
pub use label::{Destination, Label, Workload};
pub use logging::{LogConfig, LogHandle};
pub use metrics::Metrics;
pub use outcome::{
    Decision, Deduction, DenyReason, Inspection, Limit, Reload, ResponseFlag, SpanLoss,
    TargetLimit, TargetSource, TunnelCode, TunnelProtocol,
};
pub use record::{ConnectionRecord, TunnelLog};
pub use request::RequestRecord;
pub use trail::Trail;
