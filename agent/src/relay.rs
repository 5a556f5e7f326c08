//! What goes between a workload and its tunnel, once both are there: bytes, or requests of HTTP.

pub mod http;
mod shared;
mod tcp;

pub use shared::{Shared, broken};
pub use tcp::{RelayError, Timeouts, Traffic, relay};
