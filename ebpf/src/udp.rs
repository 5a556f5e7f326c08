//! Datagrams that would walk past a proxy: refused as they leave, since no tunnel of ours takes them.
//!
//! Not at `connect`: getaddrinfo of glibc connects a UDP socket to each address, on the very port
//! that is asked for, to find out which of them can be reached, and sends nothing. Were that refused,
//! it would put the addresses in the wrong order. What is sent is seen here however it is: by a
//! connected or an unconnected socket, one that was connected before we came, or a raw one.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use aya_log_ebpf::warn;
use underpass_abi::{Address, Counter, Endpoint, Side};

use crate::dns::note_question;
use crate::front::note_query;
use crate::maps::{NEXT_LOG, PROXIES, ROLES, count, is_captured, sides};
use crate::node::spares_datagram;
use crate::socket::{of_packet, storage};
use crate::task::is_kernel_thread;

/// What the kernel does after the hook: fail with EPERM, or go on.
const REFUSE: i32 = 0;
const PROCEED: i32 = 1;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_UDP_LITE: u8 = 136;

pub const PORT_DNS: u16 = 53;
const PORT_QUIC: u16 = 443;

/// On each processor one refused datagram is logged in this time.
const LOG_INTERVAL_NS: u64 = 1_000_000_000;

/// What is refused whether an agent is there or not.
#[cgroup_skb(egress)]
pub fn refuse_udp(ctx: SkBuffContext) -> i32 {
    match Datagram::read(&ctx) {
        Some(datagram) => decide(&ctx, &datagram, Side::External),
        None => PROCEED,
    }
}

/// What is refused while the agent is there, which holds this program and takes it with it; and what
/// only it wants to know.
#[cgroup_skb(egress)]
pub fn watch_udp(ctx: SkBuffContext) -> i32 {
    let Some(datagram) = Datagram::read(&ctx) else {
        return PROCEED;
    };
    if datagram.destination.port == PORT_DNS {
        let _ = note_question(&ctx, &datagram);
        return PROCEED;
    }
    if datagram.destination.address.is_loopback() {
        let _ = note_query(&ctx, &datagram);
        return PROCEED;
    }
    decide(&ctx, &datagram, Side::Open)
}

#[inline(always)]
fn decide(ctx: &SkBuffContext, datagram: &Datagram, refused: Side) -> i32 {
    let destination = datagram.destination;
    let sides = sides(&destination);
    // What is hidden behind headers that nobody needs is the worst of what it may be.
    let hidden = destination.port == HIDDEN;
    let quic = sides.quic == refused as u8 && (hidden || destination.port == PORT_QUIC);
    let other = sides.udp == refused as u8 && destination.port != PORT_QUIC;
    if !(quic || other)
        || destination.port == PORT_DNS
        || !(hidden || sides.tcp == Side::Virtual as u8 || is_captured(destination.port))
    {
        return PROCEED;
    }
    // One after the other: of two pointers at once the verifier takes no "or".
    // SAFETY: only asks whether it is there.
    if unsafe { PROXIES.get(&destination) }.is_some() {
        return PROCEED;
    }
    if is_ours(ctx) || is_kernel_thread() || spares_datagram(ctx) {
        return PROCEED;
    }
    count(if quic {
        Counter::UdpRefusedQuic
    } else {
        Counter::UdpRefusedOther
    });
    log(ctx, &destination);
    REFUSE
}

/// No port: that of a datagram behind extension headers of IPv6.
const HIDDEN: u16 = 0;

/// A packet of UDP.
pub struct Datagram {
    /// Where it goes; the port is [`HIDDEN`] behind extension headers of IPv6.
    pub destination: Endpoint,
    /// Where its payload begins, in bytes from the beginning of the packet.
    pub payload: usize,
    v4: bool,
}

impl Datagram {
    /// Reads the headers of a packet; `None`: it is none of UDP.
    #[inline(always)]
    pub fn read(ctx: &SkBuffContext) -> Option<Self> {
        if is_tcp(ctx) {
            return None;
        }
        let start: [u8; 20] = ctx.load(0).ok()?;
        if start[0] >> 4 == 4 {
            if !is_udp(start[IPV4_PROTOCOL]) {
                return None;
            }
            let address = Address::v4([start[16], start[17], start[18], start[19]]);
            let header = usize::from(start[0] & 0x0f) * 4;
            let port: [u8; 2] = ctx.load(header + 2).ok()?;
            return Some(Self {
                destination: Endpoint::new(address, u16::from_be_bytes(port)),
                payload: header + UDP_HEADER,
                v4: true,
            });
        }
        let port = match start[IPV6_NEXT_HEADER] {
            next if is_udp(next) => {
                let port: [u8; 2] = ctx.load(IPV6_HEADER + 2).ok()?;
                u16::from_be_bytes(port)
            }
            // Hop-by-hop options, routing, a fragment, destination options (RFC 8200).
            0 | 43 | 44 | 60 => HIDDEN,
            _ => return None,
        };
        Some(Self {
            destination: Endpoint::new(Address(ctx.load(24).ok()?), port),
            payload: IPV6_HEADER + UDP_HEADER,
            v4: false,
        })
    }

    /// Who sends it.
    #[inline(always)]
    pub fn source(&self, ctx: &SkBuffContext) -> Option<Address> {
        if self.v4 {
            let address: [u8; 4] = ctx.load(12).ok()?;
            return Some(Address::v4(address));
        }
        Some(Address(ctx.load(8).ok()?))
    }

    /// From which port.
    #[inline(always)]
    pub fn source_port(&self, ctx: &SkBuffContext) -> Option<u16> {
        let port: [u8; 2] = ctx.load(self.payload - UDP_HEADER).ok()?;
        Some(u16::from_be_bytes(port))
    }
}

/// Where the headers have it.
const IPV4_PROTOCOL: usize = 9;
const IPV6_NEXT_HEADER: usize = 6;

const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;

/// Whether it plainly is a packet of TCP, as nearly all are: for those no helper is called.
#[inline(always)]
fn is_tcp(ctx: &SkBuffContext) -> bool {
    // SAFETY: the context is valid while the program runs, and what is read is within the packet.
    unsafe {
        let skb = ctx.skb.skb;
        let start = (*skb).data as usize;
        if start + IPV4_PROTOCOL + 1 > (*skb).data_end as usize {
            return false;
        }
        let start = start as *const u8;
        let protocol = match *start >> 4 {
            4 => *start.add(IPV4_PROTOCOL),
            _ => *start.add(IPV6_NEXT_HEADER),
        };
        protocol == PROTOCOL_TCP
    }
}

#[inline(always)]
fn is_udp(protocol: u8) -> bool {
    protocol == PROTOCOL_UDP || protocol == PROTOCOL_UDP_LITE
}

/// Whether the agent itself sends it.
#[inline(always)]
fn is_ours(ctx: &SkBuffContext) -> bool {
    match of_packet(ctx) {
        // SAFETY: the socket is the context's.
        Some(sk) => unsafe { storage(&ROLES, sk) }.is_some(),
        None => false,
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
    if dst.address.is_v4() {
        let address = u32::from_be(dst.address.0[3]);
        warn!(ctx, "UDP refused, to {:i} port {}", address, dst.port);
    } else {
        warn!(
            ctx,
            "UDP refused, to {:i} port {}",
            dst.address.octets(),
            dst.port
        );
    }
}
