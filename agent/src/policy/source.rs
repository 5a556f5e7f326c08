//! Where documents come from.

mod cluster;
mod file;

use std::fmt;
use std::path::PathBuf;

use super::api::metadata::Namespace;
use super::compile::{Materials, Options, Policy, Tenancy};
use super::document::Documents;
use super::named_files::NamedFiles;
use super::problem::Problem;
use crate::tls::SystemRoots;

pub use cluster::{ClusterDocuments, ClusterKind, ClusterObjects, ObjectKey, References};

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
    pub sources: Sources,
}

/// Documents, and the files that they name.
#[derive(Debug, Default)]
pub struct Sources {
    documents: Documents,
    files: NamedFiles,
}

/// Reads a policy, with the files that it names. Where documents are bad, and with their `last` good
/// version the policy is right, it is made with these.
pub fn load(paths: &Paths, options: &Options, last: Option<&Sources>) -> Loaded {
    load_onto(Documents::default(), paths, options, last)
}

/// The same, with objects of a cluster besides. Many hands write these, and a bad one must not stop
/// a node: what is bad and has no good version is left out.
pub fn load_cluster(
    documents: ClusterDocuments,
    paths: &Paths,
    options: &Options,
    last: Option<&Sources>,
) -> Loaded {
    let nothing = Sources::default();
    let mut loaded = load_onto(documents.0, paths, options, Some(last.unwrap_or(&nothing)));
    if last.is_none()
        && let Err(LoadError(problems)) = &loaded.policy
    {
        // Not one is good.
        loaded.rejected.clone_from(problems);
        loaded.sources = nothing;
        loaded.policy = loaded.sources.compile(options).map_err(LoadError);
    }
    loaded
}

fn load_onto(
    documents: Documents,
    paths: &Paths,
    options: &Options,
    last: Option<&Sources>,
) -> Loaded {
    let mut sources = Sources {
        documents,
        files: NamedFiles::default(),
    };
    file::read(&paths.policy, &mut sources.documents);
    file::read_secrets(&paths.secrets, &mut sources.documents);
    let mut policy = sources.compile(options);
    let mut rejected = Vec::new();
    if let Some(last) = last {
        policy = policy.or_else(|problems| {
            rejected = problems;
            let kept = sources.fall_back(&mut rejected, last, options);
            kept.ok_or_else(|| std::mem::take(&mut rejected))
        });
    }
    Loaded {
        policy: policy.map_err(LoadError),
        rejected,
        sources,
    }
}

impl Sources {
    /// The files that documents name: certificates and keys.
    pub fn files(&self) -> &NamedFiles {
        &self.files
    }

    /// Makes a policy with the last good version of the documents that are `rejected`. What is
    /// wrong with documents together shows only when none is bad by itself, so more may be rejected.
    /// `None`: the rest does not go with what would be kept, or there is no rest.
    fn fall_back(
        &mut self,
        rejected: &mut Vec<Problem>,
        last: &Self,
        options: &Options,
    ) -> Option<Policy> {
        let mut held = false;
        loop {
            self.documents.keep_last_good(rejected, &last.documents);
            if !self.documents.has_news(&last.documents) {
                return None;
            }
            let problems = match self.compile(options) {
                Ok(policy) => return Some(policy),
                Err(problems) => problems,
            };
            let known =
                |problem: &Problem| rejected.iter().any(|old| old.about() == problem.about());
            let (_, new): (Vec<_>, Vec<_>) = problems.into_iter().partition(known);
            if new.is_empty() {
                // What was good is not any more, so it is about what it refers to.
                if held {
                    return None;
                }
                self.documents.hold(&last.documents);
                self.files.hold(&last.files);
                held = true;
            }
            rejected.extend(new);
            rejected.sort();
        }
    }

    fn compile(&mut self, options: &Options) -> Result<Policy, Vec<Problem>> {
        let tenancy = Tenancy::new(options.root_namespace.as_ref());
        let may = |namespace: Option<&Namespace>| tenancy.refuse_file(namespace).is_ok();
        for path in self.documents.named_files(may) {
            self.files.look_at(path, file::read_named);
        }
        let materials = Materials {
            files: std::mem::take(&mut self.files),
            roots: if self.documents.wants_system_roots() {
                SystemRoots::load()
            } else {
                SystemRoots::none()
            },
        };
        let policy = Policy::compile(&self.documents, &materials, options);
        self.files = materials.files;
        policy
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
