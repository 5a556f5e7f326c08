//! Bytes between a workload and its tunnel, once both are there.

mod shared;
mod tcp;

pub use shared::{Shared, broken};
pub use tcp::{RelayError, Timeouts, Traffic, relay};
