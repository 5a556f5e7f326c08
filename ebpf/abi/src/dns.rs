//! DNS of workloads, as the programs see it.

use crate::address::Address;

/// An answer that came to a workload's question; an entry of the ring.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// Cgroup v2 id of the workload's socket.
    pub workload: u64,
    /// How many bytes of `message` it has.
    pub length: u32,
    /// Always zero.
    pub _pad: u32,
    /// The message (RFC 1035 section 4).
    pub message: [u8; Self::MAX as usize],
}

impl Answer {
    /// The longest message that is passed on, in bytes; a power of two. What asks for more (RFC 6891)
    /// seldom gets it.
    pub const MAX: u32 = 2048;
}

/// A question that a socket has asked.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The name server.
    pub server: Address,
    /// The number of the message, as it stands there.
    pub number: [u8; 2],
    /// 1 until the answer has come; 0 where there is none.
    pub used: u16,
}

/// The last questions that a socket has asked. All zero is none.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Questions {
    /// Each in its slot, by turns.
    pub asked: [Asked; Self::MAX as usize],
    /// The next slot, modulo their number.
    pub next: u32,
}

impl Questions {
    /// How many are remembered; a power of two. A resolver asks for two kinds of addresses at up to
    /// three servers at a time.
    pub const MAX: u32 = 8;
}

const _: () = assert!(size_of::<Answer>() == 2064 && align_of::<Answer>() == 8);
const _: () = assert!(core::mem::offset_of!(Answer, message) == 16);
const _: () = assert!(size_of::<Asked>() == 20 && align_of::<Asked>() == 2);
const _: () = assert!(size_of::<Questions>() == 164 && align_of::<Questions>() == 4);
