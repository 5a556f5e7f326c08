//! Where a change can make something else be read at a path.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{self, Component, Path, PathBuf};

/// More symbolic links than the kernel follows (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// More of them in one directory are not followed each by itself: in a mounted ConfigMap or Secret
/// they all lead the same way.
const MAX_LINKS_OF_DIRECTORY: usize = 256;

/// Every directory on the way to some paths, through symbolic links, and what matters in it. So it
/// is seen when a directory, or one above it, is replaced, goes, or comes; when a link such as the
/// `..data` of a mounted ConfigMap is turned round; and when a file is replaced by one of its name.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Places {
    /// What to watch, by physical path, with what is there now: the same path may come to mean
    /// another directory.
    watched: BTreeMap<PathBuf, Identity>,
    /// Names that matter wherever they are.
    names: BTreeSet<OsString>,
    /// What is read: files, and directories in which every name matters.
    read: BTreeSet<PathBuf>,
}

/// Device and inode number.
type Identity = (u64, u64);

impl Places {
    pub(super) fn on_the_way_to(paths: &[PathBuf]) -> Self {
        let mut places = Self::default();
        for path in paths {
            if let Some(directory) = places.follow(path) {
                places.all_of(&directory);
            }
        }
        places
    }

    /// What to watch, and whether it is read. A file is watched besides its directory, since the
    /// directory does not tell of changes that are made through another path, as of a file mounted
    /// into a container.
    pub(super) fn to_watch(&self) -> impl Iterator<Item = (&Path, bool)> {
        let paths = self.watched.keys();
        paths.map(|path| (path.as_path(), self.read.contains(path)))
    }

    /// Whether a change of this name matters in every directory.
    pub(super) fn concern(&self, name: &OsStr) -> bool {
        self.names.contains(name)
    }

    /// Adds the way to `path`, as far as there is one. The physical path if it is a directory.
    fn follow(&mut self, path: &Path) -> Option<PathBuf> {
        // That fails for an empty path only.
        let path = path::absolute(path).ok()?;
        let mut links = 0;
        let mut ahead = components(&path);
        let mut at = PathBuf::from("/");
        self.watch(&at, &fs::symlink_metadata(&at).ok()?);
        while let Some(name) = ahead.pop() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&name);
            self.names.insert(name);
            let metadata = fs::symlink_metadata(&next).ok()?;
            if metadata.is_symlink() {
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                let target = fs::read_link(&next).ok()?;
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                ahead.extend(components(&target));
            } else {
                self.watch(&next, &metadata);
                if !metadata.is_dir() {
                    self.read.insert(next);
                    return None;
                }
                at = next;
            }
        }
        Some(at)
    }

    /// Adds all that is in a directory, and the ways of the links in it.
    fn all_of(&mut self, directory: &Path) {
        self.read.insert(directory.to_owned());
        let Ok(entries) = fs::read_dir(directory) else {
            return;
        };
        let links = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
        for link in links.take(MAX_LINKS_OF_DIRECTORY) {
            self.follow(&link.path());
        }
    }

    fn watch(&mut self, path: &Path, metadata: &Metadata) {
        let identity = (metadata.dev(), metadata.ino());
        self.watched.insert(path.to_owned(), identity);
    }
}

/// The names of a path, the last one first.
fn components(path: &Path) -> Vec<OsString> {
    let names = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::Prefix(_) | Component::RootDir => None,
    });
    names.collect()
}
