//! Datagrams that would walk past a proxy: refused as they leave, since no tunnel of ours takes them.
//!
//! Not at `connect`: getaddrinfo of glibc connects a UDP socket to each address, on the very port
//! that is asked for, to find out which of them can be reached, and sends nothing. Were that refused,
//! it would put the addresses in the wrong order. What is sent is seen here however it is: by a
//! connected or an unconnected socket, one that was connected before we came, or a raw one.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_sk_fullsock};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use aya_log_ebpf::warn;
use underpass_abi::{Address, Counter, Endpoint, Side};

use crate::maps::{NEXT_LOG, PROXIES, ROLES, count, is_captured, sides};
use crate::socket::storage;
use crate::task::is_kernel_thread;

/// What the kernel does after the hook: fail with EPERM, or go on.
const REFUSE: i32 = 0;
const PROCEED: i32 = 1;

const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_UDP_LITE: u8 = 136;

const PORT_DNS: u16 = 53;
const PORT_QUIC: u16 = 443;

/// On each processor one refused datagram is logged in this time.
const LOG_INTERVAL_NS: u64 = 1_000_000_000;

/// What is refused whether an agent is there or not.
#[cgroup_skb(egress)]
pub fn refuse_udp(ctx: SkBuffContext) -> i32 {
    decide(&ctx, Side::External)
}

/// What is refused while the agent is there, which holds this program and takes it with it.
#[cgroup_skb(egress)]
pub fn refuse_udp_open(ctx: SkBuffContext) -> i32 {
    decide(&ctx, Side::Open)
}

#[inline(always)]
fn decide(ctx: &SkBuffContext, refused: Side) -> i32 {
    let Some(dst) = udp_destination(ctx) else {
        return PROCEED;
    };
    let sides = sides(&dst);
    // What is hidden behind headers that nobody needs is the worst of what it may be.
    let hidden = dst.port == HIDDEN;
    let quic = sides.quic == refused as u8 && (hidden || dst.port == PORT_QUIC);
    let other = sides.udp == refused as u8 && dst.port != PORT_QUIC;
    if !(quic || other) || dst.port == PORT_DNS || !(hidden || is_captured(dst.port)) {
        return PROCEED;
    }
    // SAFETY: only asks whether it is there.
    if unsafe { PROXIES.get(&dst) }.is_some() || is_ours(ctx) || is_kernel_thread() {
        return PROCEED;
    }
    count(if quic {
        Counter::UdpRefusedQuic
    } else {
        Counter::UdpRefusedOther
    });
    log(ctx, &dst);
    REFUSE
}

/// No port: that of a datagram behind extension headers of IPv6.
const HIDDEN: u16 = 0;

/// Where a packet goes, if it is a datagram of UDP that somebody in particular is to get.
#[inline(always)]
fn udp_destination(ctx: &SkBuffContext) -> Option<Endpoint> {
    let start: [u8; 20] = ctx.load(0).ok()?;
    if start[0] >> 4 == 4 {
        if !is_udp(start[9]) {
            return None;
        }
        let address = Address::v4([start[16], start[17], start[18], start[19]]);
        let length = usize::from(start[0] & 0x0f) * 4;
        let port: [u8; 2] = ctx.load(length + 2).ok()?;
        return Some(Endpoint::new(address, u16::from_be_bytes(port)));
    }
    let port = match start[6] {
        next if is_udp(next) => {
            let port: [u8; 2] = ctx.load(42).ok()?;
            u16::from_be_bytes(port)
        }
        // Hop-by-hop options, routing, a fragment, destination options (RFC 8200).
        0 | 43 | 44 | 60 => HIDDEN,
        _ => return None,
    };
    Some(Endpoint::new(Address(ctx.load(24).ok()?), port))
}

#[inline(always)]
fn is_udp(protocol: u8) -> bool {
    protocol == PROTOCOL_UDP || protocol == PROTOCOL_UDP_LITE
}

/// Whether the agent itself sends it.
#[inline(always)]
fn is_ours(ctx: &SkBuffContext) -> bool {
    // SAFETY: the context is valid while the program runs; the helper gives null or a socket that
    // lives as long.
    unsafe {
        let sk: *mut bpf_sock = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return false;
        }
        let sk = bpf_sk_fullsock(sk);
        !sk.is_null() && storage(&ROLES, sk).is_some()
    }
}

/// Logs one in a while.
#[inline(always)]
fn log(ctx: &SkBuffContext, dst: &Endpoint) {
    let Some(next) = NEXT_LOG.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the pointer is to this CPU's slot; the helper takes no argument.
    unsafe {
        let now = bpf_ktime_get_ns();
        if now < *next {
            return;
        }
        *next = now + LOG_INTERVAL_NS;
    }
    let [.., a, b, c, d] = dst.address.0;
    if dst.address.is_v4() {
        let address = u32::from_be_bytes([a, b, c, d]);
        warn!(ctx, "UDP refused, to {:i} port {}", address, dst.port);
    } else {
        warn!(ctx, "UDP refused, to {:i} port {}", dst.address.0, dst.port);
    }
}
