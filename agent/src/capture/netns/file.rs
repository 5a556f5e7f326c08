//! A network namespace as a file: how it is told from others, and entered.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::capture::CaptureError;

/// Which namespace it is: device and inode of its file. The kernel may give the number again, but
/// not while somebody holds the namespace, as whoever has a socket in it does.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

impl NetnsId {
    /// The one that this thread is in; `thread` is a thread or process of the `/proc` at `proc`.
    ///
    /// # Errors
    /// It has ended (`ENOENT`, `ESRCH`), or we may not know (`EACCES`).
    pub(in crate::capture) fn of(proc: &Path, thread: u32) -> io::Result<Self> {
        fs::metadata(path(proc, thread)).map(|metadata| Self::from(&metadata))
    }

    /// As `lsns` and `/proc/PID/ns/net` show it.
    pub fn inode(self) -> u64 {
        self.inode
    }
}

impl From<&Metadata> for NetnsId {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// A network namespace, which exists as long as this does.
#[derive(Debug)]
pub struct Netns {
    file: File,
    id: NetnsId,
}

impl Netns {
    /// The one that the calling thread is in.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub fn own() -> Result<Self, CaptureError> {
        Self::open("/proc/thread-self/ns/net".as_ref())
    }

    /// The one that this thread or process is in.
    ///
    /// # Errors
    /// It has ended, or we may not know.
    pub fn of(thread: u32) -> Result<Self, CaptureError> {
        Self::open(&path("/proc".as_ref(), thread))
    }

    fn open(path: &Path) -> Result<Self, CaptureError> {
        let open = || {
            let file = File::open(path)?;
            let id = NetnsId::from(&file.metadata()?);
            Ok(Self { file, id })
        };
        open().map_err(|source| CaptureError::Netns {
            action: "find it",
            source,
        })
    }

    /// Which one it is.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `action` in the namespace, on a thread of its own that ends there. So nothing else can
    /// ever find itself in the wrong namespace, whatever `action` does.
    ///
    /// # Errors
    /// It cannot be entered, as without `CAP_SYS_ADMIN`, or `action` fails.
    pub(in crate::capture) fn within<T: Send>(
        &self,
        action: impl FnOnce() -> Result<T, CaptureError> + Send,
    ) -> Result<T, CaptureError> {
        let failed = |action| move |source| CaptureError::Netns { action, source };
        let run = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .map_err(io::Error::from)
                .map_err(failed("enter it"))?;
            action()
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new()
                .name("underpass-netns".to_owned())
                .spawn_scoped(scope, run)
                .map_err(failed("start a thread for it"))?;
            thread.join().unwrap_or_else(|_| {
                let source = io::Error::other("the thread in it panicked");
                Err(failed("finish there")(source))
            })
        })
    }
}

fn path(proc: &Path, thread: u32) -> PathBuf {
    proc.join(thread.to_string()).join("ns/net")
}
