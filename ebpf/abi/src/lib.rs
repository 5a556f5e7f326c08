//! What the eBPF programs and the agent share: map names, keys, values and their layout.
//!
//! Everything here is `#[repr(C)]` without implicit padding, and asserts say so: a field that
//! moves breaks the build, not a running node.

#![no_std]

mod address;
mod counter;
mod dns;
mod flow;
mod namespace;
mod rule;

pub use address::{Address, Endpoint};
pub use counter::{Counter, Outcome};
pub use dns::{Answer, Asked, Asker, FRONTS, Query, QueryKey, Questions};
pub use flow::{Flow, FlowKey, Redirect};
pub use namespace::Listeners;
pub use rule::{Config, PORT_WORDS, RuleKey, Side, Sides, SocketRole, Verdict, port_slot};

/// Global of the programs: byte offset of `flags` in the running kernel's `task_struct`.
pub const TASK_FLAGS_OFFSET: &str = "TASK_FLAGS_OFFSET";

/// Global of the programs: 1 if the kernel gives them the running task as a typed pointer, whose fields
/// they read without a helper, else 0.
pub const TASK_IS_TYPED: &str = "TASK_IS_TYPED";

/// Global of the programs, three `u32`: the way from a `task_struct` to the inode of its network
/// namespace, as byte offsets in the running kernel: of `nsproxy` in the task, of `net_ns` in that, of
/// the inode in that.
pub const NETNS_INODE_PATH: &str = "NETNS_INODE_PATH";

/// Names of the maps, as the programs define them.
pub mod map {
    /// Ring buffer of [`Answer`](crate::Answer)s.
    pub const ANSWERS: &str = "ANSWERS";
    /// Socket storage of workload sockets: [`Asker`](crate::Asker).
    pub const ASKERS: &str = "ASKERS";
    /// Array of one [`Config`](crate::Config).
    pub const CONFIG: &str = "CONFIG";
    /// Per-CPU array of `u64`, indexed by [`Counter`](crate::Counter).
    pub const COUNTERS: &str = "COUNTERS";
    /// Hash from [`FlowKey`](crate::FlowKey) to [`Flow`](crate::Flow).
    pub const FLOWS: &str = "FLOWS";
    /// Hash from netns cookie (`u64`) to [`Listeners`](crate::Listeners).
    pub const NAMESPACES: &str = "NAMESPACES";
    /// Ring buffer of thread ids (`u32`, of the initial pid namespace) that called `connect` in a
    /// network namespace that is not in [`NAMESPACES`].
    pub const NEWCOMERS: &str = "NEWCOMERS";
    /// Array of [`PORT_WORDS`](crate::PORT_WORDS) `u64`: one bit per port that policy is about.
    pub const PORTS: &str = "PORTS";
    /// Longest-prefix trie from [`RuleKey`](crate::RuleKey) to [`Sides`](crate::Sides).
    pub const PREFIXES: &str = "PREFIXES";
    /// Hash set of the proxies' [`Endpoint`](crate::Endpoint)s.
    pub const PROXIES: &str = "PROXIES";
    /// Hash from [`QueryKey`](crate::QueryKey) to [`Query`](crate::Query), of those used last.
    pub const QUERIES: &str = "QUERIES";
    /// Socket storage of workload sockets: [`Questions`](crate::Questions).
    pub const QUESTIONS: &str = "QUESTIONS";
    /// Socket storage of workload sockets: [`Redirect`](crate::Redirect).
    pub const REDIRECTS: &str = "REDIRECTS";
    /// Socket storage of the agent's own sockets: [`SocketRole`](crate::SocketRole).
    pub const ROLES: &str = "ROLES";
    /// Hash set of the ids (`u64`) of cgroups whose processes, and those below, are captured also
    /// where they are in the network namespace of the node.
    pub const SELECTED: &str = "SELECTED";
}
