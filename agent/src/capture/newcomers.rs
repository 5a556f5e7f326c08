//! Namespaces that a workload connects from before they are enrolled, as the programs tell.

#![expect(
    unsafe_code,
    reason = "tokio wants a promise about the ring buffer's descriptor"
)]

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use underpass_abi::map;

use super::CaptureError;
use super::object::Object;

/// Inode of the initial pid namespace, `PROC_PID_INIT_INO` of the kernel.
const INITIAL: u64 = 0xEFFF_FFFC;

/// How many threads are taken at a time; a namespace has more than one chance.
const AT_A_TIME: usize = 64;

/// The threads that were met in a namespace without our listeners.
pub struct Newcomers {
    ring: AsyncFd<RingBuf<MapData>>,
    /// Whether the programs' thread ids are also ours.
    same_ids: bool,
}

impl Newcomers {
    /// To be called on a runtime.
    pub(super) fn new(object: &mut Object) -> Result<Self, CaptureError> {
        let ring: RingBuf<MapData> = object.map(map::NEWCOMERS)?;
        // SAFETY: the ring owns its descriptor, keeps it open for its whole life, and always gives
        // the same one.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        Ok(Self {
            ring: ring.map_err(|error| CaptureError::Netns {
                action: "wait for the programs to meet new ones",
                source: error.into(),
            })?,
            same_ids: fs::metadata("/proc/self/ns/pid").is_ok_and(|file| file.ino() == INITIAL),
        })
    }

    /// Waits until there are some. Their ids, which are none of ours where the agent is in a pid
    /// namespace of its own: then there are none, and one has to look everywhere.
    ///
    /// # Errors
    /// As `epoll(7)`.
    pub async fn arrived(&mut self) -> io::Result<Vec<u32>> {
        let mut ready = self.ring.readable_mut().await?;
        let ring = ready.get_inner_mut();
        let mut threads = Vec::new();
        while let Some(item) = ring.next() {
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
