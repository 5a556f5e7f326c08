//! A redirected connection, between the workload's `connect` and the agent's `accept`.

use crate::address::{Address, Endpoint};

/// How the agent recognises an accepted connection. The namespace is part of it because two
/// namespaces may well use the same client address and port towards the same loopback address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct FlowKey {
    /// Cookie of the network namespace that the workload's socket is in.
    pub netns_cookie: u64,
    /// The workload's side of the connection.
    pub client: Endpoint,
    /// Always zero.
    pub _pad: u32,
}

impl FlowKey {
    /// The key of a connection from `client` in the namespace of that cookie.
    #[inline(always)]
    pub const fn new(netns_cookie: u64, client: Endpoint) -> Self {
        Self {
            netns_cookie,
            client,
            _pad: 0,
        }
    }
}

/// Where a redirected connection wanted to go, and whose it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Flow {
    /// Cgroup v2 id of the process that called `connect`.
    pub cgroup_id: u64,
    /// Cookie of the workload's socket: tells this entry from a later one with the same key.
    pub socket_cookie: u64,
    /// What the workload called `connect` with.
    pub original_dst: Endpoint,
    /// Process id (thread group) of the caller, in the initial pid namespace.
    pub pid: u32,
}

/// What a workload's socket carries from `connect` to the end of its life. The kernel frees it
/// with the socket, so an abandoned `connect` leaves nothing behind.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Redirect {
    /// The entry to write once the local address is known.
    pub flow: Flow,
    /// Cookie of the network namespace (kernels before 5.15 do not tell it to sockops programs).
    pub netns_cookie: u64,
    /// 1 if the socket was redirected; 0 for a stranger to our listener, whose key must be
    /// cleared instead.
    pub redirected: u32,
    /// Always zero.
    pub _pad: u32,
}

impl Redirect {
    /// All zero; the programs fill it in place.
    pub const EMPTY: Self = Self {
        flow: Flow {
            cgroup_id: 0,
            socket_cookie: 0,
            original_dst: Endpoint::new(Address::UNSPECIFIED, 0),
            pid: 0,
        },
        netns_cookie: 0,
        redirected: 0,
        _pad: 0,
    };
}

const _: () = assert!(size_of::<FlowKey>() == 32 && align_of::<FlowKey>() == 8);
const _: () = assert!(core::mem::offset_of!(FlowKey, client) == 8);
const _: () = assert!(size_of::<Flow>() == 40 && align_of::<Flow>() == 8);
const _: () = assert!(core::mem::offset_of!(Flow, original_dst) == 16);
const _: () = assert!(core::mem::offset_of!(Flow, pid) == 36);
const _: () = assert!(size_of::<Redirect>() == 56 && align_of::<Redirect>() == 8);
const _: () = assert!(core::mem::offset_of!(Redirect, netns_cookie) == 40);
const _: () = assert!(core::mem::offset_of!(Redirect, redirected) == 48);

#[cfg(feature = "user")]
mod user {
    #![expect(unsafe_code, reason = "aya::Pod is an unsafe marker trait")]

    use super::{Flow, FlowKey, Redirect};

    // SAFETY: repr(C), only integers, no implicit padding (see the asserts above).
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Redirect {}
}
