//! Where documents come from.

mod file;

use std::collections::BTreeSet;
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
    /// What is wrong with documents for which the policy has their last good version.
    pub rejected: Vec<Problem>,
    /// What the policy was made of, to fall back on the next time.
    pub documents: Documents,
    /// The files that the documents name: certificates and keys.
    pub files: Vec<PathBuf>,
}

/// Reads a policy, with the files that it names. Where documents are bad, and with their `last` good
/// version the policy is right, it is made with these.
pub fn load(paths: &Paths, options: &Options, last: Option<&Documents>) -> Loaded {
    let mut documents = Documents::default();
    file::read(&paths.policy, &mut documents);
    file::read_secrets(&paths.secrets, &mut documents);
    let mut files = documents.named_files();
    let mut policy = compile(&documents, &files, options);
    let mut rejected = Vec::new();
    if let Some(last) = last {
        policy = policy.or_else(|problems| {
            rejected = problems;
            let kept = fall_back(&mut documents, &mut files, &mut rejected, last, options);
            kept.ok_or_else(|| std::mem::take(&mut rejected))
        });
    }
    Loaded {
        policy: policy.map_err(LoadError),
        rejected,
        documents,
        files: files.into_iter().collect(),
    }
}

/// Makes a policy of `documents` with the last good version of those that are `rejected`. What is
/// wrong with documents together shows only when none is bad by itself, so more may be rejected; and
/// what one of the last refers to may be gone, and is brought back then. `None`: the rest does not go
/// with what would be kept, or there is no rest.
fn fall_back(
    documents: &mut Documents,
    files: &mut BTreeSet<PathBuf>,
    rejected: &mut Vec<Problem>,
    last: &Documents,
    options: &Options,
) -> Option<Policy> {
    let mut brought_back = false;
    loop {
        documents.keep_last_good(rejected, last);
        if !documents.has_news(last) {
            return None;
        }
        files.extend(documents.named_files());
        let problems = match compile(documents, files, options) {
            Ok(policy) => return Some(policy),
            Err(problems) => problems,
        };
        let known = |problem: &Problem| rejected.iter().any(|old| old.about() == problem.about());
        let (_, new): (Vec<_>, Vec<_>) = problems.into_iter().partition(known);
        if new.is_empty() {
            if brought_back {
                return None;
            }
            documents.bring_back(last);
            brought_back = true;
        }
        rejected.extend(new);
        rejected.sort();
    }
}

fn compile(
    documents: &Documents,
    files: &BTreeSet<PathBuf>,
    options: &Options,
) -> Result<Policy, Vec<Problem>> {
    let materials = Materials {
        files: file::read_named(files),
        roots: if documents.wants_system_roots() {
            SystemRoots::load()
        } else {
            SystemRoots::none()
        },
    };
    Policy::compile(documents, &materials, options)
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
