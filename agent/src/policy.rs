//! Policy: which connections are captured, and what is done with each.
//!
//! [`Documents`] are what the operator wrote; [`Policy::compile`] checks them as a whole and makes
//! the immutable [`Policy`], which [`Policy::decide`]s for every connection. Both are pure: only
//! [`load`] touches files. Everything that is wrong comes out as a [`Problem`] with its place.

mod api;
mod compile;
mod document;
mod dump;
mod external;
mod failure_mode;
mod lookup;
mod no_proxy;
mod ports;
mod prefix;
mod problem;
mod proxy;
mod proxy_url;
mod source;
mod yaml;

pub use compile::{CapturePlan, Options, Policy};
pub use document::Documents;
pub use external::Side;
pub use failure_mode::FailureMode;
pub use lookup::{
    Claim, Decision, DenyReason, DirectRule, Facts, NameSource, Note, TargetSource, TunnelDecision,
};
pub use no_proxy::{HostEntry, HostList, InvalidHostEntry};
pub use ports::PortSet;
pub use problem::Problem;
pub use proxy::{Credentials, InvalidCredentials, Proxy};
pub use proxy_url::ProxyUrlError;
pub use source::{LoadError, load};
