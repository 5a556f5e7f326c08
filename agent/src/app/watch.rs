//! Tells when what is to be read at some paths may have changed.
//!
//! Changes come as events of inotify; where it is not to be had, time passes for a change. Either
//! way the reader has to look whether there is a difference ([`Fingerprint`]).

mod fingerprint;
mod places;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Config, ErrorKind, Event, EventKind, INotifyWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

pub(super) use fingerprint::Fingerprint;
use places::Places;

/// Nothing must happen for so long before a change is told: an editor or a copy takes several
/// steps.
const QUIET: Duration = Duration::from_millis(200);

/// A change is told after so long even if it does not become quiet.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two looks where there are no events.
const POLL: Duration = Duration::from_secs(5);

/// How often it is tried to watch places that change meanwhile; then the next event must do.
const ATTEMPTS: usize = 5;

/// Files and directories, watched from [`renew`](Self::renew) on.
pub(super) struct Watch {
    paths: Vec<PathBuf>,
    events: Arc<Events>,
    state: State,
    open: Open,
}

/// What comes from the thread of inotify.
#[derive(Debug, Default)]
struct Events {
    came: Notify,
    /// Files that were written to, and that the writer has not closed yet.
    writing: Mutex<HashSet<PathBuf>>,
}

/// Has events of these places come in: [`open`], but for tests.
type Open = fn(&Places, Arc<Events>) -> Result<INotifyWatcher, WatchError>;

enum State {
    New,
    Watching {
        places: Places,
        /// Its end is that of the events.
        _watcher: INotifyWatcher,
    },
    Polling,
}

/// Why there are no events.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(
        "cannot watch {}: the limit of inotify watches is reached, raise it with \
         `sysctl fs.inotify.max_user_watches=N`",
        path.display()
    )]
    Watches { path: PathBuf },
    #[error(
        "cannot have an inotify instance, the limit of them or of open files is reached: raise it \
         with `sysctl fs.inotify.max_user_instances=N`"
    )]
    Instances,
    #[error("cannot watch {}: {source}", path.display())]
    Path {
        path: PathBuf,
        source: notify::Error,
    },
    #[error("cannot use inotify: {0}")]
    Unusable(#[source] notify::Error),
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            paths: Vec::new(),
            events: Arc::default(),
            state: State::New,
            open,
        }
    }

    /// Sees to it that whatever changes at `paths` from now on is told by
    /// [`changed`](Self::changed); to be called before what is there is read. It blocks for some
    /// system calls.
    pub(super) fn renew(&mut self, paths: Vec<PathBuf>) {
        self.paths = paths;
        for _ in 0..ATTEMPTS {
            let places = Places::on_the_way_to(&self.paths);
            if matches!(&self.state, State::Watching { places: known, .. } if *known == places) {
                return;
            }
            match (self.open)(&places, Arc::clone(&self.events)) {
                // What was there before is given up only now. And the places may have changed
                // while nobody watched those that are new: look again.
                Ok(watcher) => {
                    if matches!(self.state, State::Polling) {
                        tracing::info!("policy is watched again");
                    }
                    self.state = State::Watching {
                        places,
                        _watcher: watcher,
                    };
                }
                Err(error) => {
                    if !matches!(self.state, State::Polling) {
                        tracing::error!(
                            %error,
                            "changes of policy are not told, looking every {} s instead",
                            POLL.as_secs()
                        );
                    }
                    self.state = State::Polling;
                    return;
                }
            }
        }
        self.events.came.notify_one();
    }

    /// Waits until something may have changed since [`renew`](Self::renew), and then until it is
    /// quiet and no file is half written, but not for ever. A caller that gives up waiting has to
    /// look for itself.
    pub(super) async fn changed(&mut self) {
        if matches!(self.state, State::Polling) {
            sleep(POLL).await;
            return;
        }
        self.events.came.notified().await;
        let patience = Instant::now() + PATIENCE;
        loop {
            let quiet = if self.events.writing.lock().is_empty() {
                patience.min(Instant::now() + QUIET)
            } else {
                patience
            };
            let more = timeout_at(quiet, self.events.came.notified()).await;
            if more.is_err() || Instant::now() >= patience {
                // Some writers never close.
                self.events.writing.lock().clear();
                return;
            }
        }
    }
}

impl Events {
    fn take(&self, event: notify::Result<Event>, places: &Places) {
        // An error may have cost us events.
        if let Ok(event) = event {
            if !matters(&event, places) {
                return;
            }
            let mut writing = self.writing.lock();
            match event.kind {
                EventKind::Modify(ModifyKind::Data(_)) => writing.extend(event.paths),
                EventKind::Access(_) | EventKind::Remove(_) => {
                    for path in event.paths {
                        writing.remove(&path);
                    }
                }
                _ => {}
            }
        }
        self.came.notify_one();
    }
}

fn open(places: &Places, events: Arc<Events>) -> Result<INotifyWatcher, WatchError> {
    let relevant = places.clone();
    let handler = move |event| events.take(event, &relevant);
    let mut watcher =
        INotifyWatcher::new(handler, Config::default()).map_err(|error| match errno(&error) {
            Some(Errno::EMFILE | Errno::ENFILE) => WatchError::Instances,
            _ => WatchError::Unusable(error),
        })?;
    for path in places.to_watch() {
        let watched = watcher.watch(path, RecursiveMode::NonRecursive);
        match watched.map_err(|error| (errno(&error), error)) {
            Ok(())
            // It went meanwhile, which the look after this one sees.
            | Err((Some(Errno::ENOENT | Errno::ENOTDIR), _)) => {}
            Err((Some(Errno::ENOSPC), _)) => {
                return Err(WatchError::Watches {
                    path: path.to_owned(),
                });
            }
            Err((_, source)) => {
                return Err(WatchError::Path {
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
    Ok(watcher)
}

/// Whether policy may be another after this. That somebody opens or reads a file, as we do, does
/// not count.
fn matters(event: &Event, places: &Places) -> bool {
    let is_change = match event.kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    };
    is_change && (event.paths.is_empty() || event.paths.iter().any(|path| places.concern(path)))
}

/// What the system said, where it did.
fn errno(error: &notify::Error) -> Option<Errno> {
    match &error.kind {
        ErrorKind::Io(error) => error.raw_os_error().map(Errno::from_raw),
        ErrorKind::PathNotFound => Some(Errno::ENOENT),
        ErrorKind::MaxFilesWatch => Some(Errno::ENOSPC),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
