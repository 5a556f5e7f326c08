//! The policy of a gateway, read again when it changes.

use std::fs;
use std::path::PathBuf;

use crate::app::PolicySource;
use crate::gateway::followed::{Followed, Loaded};
use crate::policy::{LoadError, Policy};

/// Reads a policy, and again when a file of it changes.
///
/// # Errors
/// Everything that is wrong with it.
pub fn follow_policy(source: PolicySource) -> Result<Followed<Policy>, LoadError> {
    let paths = source.clone();
    Followed::of_changing(
        "policy",
        move || files(paths.watched_paths()),
        move || load(&source),
    )
}

fn load(source: &PolicySource) -> Result<Loaded<Policy>, LoadError> {
    let (policy, rejected) = source.load();
    for problem in &rejected {
        tracing::error!("rejected, its last good version stays in force: {problem}");
    }
    let policy = policy?;
    for warning in policy.warnings() {
        tracing::warn!("{warning}");
    }
    if policy.wants_workload() {
        tracing::warn!(
            "some of the policy is for certain workloads only; who asks a gateway is not known, so \
             it does not apply"
        );
    }
    Ok(Loaded {
        value: policy,
        is_whole: rejected.is_empty(),
    })
}

/// The paths, and what is in those that are directories.
fn files(paths: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in paths {
        let entries = fs::read_dir(&path).into_iter().flatten().flatten();
        let mut inside: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        inside.sort();
        files.push(path);
        files.append(&mut inside);
    }
    files
}
