//! A closed world for end-to-end tests: two network namespaces, real servers, the real kernel.
//!
//! [`World`] has a `host`, where workloads and the agent run, and an `inet`, where proxies and
//! targets answer on documentation addresses. Neither has a route out of the machine. Targets are
//! reachable from the host without any proxy, and [`World::direct_arrivals`] counts who did that:
//! a connection that slips past the tunnel is seen, not lost.
//!
//! Everything a world makes (namespaces, a cgroup, processes, a directory) ends with it, also when
//! the test process is interrupted or killed. Functions here panic with what was expected and the
//! tails of the logs, because in a test the panic is the report.

pub mod addr;
pub mod agent;
pub mod arrivals;
pub mod cgroup;
pub mod cluster;
pub mod container;
pub mod curl;
pub mod http;
pub mod janitor;
pub mod kernel_objects;
pub mod load;
pub mod manifests;
pub mod metrics;
pub mod must;
pub mod pki;
pub mod place;
pub mod pod;
pub mod process;
pub mod python;
pub mod random;
pub mod scene;
pub mod servers;
pub mod smuggling;
pub mod snapshot;
mod spawn;
pub mod tools;
pub mod usage;
pub mod wait;
pub mod world;

pub use must::Must;
pub use place::Place;
pub use scene::Scene;
pub use wait::{poll, wait_for};
pub use world::World;
