//! What goes between a workload and its tunnel, once both are there: bytes, or requests of HTTP.

pub mod http;
pub mod http2;
mod progress;
mod shared;
mod tcp;

pub use progress::{Head, Progress};
pub use shared::{Shared, broken};
pub use tcp::{RelayError, Timeouts, Traffic, relay};
