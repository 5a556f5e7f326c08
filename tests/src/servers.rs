//! What answers in `inet`: real servers, and in-process ones for what no real server does on
//! request.

pub mod dns;
pub mod fake_proxy;
pub mod gateway;
pub mod identity;
pub mod nginx;
pub mod squid;
pub mod tcp;
