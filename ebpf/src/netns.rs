//! `connect` of one socket of the agent's: tells it the cookie of its network namespace.
//!
//! `SO_NETNS_COOKIE` does that since Linux 5.14; the helper is there since 5.7. The program stands
//! alone, to be attached for the moment of asking, and does nothing to anybody else's socket.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_get_netns_cookie;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use underpass_abi::SocketRole;

use crate::maps::{REDIRECTS, ROLES};
use crate::socket::{storage, storage_or_zero};

const PROCEED: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn tell_netns(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid while the program runs, and `sk` is the context's.
    unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if storage(&ROLES, sk).is_some_and(|role| *role == SocketRole::AsksNetns as u32) {
            // Without memory for it there is no answer, and the agent says so.
            if let Some(answer) = storage_or_zero(&REDIRECTS, sk) {
                answer.netns_cookie = bpf_get_netns_cookie(ctx.as_ptr());
            }
        }
    }
    PROCEED
}
