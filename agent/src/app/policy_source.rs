//! Where policy comes from, so that it can come from there again.

use std::path::PathBuf;

use crate::policy::{self, LoadError, Options, Policy};

/// A place to load policy from.
#[derive(Clone, Debug)]
pub struct PolicySource(Place);

#[derive(Clone, Debug)]
enum Place {
    Files(Vec<PathBuf>, Options),
    Fixed(Box<Policy>),
}

impl PolicySource {
    /// Files, and directories of them.
    pub fn files(paths: Vec<PathBuf>, options: Options) -> Self {
        Self(Place::Files(paths, options))
    }

    /// A policy that never changes.
    pub fn fixed(policy: Policy) -> Self {
        Self(Place::Fixed(Box::new(policy)))
    }

    /// The files and directories whose contents make the policy.
    pub fn watched_paths(&self) -> Vec<PathBuf> {
        match &self.0 {
            Place::Files(paths, _) => paths.clone(),
            Place::Fixed(_) => Vec::new(),
        }
    }

    /// Loads it.
    ///
    /// # Errors
    /// Everything that is wrong with the documents.
    pub fn load(&self) -> Result<Policy, LoadError> {
        match &self.0 {
            Place::Files(paths, options) => policy::load(paths, options),
            Place::Fixed(policy) => Ok(Policy::clone(policy)),
        }
    }
}
