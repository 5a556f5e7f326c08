//! Policy: which connections are captured, and what is done with each.

mod api;
mod document;
mod external;
mod no_proxy;
mod ports;
mod prefix;
mod problem;
mod proxy;
mod proxy_url;
mod yaml;

pub use document::Documents;
pub use external::Side;
pub use no_proxy::{HostEntry, HostList, InvalidHostEntry};
pub use ports::PortSet;
pub use problem::Problem;
pub use proxy::{Credentials, InvalidCredentials, Proxy};
pub use proxy_url::ProxyUrlError;
