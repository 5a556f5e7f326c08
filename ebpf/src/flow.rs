//! sockops: writes a redirected connection's entry before its SYN leaves, and clears it when the
//! handshake fails.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
    BPF_TCP_SYN_SENT, bpf_sock,
};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use underpass_abi::{Address, Counter, Endpoint, FlowKey, Redirect};

use crate::maps::{FLOWS, REDIRECTS, count};
use crate::socket::storage;

const AF_INET: u32 = 2;

#[sock_ops]
pub fn record_flow(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => on_connect(&ctx),
        BPF_SOCK_OPS_STATE_CB => on_state(&ctx),
        _ => {}
    }
    1
}

/// Runs with the final local address and port, before the SYN: the entry is there before the
/// agent's `accept` can return.
#[inline(always)]
fn on_connect(ctx: &SockOpsContext) {
    let Some(redirect) = redirect(ctx) else {
        return;
    };
    redirect.key = FlowKey::new(redirect.key.netns_cookie, local(ctx));
    // A copy on the stack, since older kernels take no map value as a key.
    let key = redirect.key;
    if redirect.redirected == 0 {
        // A stranger on its own way to our listener must not be taken for an earlier workload.
        let _ = FLOWS.remove(&key);
        return;
    }
    let flow = redirect.flow;
    if FLOWS.insert(&key, &flow, 0).is_err() {
        // The agent will not find it, and resets the connection.
        count(Counter::RefusedMapFull);
        return;
    }
    // Flags of other programs on the same socket stay.
    let flags = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    let _ = ctx.set_cb_flags(flags as i32);
}

/// Closed without a handshake: the agent will never accept it. After a handshake the entry stays,
/// for the workload may have sent all it had to say and be gone before the agent accepts.
#[inline(always)]
fn on_state(ctx: &SockOpsContext) {
    if ctx.arg(0) != BPF_TCP_SYN_SENT || ctx.arg(1) != BPF_TCP_CLOSE {
        return;
    }
    let Some(redirect) = redirect(ctx) else {
        return;
    };
    let key = redirect.key;
    // SAFETY: only the cookie is read, at once.
    let ours = unsafe { FLOWS.get(&key) }
        .is_some_and(|flow| flow.socket_cookie == redirect.flow.socket_cookie);
    if ours {
        let _ = FLOWS.remove(&key);
    }
}

#[inline(always)]
fn redirect(ctx: &SockOpsContext) -> Option<&'static mut Redirect> {
    // SAFETY: the context is valid while the program runs.
    let sk: *mut bpf_sock = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: `sk` is the context's.
    unsafe { storage(&REDIRECTS, sk) }
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
