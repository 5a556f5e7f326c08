//! How a target is spoken to, as DestinationRules and VirtualServices have it.

mod retries;
mod route;
mod settings;

use std::sync::Arc;

use crate::name::HostName;

pub use retries::{Retries, RetryOn};
pub use route::{HttpRoute, HttpRoutes, PathMatch, RouteMatch};
pub use settings::{HttpSettings, Outliers, TargetSettings};

/// What policy says of the connections and requests to a target.
#[derive(Clone, Debug)]
pub struct TargetPolicy {
    /// By which name it was found: the one that the connection asks for, else that of its service,
    /// else the target's.
    pub host: HostName,
    /// The port that the workload connects to.
    pub port: u16,
    /// The host as policy declares it, a pattern perhaps: the only name that is fit for a metric
    /// label.
    pub declared: Arc<str>,
    /// Limits, and when it is refused.
    pub settings: Arc<TargetSettings>,
    /// Times and retries of requests.
    pub routes: Option<Arc<HttpRoutes>>,
}
