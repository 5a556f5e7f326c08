//! What speaks to the API of the cluster: watches that feed what is known, and reports.

mod backoff;
mod client;
mod connector;
mod events;
mod follow;
mod groups;
mod kinds;
mod leader;
mod metrics;
mod nodes;
mod pods;
mod report;
mod status;
mod watch;

pub use client::{Api, ApiError};
pub use follow::follow;
pub use report::report;

#[cfg(test)]
mod tests;
