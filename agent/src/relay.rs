//! Bytes between a workload and its tunnel, once both are there.

mod tcp;

pub use tcp::{RelayError, Timeouts, Traffic, relay};
