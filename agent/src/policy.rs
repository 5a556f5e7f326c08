//! Policy: which connections are captured, and what is done with each.
//!
//! [`Documents`] are what the operator wrote; [`Policy::compile`] checks them as a whole and makes
//! the immutable [`Policy`], which [`Policy::decide`]s for every connection. Both are pure: only
//! [`load`] touches files. Everything that is wrong comes out as a [`Problem`] with its place.

mod api;
mod bits;
mod compile;
mod decision;
mod document;
mod dump;
mod explain;
mod external;
mod failure_mode;
mod hash;
mod header;
mod hosts;
mod lookup;
mod named_files;
mod no_proxy;
mod ports;
mod prefix;
mod problem;
mod proxy;
mod proxy_url;
mod rule;
mod schema;
mod served;
mod source;
mod target;
#[cfg(test)]
mod testing;
mod virtuals;
mod workloads;
mod yaml;

pub use api::metadata::Namespace;
pub use compile::{CapturePlan, Materials, Named, Options, Policy};
pub use decision::{
    Decision, DenyReason, DirectRule, Fallback, Mismatch, Note, TargetSource, TargetTls,
    TunnelDecision, Verdict,
};
pub use document::Documents;
pub use explain::{Considered, Explanation, UdpFate};
pub use external::{Captured, Side};
pub use failure_mode::FailureMode;
pub use header::{HeaderContext, HeaderTemplate};
pub use lookup::{Claim, Facts, Look, NameSource};
pub use named_files::NamedFiles;
pub use no_proxy::{HostEntry, HostList, InvalidHostEntry};
pub use ports::PortSet;
pub use problem::{ObjectRef, Problem};
pub use proxy::{
    Balance, Check, Credentials, DialFrom, Ejection, Endpoint, InvalidCredentials, PlainHttp,
    Proxy, ProxySettings, RankedProxy, TunnelProtocol,
};
pub use proxy_url::ProxyUrlError;
pub use schema::{CustomResource, custom_resources};
pub use served::Served;
pub use source::{
    ClusterDocuments, ClusterKind, ClusterObjects, LoadError, Loaded, ObjectKey, Paths, References,
    Sources, load, load_cluster,
};
pub use target::{
    HttpRoute, HttpRoutes, HttpSettings, Outliers, PathMatch, Retries, RetryOn, RouteMatch,
    TargetPolicy, TargetSettings,
};
pub use virtuals::{InvalidVirtualRange, Slot, VirtualRange};
pub use workloads::View;
