//! Telling what belongs to a living agent from what a dead one left.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use nix::time::{ClockId, clock_gettime};

/// A word for a name that no other agent of this machine gives: two would have to ask in the same
/// nanosecond. Process ids are no such thing, for agents in containers often have the same.
pub(super) fn unique() -> io::Result<String> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    Ok(format!("{}{:09}", now.tv_sec(), now.tv_nsec()))
}

/// A directory held by this process: a lock that the kernel lets go when the process ends, however
/// it ends. Unlike a process id it means the same in every pid namespace, and is never used again.
#[derive(Debug)]
pub(super) struct Claim {
    _directory: File,
}

impl Claim {
    /// Claims the directory at `path`; `None` if a living process has it.
    pub(super) fn take(path: &Path) -> io::Result<Option<Self>> {
        let directory = File::open(path)?;
        match directory.try_lock() {
            Ok(()) => Ok(Some(Self {
                _directory: directory,
            })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder() {
        let directory = tempfile::tempdir().unwrap();
        let first = Claim::take(directory.path()).unwrap();
        assert!(first.is_some());
        assert!(Claim::take(directory.path()).unwrap().is_none());
        drop(first);
        assert!(Claim::take(directory.path()).unwrap().is_some());
    }
}
