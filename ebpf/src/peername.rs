//! `getpeername`: the workload sees the peer it asked for, not the agent.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use underpass_abi::Endpoint;

use crate::maps::REDIRECTS;
use crate::socket::storage;

const PROCEED: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    if let Some(dst) = original_dst(&ctx) {
        let [.., a, b, c, d] = dst.address.0;
        // SAFETY: the context is valid while the program runs.
        unsafe {
            let addr = ctx.sock_addr;
            (&raw mut (*addr).user_ip4).write_volatile(u32::from_ne_bytes([a, b, c, d]));
            (&raw mut (*addr).user_port).write_volatile(u32::from(dst.port.to_be()));
        }
    }
    PROCEED
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    if let Some(dst) = original_dst(&ctx) {
        // SAFETY: sixteen bytes are four words; the context is valid while the program runs.
        unsafe {
            let words = core::mem::transmute::<[u8; 16], [u32; 4]>(dst.address.0);
            let ip = (&raw mut (*ctx.sock_addr).user_ip6).cast::<u32>();
            ip.write_volatile(words[0]);
            ip.add(1).write_volatile(words[1]);
            ip.add(2).write_volatile(words[2]);
            ip.add(3).write_volatile(words[3]);
            (&raw mut (*ctx.sock_addr).user_port).write_volatile(u32::from(dst.port.to_be()));
        }
    }
    PROCEED
}

/// What the socket was redirected from, if it was.
#[inline(always)]
fn original_dst(ctx: &SockAddrContext) -> Option<Endpoint> {
    // SAFETY: the context is valid while the program runs.
    let redirect = unsafe { storage(&REDIRECTS, (*ctx.sock_addr).__bindgen_anon_1.sk) }?;
    (redirect.redirected != 0).then_some(redirect.flow.original_dst)
}
