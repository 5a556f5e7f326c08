//! Where policy comes from, so that it can come from there again.

use std::path::PathBuf;

use crate::policy::{self, LoadError, Options, Policy};

/// A place to load policy from.
#[derive(Clone, Debug)]
pub struct PolicySource(Place);

#[derive(Clone, Debug)]
enum Place {
    Files(policy::Paths, Options),
    Fixed(Box<Policy>),
}

impl PolicySource {
    /// Files, and directories of them.
    pub fn files(paths: Vec<PathBuf>, options: Options) -> Self {
        let paths = policy::Paths {
            policy: paths,
            secrets: Vec::new(),
        };
        Self(Place::Files(paths, options))
    }

    /// A policy that never changes.
    pub fn fixed(policy: Policy) -> Self {
        Self(Place::Fixed(Box::new(policy)))
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
