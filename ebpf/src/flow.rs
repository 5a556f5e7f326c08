//! sockops: writes a redirected connection's entry before the agent can accept it.

use aya_ebpf::bindings::{BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, bpf_sock};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use underpass_abi::{Address, Counter, Endpoint, FlowKey};

use crate::maps::{FLOWS, REDIRECTS, count};
use crate::socket::storage;

const AF_INET: u32 = 2;

/// The kernel runs it several times for each connection: what it is not for is left at once.
#[sock_ops]
pub fn record_flow(ctx: SockOpsContext) -> u32 {
    if ctx.op() == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB {
        on_established(&ctx);
    }
    1
}

/// Runs when the SYN is answered, before that is acknowledged: the entry is there before the
/// agent's `accept` can return, and a handshake that fails leaves none. No later close takes it away,
/// for the workload may have sent all it had to say and be gone before the agent accepts.
#[inline(always)]
fn on_established(ctx: &SockOpsContext) {
    // SAFETY: the context is valid while the program runs.
    let sk: *mut bpf_sock = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    // SAFETY: `sk` is the context's.
    let Some(redirect) = (unsafe { storage(&REDIRECTS, sk) }) else {
        return;
    };
    let key = FlowKey::new(redirect.netns_cookie, local(ctx));
    if redirect.redirected == 0 {
        // A stranger on its own way to our listener must not be taken for an earlier workload.
        let _ = FLOWS.remove(&key);
    } else if FLOWS.insert(&key, &redirect.flow, 0).is_err() {
        // The agent will not find it, and resets the connection.
        count(Counter::RefusedMapFull);
    }
}

/// The workload's side of the connection.
#[inline(always)]
fn local(ctx: &SockOpsContext) -> Endpoint {
    // For native IPv6 the kernel keeps 127.0.0.6 in the IPv4 field, so it cannot serve for both.
    let address = if ctx.family() == AF_INET {
        Address::v4(ctx.local_ip4().to_ne_bytes())
    } else {
        // SAFETY: the context is valid while the program runs. Words one by one, as in connect6.
        let words = unsafe {
            let ip = (&raw const (*ctx.ops).local_ip6).cast::<u32>();
            [
                ip.read_volatile(),
                ip.add(1).read_volatile(),
                ip.add(2).read_volatile(),
                ip.add(3).read_volatile(),
            ]
        };
        Address(words)
    };
    Endpoint::new(address, ctx.local_port() as u16)
}
