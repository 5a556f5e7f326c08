//! Every cgroup there is, by id.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Cgroups that are looked at; a node with thousands of pods has fewer. Those further up come
/// first.
const MAX_CGROUPS: usize = 65_536;

/// What one walk through the hierarchy has found.
#[derive(Debug)]
pub(super) struct Walk {
    began: Instant,
    found: HashMap<u64, PathBuf>,
}

impl Walk {
    /// Walks through the hierarchy below `root`.
    pub(super) fn through(root: &Path) -> Self {
        let began = Instant::now();
        let mut found = HashMap::new();
        if let Ok(metadata) = fs::metadata(root) {
            found.insert(metadata.ino(), root.to_owned());
        }
        let mut ahead = VecDeque::from([root.to_owned()]);
        while let Some(directory) = ahead.pop_front() {
            // One that is gone meanwhile has nothing in it.
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            for entry in entries {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                if found.len() == MAX_CGROUPS {
                    return Self { began, found };
                }
                found.insert(entry.ino(), entry.path());
                ahead.push_back(entry.path());
            }
        }
        Self { began, found }
    }

    /// When it began: what was there then, and still was when it came by, is found.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// The cgroups that are meant, with their ids; of those in one another the outermost.
    pub(super) fn outermost(self, is_meant: impl Fn(&Path) -> bool) -> Vec<(PathBuf, u64)> {
        let found = self.found.into_iter().map(|(id, path)| (path, id));
        let mut found: Vec<_> = found.filter(|(path, _)| is_meant(path)).collect();
        // Each stands right before those below it.
        found.sort();
        found.dedup_by(|(path, _), (above, _)| path.starts_with(above));
        found
    }

    /// The directory of the cgroup with this id.
    pub(super) fn directory(&self, cgroup_id: u64) -> Option<&Path> {
        self.found.get(&cgroup_id).map(PathBuf::as_path)
    }
}
