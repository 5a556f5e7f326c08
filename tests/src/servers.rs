//! What answers in `inet`: real servers, and in-process ones for what no real server does on
//! request.

pub mod apache;
pub mod api_server;
pub mod dns;
pub mod envoy;
pub mod fake_proxy;
pub mod forward;
pub mod gateway;
pub mod h2_proxy;
pub mod identity;
pub mod nghttpx;
pub mod nginx;
pub mod policy;
pub mod prometheus;
pub mod squid;
pub mod stage;
pub mod tcp;
pub mod tinyproxy;
pub mod web;
pub mod zone;
