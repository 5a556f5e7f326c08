//! Where documents come from.

mod file;

use std::fmt;
use std::path::PathBuf;

use super::compile::{Options, Policy};
use super::document::Documents;
use super::problem::Problem;

/// Reads a policy from files and directories. Of a directory every `*.yaml`, `*.yml` and `*.json`
/// in it is read, in the order of names, not going deeper and leaving out names that begin with a
/// dot.
///
/// # Errors
/// Everything that is wrong, with the files as with the documents.
pub fn load(paths: &[PathBuf], options: &Options) -> Result<Policy, LoadError> {
    let mut documents = Documents::default();
    file::read(paths, &mut documents);
    Policy::compile(&documents, options).map_err(LoadError)
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
