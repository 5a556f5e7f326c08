//! Where documents come from.

mod file;

use std::fmt;
use std::path::PathBuf;

use super::compile::{Materials, Options, Policy};
use super::document::Documents;
use super::problem::Problem;
use crate::tls::SystemRoots;

/// Where documents are.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    /// Files and directories of documents. Of a directory every `*.yaml`, `*.yml` and `*.json` in
    /// it is read, in the order of names, not going deeper and leaving out names that begin with a
    /// dot.
    pub policy: Vec<PathBuf>,
    /// Directories of Secrets: each directory in them is one, with a file for each key, as
    /// Kubernetes mounts it.
    pub secrets: Vec<PathBuf>,
}

/// What came of reading a policy.
#[derive(Debug)]
pub struct Loaded {
    /// The policy, or everything that is wrong, with the files as with the documents.
    pub policy: Result<Policy, LoadError>,
    /// The files that the documents name: certificates and keys.
    pub files: Vec<PathBuf>,
}

/// Reads a policy, with the files that it names.
pub fn load(paths: &Paths, options: &Options) -> Loaded {
    let mut documents = Documents::default();
    file::read(&paths.policy, &mut documents);
    file::read_secrets(&paths.secrets, &mut documents);
    let files = documents.named_files();
    let materials = Materials {
        files: file::read_named(&files),
        roots: if documents.wants_system_roots() {
            SystemRoots::load()
        } else {
            SystemRoots::none()
        },
    };
    Loaded {
        policy: Policy::compile(&documents, &materials, options).map_err(LoadError),
        files: files.into_iter().collect(),
    }
}

/// Why there is no policy: at least one problem.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LoadError(Vec<Problem>);

impl LoadError {
    /// The problems, ordered by file and line.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl std::error::Error for LoadError {}

impl fmt::Display for LoadError {
    /// One line per problem.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the policy is not valid:")?;
        for problem in &self.0 {
            write!(f, "\n{problem}")?;
        }
        Ok(())
    }
}
