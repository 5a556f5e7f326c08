//! Underpass: a transparent egress tunneling agent for Linux nodes.
//!
//! The modules stand in the order in which a connection passes them; a module knows only what
//! stands before it. [`app`] is the only place that puts them together.

pub mod capabilities;
pub mod name;
pub mod sockets;
pub mod tls;
pub mod trace;
pub mod workload;

pub mod admin;
pub mod capture;
pub mod dns;
pub mod inspect;
pub mod policy;
pub mod relay;
pub mod telemetry;
pub mod tunnel;

pub mod kubernetes;
pub mod limits;

#[cfg(test)]
mod allocator;
mod circuit;
mod connection;

pub mod app;
pub mod cli;
pub mod gateway;
