//! Where policy comes from, so that it can come from there again.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::watch::Fingerprint;
use crate::kubernetes::Feed;
use crate::policy::{self, LoadError, Options, Paths, Policy, Problem, Sources};

/// How often policy is read at most until the files that it names stay the same.
const ATTEMPTS: usize = 3;

/// A place to load policy from. Clones share what they know of it.
#[derive(Clone, Debug)]
pub struct PolicySource(Place);

#[derive(Clone, Debug)]
enum Place {
    Files {
        paths: Paths,
        options: Options,
        known: Arc<Mutex<Known>>,
        /// Objects of a cluster besides.
        feed: Option<Arc<Feed>>,
    },
    Fixed(Box<Policy>),
}

/// What is known of policy since it was last read.
#[derive(Debug, Default)]
struct Known {
    /// What the policy in force was made of.
    last: Option<Sources>,
    /// The files that they name.
    files: Vec<PathBuf>,
}

/// A policy as it was read, or why there is none.
pub(super) struct Read {
    /// Of what it was made.
    pub(super) fingerprint: Fingerprint,
    pub(super) policy: Result<Policy, LoadError>,
    /// What is wrong with documents of which the policy has an older version.
    pub(super) rejected: Vec<Problem>,
}

impl PolicySource {
    /// Files, and directories of them.
    pub fn files(paths: Paths, options: Options) -> Self {
        let known = Arc::default();
        Self(Place::Files {
            paths,
            options,
            known,
            feed: None,
        })
    }

    /// Adds the documents of a cluster. What was read before is forgotten.
    pub(super) fn add(&mut self, cluster: Arc<Feed>) {
        if let Place::Files { known, feed, .. } = &mut self.0 {
            *known = Arc::default();
            *feed = Some(cluster);
        }
    }

    /// A policy that never changes.
    pub fn fixed(policy: Policy) -> Self {
        Self(Place::Fixed(Box::new(policy)))
    }

    /// The files and directories whose contents make the policy, as far as they are known: what
    /// documents name is known once they were read.
    pub fn watched_paths(&self) -> Vec<PathBuf> {
        let Place::Files { paths, known, .. } = &self.0 else {
            return Vec::new();
        };
        let mut watched = paths.policy.clone();
        for directory in &paths.secrets {
            watched.push(directory.clone());
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            let mut secrets: Vec<_> = entries
                .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
                .map(|entry| entry.path())
                .filter(|path| path.is_dir())
                .collect();
            secrets.sort();
            watched.extend(secrets);
        }
        watched.extend_from_slice(&known.lock().files);
        watched
    }

    /// Loads it. Before anything is read, `watch` is told where it is.
    pub(super) fn read(&self, mut watch: impl FnMut(Vec<PathBuf>)) -> Read {
        let mut paths = self.watched_paths();
        let mut attempt = 1;
        loop {
            watch(paths.clone());
            let fingerprint = Fingerprint::of(&paths);
            let (policy, rejected) = self.load();
            // What the documents name was perhaps not among the paths.
            let now = self.watched_paths();
            if now == paths || attempt == ATTEMPTS {
                return Read {
                    fingerprint,
                    policy,
                    rejected,
                };
            }
            paths = now;
            attempt += 1;
        }
    }

    /// The policy, and what is wrong with documents of which it has an older version.
    pub(crate) fn load(&self) -> (Result<Policy, LoadError>, Vec<Problem>) {
        match &self.0 {
            Place::Files {
                paths,
                options,
                known,
                feed,
            } => {
                let mut known = known.lock();
                let last = known.last.as_ref();
                let loaded = match feed {
                    None => policy::load(paths, options, last),
                    Some(feed) => policy::load_cluster(feed.documents(), paths, options, last),
                };
                let files = loaded.sources.files().paths();
                known.files = files.map(PathBuf::from).collect();
                if loaded.policy.is_ok() {
                    known.last = Some(loaded.sources);
                }
                (loaded.policy, loaded.rejected)
            }
            Place::Fixed(policy) => (Ok(Policy::clone(policy)), Vec::new()),
        }
    }
}
