//! (being written)

mod proxy;

pub use proxy::{Credentials, Proxy};
