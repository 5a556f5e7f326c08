//! The cluster that a node is part of.

use std::path::PathBuf;

use crate::policy::Namespace;

/// How its API is reached, and what it calls this node.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// A file that says where the API is and who we are; `None`: the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// The name of the Node that this is.
    pub node: String,
    /// The namespace whose documents are for all workloads.
    pub root_namespace: Namespace,
}
