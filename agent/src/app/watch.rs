//! Tells when what is to be read at some paths may have changed.
//!
//! Changes come as events of inotify; where it is not to be had, time passes for a change. Either
//! way the reader has to look whether there is a difference ([`Fingerprint`]).

mod fingerprint;
mod places;
mod watcher;

use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout_at};

pub(super) use fingerprint::Fingerprint;
use places::Places;
use watcher::{WatchError, Watcher};

/// Nothing must happen for so long before a change is told: an editor or a copy takes several
/// steps.
const QUIET: Duration = Duration::from_millis(200);

/// A change is told after so long even if it does not become quiet.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two looks where there are no events.
const POLL: Duration = Duration::from_secs(5);

/// How often it is tried to watch places that change meanwhile.
const ATTEMPTS: usize = 5;

/// Files and directories, watched from [`renew`](Self::renew) on.
pub(super) struct Watch {
    paths: Vec<PathBuf>,
    state: State,
    /// [`Watcher::new`], but for tests.
    open: fn(Places) -> Result<Watcher, WatchError>,
}

enum State {
    /// Not yet; or they kept changing while it was tried.
    Unwatched,
    Watching(Watcher),
    Polling,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            paths: Vec::new(),
            state: State::Unwatched,
            open: Watcher::new,
        }
    }

    /// Sees to it that whatever changes at `paths` from now on is told by
    /// [`changed`](Self::changed); to be called on a runtime, before what is there is read. It
    /// blocks for some system calls.
    pub(super) fn renew(&mut self, paths: Vec<PathBuf>) {
        self.paths = paths;
        for _ in 0..ATTEMPTS {
            let places = Places::on_the_way_to(&self.paths);
            if matches!(&self.state, State::Watching(watcher) if *watcher.places() == places) {
                return;
            }
            match (self.open)(places) {
                // The places may have changed while nobody watched those that are new: look again.
                Ok(watcher) => {
                    if matches!(self.state, State::Polling) {
                        tracing::info!("policy is watched again");
                    }
                    self.state = State::Watching(watcher);
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
        self.state = State::Unwatched;
    }

    /// Waits until something may have changed since [`renew`](Self::renew), and then until it is
    /// quiet and no file is half written, but not for ever. A caller that gives up waiting has to
    /// look for itself.
    pub(super) async fn changed(&mut self) {
        match &self.state {
            State::Unwatched => sleep(PATIENCE).await,
            State::Polling => sleep(POLL).await,
            State::Watching(watcher) => {
                let writing = Mutex::default();
                settled(|| watcher.change(&writing)).await;
            }
        }
    }
}

/// Waits for a change to come and settle. `change` waits for one, and says whether a file is half
/// written after it.
async fn settled<F: Future<Output = bool>>(mut change: impl FnMut() -> F) {
    let mut is_half_written = change().await;
    let patience = Instant::now() + PATIENCE;
    loop {
        let quiet = if is_half_written {
            // Some writers never close.
            patience
        } else {
            patience.min(Instant::now() + QUIET)
        };
        match timeout_at(quiet, change()).await {
            Ok(half_written) if Instant::now() < patience => is_half_written = half_written,
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests;
