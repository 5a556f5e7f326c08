//! Namespaces that a workload connects from before they are enrolled, as the programs tell.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;
use underpass_abi::map;

use super::CaptureError;
use super::object::Object;
use super::readable::readable;

/// Inode of the initial pid namespace, `PROC_PID_INIT_INO` of the kernel.
const INITIAL: u64 = 0xEFFF_FFFC;

/// How many threads are taken at a time; a namespace has more than one chance.
const AT_A_TIME: usize = 64;

/// The threads that were met in a namespace without our listeners.
pub struct Newcomers {
    ring: RingBuf<MapData>,
    /// The same buffer, to wait for it.
    ready: AsyncFd<OwnedFd>,
    /// Whether the programs' thread ids are also ours.
    same_ids: bool,
}

impl Newcomers {
    /// To be called on a runtime.
    pub(super) fn new(object: &mut Object) -> Result<Self, CaptureError> {
        let ring: RingBuf<MapData> = object.map(map::NEWCOMERS)?;
        let ready = readable(ring.as_fd()).map_err(|source| CaptureError::Netns {
            action: "wait for the programs to meet new ones",
            source,
        })?;
        Ok(Self {
            ring,
            ready,
            same_ids: fs::metadata("/proc/self/ns/pid").is_ok_and(|file| file.ino() == INITIAL),
        })
    }

    /// Waits until there are some. Their ids, which are none of ours where the agent is in a pid
    /// namespace of its own: then there are none, and one has to look everywhere.
    ///
    /// # Errors
    /// As `epoll(7)`.
    pub async fn arrived(&mut self) -> io::Result<Vec<u32>> {
        let mut ready = self.ready.readable().await?;
        let mut threads = Vec::new();
        while let Some(item) = self.ring.next() {
            let Ok(thread) = <[u8; 4]>::try_from(&*item) else {
                continue;
            };
            let thread = u32::from_ne_bytes(thread);
            if threads.len() < AT_A_TIME && !threads.contains(&thread) {
                threads.push(thread);
            }
        }
        ready.clear_ready();
        if !self.same_ids {
            threads.clear();
        }
        Ok(threads)
    }
}
