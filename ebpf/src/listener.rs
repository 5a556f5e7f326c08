//! Is what listens on the port still ours?
//!
//! When an agent dies, any user may bind its port. A redirect that trusted the port number alone
//! would hand the workload's bytes to whoever did.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock_tuple};
use aya_ebpf::helpers::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release};
use aya_ebpf::programs::SockAddrContext;
use underpass_abi::SocketRole;

use crate::maps::ROLES;
use crate::socket::storage;

/// Whether a listener with our mark is on the loopback address of this family, in the network
/// namespace of the context's socket; `port` in host byte order. [`SocketRole::Front`] is a role of
/// UDP sockets, others are of TCP.
#[inline(always)]
pub fn is_ours(ctx: &SockAddrContext, port: u16, ipv6: bool, role: SocketRole) -> bool {
    // SAFETY: all zero is a valid tuple.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if ipv6 {
        tuple.__bindgen_anon_1.ipv6.daddr = [0, 0, 0, 1u32.to_be()];
        tuple.__bindgen_anon_1.ipv6.dport = port.to_be();
        36u32
    } else {
        tuple.__bindgen_anon_1.ipv4.daddr = u32::from_ne_bytes([127, 0, 0, 1]);
        tuple.__bindgen_anon_1.ipv4.dport = port.to_be();
        12u32
    };
    // SAFETY: the context is the running program's; the tuple is initialised up to `size`.
    unsafe {
        let (ctx, tuple) = (ctx.as_ptr(), &raw mut tuple);
        let here = BPF_F_CURRENT_NETNS as i64 as u64;
        let sk = match role {
            SocketRole::Front => bpf_sk_lookup_udp(ctx, tuple, size, here, 0),
            _ => bpf_sk_lookup_tcp(ctx, tuple, size, here, 0),
        };
        if sk.is_null() {
            return false;
        }
        let ours = storage(&ROLES, sk).is_some_and(|marked| *marked == role as u32);
        bpf_sk_release(sk.cast());
        ours
    }
}
