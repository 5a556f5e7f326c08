//! Waiting for what the kernel writes, by descriptor.

#![expect(unsafe_code, reason = "tokio wants a promise about the descriptor")]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The same as `descriptor`, to wait until there is something to read. To be called on a runtime.
///
/// # Errors
/// There is no descriptor to be had, or it cannot be waited for.
pub(super) fn readable(descriptor: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    let same = descriptor.try_clone_to_owned()?;
    // SAFETY: an `OwnedFd` keeps its descriptor open for its whole life, and always gives the same.
    let ready = unsafe { AsyncFd::register_with_interest(same, Interest::READABLE) };
    ready.map_err(io::Error::from)
}
