//! Answers of name servers that workloads got, as the programs pass them on.

#![expect(
    unsafe_code,
    reason = "tokio wants a promise about the ring buffer's descriptor"
)]

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{MapData, RingBuf};
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use underpass_abi::{Answer, map};

use super::CaptureError;
use super::object::Object;

/// The answers that nobody has taken yet.
pub struct Answers {
    ring: Mutex<RingBuf<MapData>>,
    /// The same buffer, to wait for it.
    ready: AsyncFd<OwnedFd>,
}

impl Answers {
    /// To be called on a runtime.
    pub(super) fn new(object: &mut Object) -> Result<Self, CaptureError> {
        let ring: RingBuf<MapData> = object.map(map::ANSWERS)?;
        let failed = |source| CaptureError::AnswersPoll(source);
        let same = ring.as_fd().try_clone_to_owned().map_err(failed)?;
        // SAFETY: it owns its descriptor, keeps it open for its whole life, and always gives the
        // same one.
        let ready = unsafe { AsyncFd::register_with_interest(same, Interest::READABLE) };
        Ok(Self {
            ring: Mutex::new(ring),
            ready: ready.map_err(|error| failed(error.into()))?,
        })
    }

    /// Takes all there are: the id of the workload's cgroup, and the message. What a workload has
    /// seen was there before.
    pub fn take(&self, mut each: impl FnMut(u64, &[u8])) {
        let mut ring = self.ring.lock();
        while let Some(item) = ring.next() {
            let bytes: &[u8] = &item;
            let Some((workload, message)) = read(bytes) else {
                continue;
            };
            each(workload, message);
        }
    }

    /// Waits until there are some.
    ///
    /// # Errors
    /// As `epoll(7)`.
    pub async fn arrived(&self) -> io::Result<()> {
        self.ready.readable().await?.clear_ready();
        Ok(())
    }
}

fn read(item: &[u8]) -> Option<(u64, &[u8])> {
    let field = |at: usize, size: usize| item.get(at..at + size);
    let workload = field(offset_of!(Answer, workload), 8)?.try_into().ok()?;
    let length = field(offset_of!(Answer, length), 4)?.try_into().ok()?;
    let length = u32::from_ne_bytes(length) as usize;
    let message = field(offset_of!(Answer, message), length)?;
    Some((u64::from_ne_bytes(workload), message))
}
