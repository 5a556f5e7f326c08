//! Answers of name servers that workloads got, as the programs pass them on.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{MapData, RingBuf};
use parking_lot::Mutex;
use tokio::io::unix::AsyncFd;
use underpass_abi::{Answer, map};

use super::CaptureError;
use super::object::Object;
use super::readable::readable;

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
        let ready = readable(ring.as_fd()).map_err(CaptureError::AnswersPoll)?;
        Ok(Self {
            ring: Mutex::new(ring),
            ready,
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
