//! The cluster that a node is part of: policy from its API, who the node's pods are, and what the
//! cluster is told.
//!
//! Everything here is on the agent's own sockets and resolver. Objects come by watches, each with its
//! own recovery, and stay as they were when the API cannot be reached: [`Feed`] has what is known, and
//! says when that has changed. What is made of it is for `policy`.

#[cfg(feature = "kubernetes")]
mod api;
#[cfg_attr(
    not(feature = "kubernetes"),
    expect(dead_code, reason = "nobody feeds it")
)]
mod feed;

use std::path::PathBuf;

use crate::policy::Namespace;

#[cfg(feature = "kubernetes")]
pub use api::{Api, ApiError, follow, report};
pub use feed::{Feed, Name, TunnelFacts, Tunnels, Verdict};

/// How the API of the cluster is reached, and what it calls this node.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// A file that says where the API is and who we are; `None`: the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// The name of the Node that this is.
    pub node: String,
    /// The namespace whose documents are for all workloads.
    pub root_namespace: Namespace,
}
