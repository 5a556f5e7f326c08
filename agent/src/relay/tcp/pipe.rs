//! A pipe through which the kernel moves bytes from one socket to another, without a copy.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::net::TcpStream;

/// A pipe, and how much is in it. While something is, it belongs to a direction of a relay; of
/// empty ones each thread keeps one for whoever is next.
#[derive(Debug)]
pub(super) struct Pipe {
    from: OwnedFd,
    into: OwnedFd,
    len: usize,
    _place: Place,
}

/// What came of filling a pipe.
#[derive(Debug)]
pub(super) enum Filled {
    /// The kernel does not do this here.
    Never,
    /// Nothing. Why (no bytes yet, their end, or that the next one is marked as urgent, which
    /// splice(2) does not pass) is for a read to tell.
    Nothing,
    Some(usize),
}

impl Pipe {
    /// An empty one, if there may be one more.
    pub(super) fn take() -> Option<Self> {
        SPARE.take().or_else(|| Self::new(PLACES.take()?))
    }

    /// Keeps it for whoever takes one on this thread next. To be called when it is empty.
    pub(super) fn give_back(self) {
        debug_assert!(self.is_empty());
        SPARE.set(Some(self));
    }

    fn new(place: Place) -> Option<Self> {
        let (from, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        // Refused where pipes of this user hold too much already; a small one would be no gain.
        fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE as i32)).ok()?;
        Some(Self {
            from,
            into,
            len: 0,
            _place: place,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes in what `socket` has, as far as there is room.
    ///
    /// # Errors
    /// Those of the socket, each of which it tells once.
    pub(super) fn fill(&mut self, socket: &TcpStream) -> io::Result<Filled> {
        let room = PIPE_SIZE - self.len;
        match splice(socket, None, &self.into, None, room, flags()) {
            Ok(0) | Err(Errno::EAGAIN) => Ok(Filled::Nothing),
            Ok(len) => {
                self.len += len;
                Ok(Filled::Some(len))
            }
            // None of these is ever the error of a TCP connection.
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EPERM) => Ok(Filled::Never),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives `socket` what it takes. To be called when there is something.
    ///
    /// # Errors
    /// Those of the socket.
    pub(super) fn drain(&mut self, socket: &TcpStream) -> io::Result<usize> {
        match splice(&self.from, None, socket, None, self.len, flags())? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            len => {
                self.len -= len;
                Ok(len)
            }
        }
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

/// How many pipes there are, and may be.
#[derive(Debug)]
struct Places {
    most: usize,
    taken: AtomicUsize,
}

impl Places {
    const fn new(most: usize) -> Self {
        let taken = AtomicUsize::new(0);
        Self { most, taken }
    }

    fn take(&'static self) -> Option<Place> {
        let more = |taken| (taken < self.most).then_some(taken + 1);
        let taken = self
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then(|| Place(self))
    }
}

/// That of one pipe.
#[derive(Debug)]
struct Place(&'static Places);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How much a pipe holds: more gains nothing.
const PIPE_SIZE: usize = 512 * 1024;

/// A quarter of what all pipes of a user without privileges may hold (`pipe-user-pages-soft` of
/// proc(5): 64 MiB), which for root is not ours alone; and few enough descriptors not to be counted.
static PLACES: Places = Places::new(32);

thread_local! {
    static SPARE: Cell<Option<Pipe>> = const { Cell::new(None) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_than_there_may_be() {
        static TWO: Places = Places::new(2);
        let first = TWO.take().and_then(Pipe::new).unwrap();
        let second = TWO.take().unwrap();
        assert!(TWO.take().is_none());
        drop(first);
        let third = TWO.take().unwrap();
        assert!(TWO.take().is_none());
        drop((second, third));
        assert_eq!(TWO.taken.load(Ordering::Relaxed), 0);
    }
}
