//! Places whose changes are told.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::sys::inotify::{AddWatchFlags, InotifyEvent, WatchDescriptor};
use parking_lot::Mutex;
use tokio::time::sleep;

use super::POLL;
use super::places::Places;
use crate::capture::inotify::Inotify;

/// What can make another thing be at a path. A log beside policy tells nothing of this while it is
/// written, which would be an event a line; nor do we while we read.
const NAMES: AddWatchFlags = AddWatchFlags::IN_ATTRIB
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_MOVE_SELF);

/// What can make another thing be read.
const CONTENTS: AddWatchFlags = NAMES.union(AddWatchFlags::IN_MODIFY);

/// Does not take away what is watched already: one directory or file may be at several paths.
const BESIDES: AddWatchFlags = AddWatchFlags::from_bits_retain(libc::IN_MASK_ADD);

/// Watches places until it is dropped.
#[derive(Debug)]
pub(super) struct Watcher {
    places: Places,
    inotify: Inotify,
    watched: HashMap<WatchDescriptor, Watched>,
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    is_read: bool,
}

/// Files that were written to, and that the writer has not closed yet.
pub(super) type Writing = HashSet<PathBuf>;

/// Why there are no events.
#[derive(Debug, thiserror::Error)]
pub(super) enum WatchError {
    #[error(
        "cannot have an inotify instance, the limit of them or of open files is reached: raise it \
         with `sysctl fs.inotify.max_user_instances=N`"
    )]
    Instances,
    #[error("cannot watch {}: {source}", path.display())]
    Path { path: PathBuf, source: Errno },
    #[error("cannot use inotify: {0}")]
    Unusable(#[source] io::Error),
    #[error(
        "cannot watch {}: the limit of inotify watches is reached, raise it with \
         `sysctl fs.inotify.max_user_watches=N`",
        path.display()
    )]
    Watches { path: PathBuf },
}

impl Watcher {
    /// To be called on a runtime.
    pub(super) fn new(places: Places) -> Result<Self, WatchError> {
        let inotify =
            Inotify::new().map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EMFILE | Errno::ENFILE) => WatchError::Instances,
                _ => WatchError::Unusable(error),
            })?;
        let mut watched = HashMap::new();
        for (path, is_read) in places.to_watch() {
            let events = if is_read { CONTENTS } else { NAMES };
            match inotify.watch(path, events | BESIDES) {
                Ok(descriptor) => {
                    let path = path.to_owned();
                    let watched = watched.entry(descriptor);
                    watched.or_insert(Watched { path, is_read }).is_read |= is_read;
                }
                // It went meanwhile, which the look after this one sees.
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(errno) => return Err(WatchError::at(path, errno)),
            }
        }
        Ok(Self {
            places,
            inotify,
            watched,
        })
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    /// Waits until policy may be another. Whether a file is half written then.
    pub(super) async fn change(&self, writing: &Mutex<Writing>) -> bool {
        loop {
            let Ok(events) = self.inotify.events().await else {
                // Who knows; but not at once, as the next try may fail too.
                sleep(POLL).await;
                return false;
            };
            let mut writing = writing.lock();
            if self.note(events, &mut writing) {
                return !writing.is_empty();
            }
        }
    }

    /// Whether policy may be another after these.
    fn note(&self, events: Vec<InotifyEvent>, writing: &mut Writing) -> bool {
        let mut matter = false;
        for event in events {
            matter |= self.note_one(event, writing);
        }
        matter
    }

    fn note_one(&self, event: InotifyEvent, writing: &mut Writing) -> bool {
        // Of no place is only that some were lost (`IN_Q_OVERFLOW`).
        let Some(place) = self.watched.get(&event.wd) else {
            return true;
        };
        let path = match event.name {
            Some(name) if place.is_read || self.places.concern(&name) => place.path.join(name),
            Some(_) => return false,
            None => place.path.clone(),
        };
        let is = |kind| event.mask.intersects(kind);
        if is(AddWatchFlags::IN_MODIFY) || is(AddWatchFlags::IN_CREATE) && is_new_file(&path) {
            writing.insert(path);
        } else if !is(AddWatchFlags::IN_ATTRIB) {
            writing.remove(&path);
        }
        true
    }
}

impl WatchError {
    fn at(path: &Path, errno: Errno) -> Self {
        let path = path.to_owned();
        match errno {
            Errno::ENOSPC => Self::Watches { path },
            source => Self::Path { path, source },
        }
    }
}

/// Whether what was made there is a file that has to be written yet, rather than a link to one. To
/// ask does not block: what was just made is in the kernel's memory.
fn is_new_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1)
}

#[cfg(test)]
mod tests;
