//! `getpeername`: the workload sees the peer it asked for, not the agent.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use underpass_abi::Endpoint;

use crate::front;
use crate::maps::REDIRECTS;
use crate::sockaddr::{write4, write6};
use crate::socket::storage;

const PROCEED: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    if let Some(dst) = original_dst(&ctx) {
        write4(&ctx, &dst);
    }
    PROCEED
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    if let Some(dst) = original_dst(&ctx) {
        write6(&ctx, &dst);
    }
    PROCEED
}

/// What the socket was redirected from, if it was.
#[inline(always)]
fn original_dst(ctx: &SockAddrContext) -> Option<Endpoint> {
    // SAFETY: the context is valid while the program runs.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    // SAFETY: `sk` is the context's.
    if let Some(redirect) = unsafe { storage(&REDIRECTS, sk) } {
        return (redirect.redirected != 0).then_some(redirect.flow.original_dst);
    }
    front::connected(sk)
}
