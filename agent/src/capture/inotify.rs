//! inotify(7) on a runtime.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{self, AddWatchFlags, InitFlags, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;

use super::readable::readable;

/// An instance of inotify, whose events can be waited for.
#[derive(Debug)]
pub(crate) struct Inotify {
    inotify: inotify::Inotify,
    readable: AsyncFd<OwnedFd>,
}

impl Inotify {
    /// One that watches nothing yet. To be called on a runtime.
    ///
    /// # Errors
    /// There is no instance (`fs.inotify.max_user_instances`) or descriptor to be had.
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = inotify::Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let readable = readable(inotify.as_fd())?;
        Ok(Self { inotify, readable })
    }

    /// Has it told from now on when one of `events` happens to what is at `path`, or in it.
    ///
    /// # Errors
    /// As `inotify_add_watch(2)`; `ENOSPC` is the limit of watches (`fs.inotify.max_user_watches`).
    pub(crate) fn watch(
        &self,
        path: &Path,
        events: AddWatchFlags,
    ) -> Result<WatchDescriptor, Errno> {
        self.inotify.add_watch(path, events)
    }

    /// Waits until something has happened since it was last asked.
    ///
    /// # Errors
    /// As `epoll(7)`.
    pub(crate) async fn events(&self) -> io::Result<Vec<InotifyEvent>> {
        loop {
            let mut ready = self.readable.readable().await?;
            let events = self.pending()?;
            ready.clear_ready();
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }

    /// What has happened since it was last asked, perhaps nothing.
    ///
    /// # Errors
    /// As `inotify(7)`.
    pub(crate) fn pending(&self) -> Result<Vec<InotifyEvent>, Errno> {
        let mut all = Vec::new();
        loop {
            match self.inotify.read_events() {
                Ok(events) => all.extend(events),
                Err(Errno::EAGAIN) => return Ok(all),
                Err(errno) => return Err(errno),
            }
        }
    }
}
