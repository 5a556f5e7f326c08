//! The files that say how to resolve, followed as they change.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::name::HostName;

/// What a file says, read again when the file is another or has changed. Looking costs one
/// `stat`, so every lookup looks.
pub(super) struct Watched<T> {
    path: PathBuf,
    state: Mutex<Option<State<T>>>,
}

struct State<T> {
    stamp: Option<Stamp>,
    value: Arc<T>,
}

/// Tells one content of a file from the next.
#[derive(Clone, Copy, Eq, PartialEq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<Metadata> for Stamp {
    fn from(meta: Metadata) -> Self {
        Self {
            file: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl<T> Watched<T> {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            state: Mutex::new(None),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the file says now. When it has a new content, `read` makes a value of that and of
    /// the value so far.
    pub(super) fn current(
        &self,
        read: impl FnOnce(io::Result<Vec<u8>>, Option<Arc<T>>) -> Arc<T>,
    ) -> Arc<T> {
        let mut state = self.state.lock();
        // Looked at before it is read: a change in between is seen the next time.
        let stamp = fs::metadata(&self.path).ok().map(Stamp::from);
        let before = match state.take() {
            Some(same) if same.stamp == stamp => {
                return Arc::clone(&state.insert(same).value);
            }
            other => other.map(|old| old.value),
        };
        let value = read(fs::read(&self.path), before);
        Arc::clone(&state.insert(State { stamp, value }).value)
    }
}

/// The content of `/etc/hosts`.
#[derive(Default)]
pub(super) struct Hosts(HashMap<HostName, Vec<IpAddr>>);

impl Hosts {
    /// Reads lines of `address name…`; what is neither is passed over, as hosts(5) readers do.
    pub(super) fn parse(text: &[u8]) -> Self {
        let mut names: HashMap<HostName, Vec<IpAddr>> = HashMap::new();
        for line in String::from_utf8_lossy(text).lines() {
            let line = line.split('#').next().unwrap_or(line);
            let mut words = line.split_whitespace();
            let Some(Ok(addr)) = words.next().map(str::parse::<IpAddr>) else {
                continue;
            };
            for name in words.filter_map(|word| word.parse().ok()) {
                names.entry(name).or_default().push(addr);
            }
        }
        Self(names)
    }

    pub(super) fn addresses(&self, name: &HostName) -> Vec<IpAddr> {
        self.0.get(name).cloned().unwrap_or_default()
    }
}
