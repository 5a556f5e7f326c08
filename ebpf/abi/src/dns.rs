//! DNS of workloads, as the programs see it.

use crate::address::{Address, Endpoint};

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

/// How many name servers one socket may ask by way of the agent, and how many sockets the agent has
/// for that in each network namespace and address family: which of them a query comes to tells which
/// server is meant. Resolvers read no more from resolv.conf.
pub const FRONTS: usize = 3;

/// What a workload's socket carries whose queries go to the agent. All zero is nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// Cgroup v2 id of the process that asked last.
    pub cgroup_id: u64,
    /// Cookie of the network namespace that the socket is in.
    pub netns_cookie: u64,
    /// That process (thread group), in the initial pid namespace.
    pub pid: u32,
    /// The name servers it asks; port 0 where there is none.
    pub servers: [Endpoint; FRONTS],
    /// The agent's port for each, host byte order; on 127.0.0.1 for IPv4, else on ::1.
    pub fronts: [u16; FRONTS],
    /// One more than the index of the server that it is connected to; 0 if to none.
    pub connected: u16,
}

/// How the agent recognises a query that was sent to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct QueryKey {
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// The workload's side.
    pub client: Endpoint,
    /// The number of the message, as it stands there.
    pub number: [u8; 2],
    /// The index of the agent's socket.
    pub front: u16,
}

/// Which name server a query is for, and whose it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Query {
    /// Cgroup v2 id of the process that asks.
    pub cgroup_id: u64,
    /// The server.
    pub server: Endpoint,
    /// That process (thread group), in the initial pid namespace.
    pub pid: u32,
}

const _: () = assert!(size_of::<Asker>() == 88 && align_of::<Asker>() == 8);
const _: () = assert!(core::mem::offset_of!(Asker, fronts) == 80);
const _: () = assert!(size_of::<QueryKey>() == 32 && align_of::<QueryKey>() == 8);
const _: () = assert!(core::mem::offset_of!(QueryKey, number) == 28);
const _: () = assert!(size_of::<Query>() == 32 && align_of::<Query>() == 8);
const _: () = assert!(size_of::<Answer>() == 2064 && align_of::<Answer>() == 8);
const _: () = assert!(core::mem::offset_of!(Answer, message) == 16);
const _: () = assert!(size_of::<Asked>() == 20 && align_of::<Asked>() == 4);
const _: () = assert!(size_of::<Questions>() == 164 && align_of::<Questions>() == 4);

#[cfg(feature = "user")]
mod user {
    #![expect(unsafe_code, reason = "aya::Pod is an unsafe marker trait")]

    use super::{Query, QueryKey};

    // SAFETY: repr(C), only integers, no implicit padding (see the asserts above).
    unsafe impl aya::Pod for QueryKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Query {}
}
