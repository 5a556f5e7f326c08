//! Queries of workloads to name servers, sent to the agent instead: it answers some from policy, and
//! asks the server that was meant for the others.
//!
//! The agent has some sockets, fronts, in each network namespace. The first server that a socket asks
//! is the first front's, the second the second's, so that each answer can be shown to come from whom
//! was asked. Where no front of ours is, a query goes to its server.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_netns_cookie,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use underpass_abi::{Counter, Endpoint, FRONTS, Query, QueryKey, SocketRole};

use crate::listener;
use crate::maps::{ASKERS, CONFIG, NAMESPACES, NEWCOMERS, QUERIES, ROLES, count};
use crate::node::spares_connection;
use crate::sockaddr::{loopback, read4, read6, write4, write6};
use crate::socket::{of_packet, storage, storage_or_zero};
use crate::task::is_kernel_thread;
use crate::udp::{Datagram, PORT_DNS};

const PROCEED: i32 = 1;

#[cgroup_sock_addr(sendmsg4)]
pub fn send_query4(ctx: SockAddrContext) -> i32 {
    let dst = read4(&ctx);
    if let Some(port) = redirect(&ctx, socket(&ctx), &dst, false, false) {
        write4(&ctx, &loopback(&dst, port));
    }
    PROCEED
}

/// IPv4-mapped ones come to `sendmsg4`.
#[cgroup_sock_addr(sendmsg6)]
pub fn send_query6(ctx: SockAddrContext) -> i32 {
    let dst = read6(&ctx);
    if let Some(port) = redirect(&ctx, socket(&ctx), &dst, true, false) {
        write6(&ctx, &loopback(&dst, port));
    }
    PROCEED
}

#[cgroup_sock_addr(recvmsg4)]
pub fn show_server4(ctx: SockAddrContext) -> i32 {
    if let Some(server) = server_behind(&ctx, &read4(&ctx)) {
        write4(&ctx, &server);
    }
    PROCEED
}

#[cgroup_sock_addr(recvmsg6)]
pub fn show_server6(ctx: SockAddrContext) -> i32 {
    if let Some(server) = server_behind(&ctx, &read6(&ctx)) {
        write6(&ctx, &server);
    }
    PROCEED
}

/// Whether what is sent to this destination is a query that the agent is to get.
#[inline(always)]
pub fn is_served(dst: &Endpoint) -> bool {
    if dst.port != PORT_DNS {
        return false;
    }
    // What has a scope, and so needs an interface, cannot be asked by somebody else.
    let [first, .., last] = dst.address.0;
    let [first, second, ..] = first.to_ne_bytes();
    let scoped = first == 0xff || (first == 0xfe && second & 0xc0 == 0x80);
    let multicast = dst.address.is_v4() && last.to_ne_bytes()[0] >= 224;
    !scoped && !multicast && CONFIG.get(0).is_some_and(|config| config.serve_dns != 0)
}

/// The port to connect a UDP socket to instead, on the loopback address.
#[inline(always)]
pub fn on_connect(
    ctx: &SockAddrContext,
    sk: *mut bpf_sock,
    dst: &Endpoint,
    ipv6: bool,
) -> Option<u16> {
    let port = redirect(ctx, sk, dst, ipv6, true);
    if port.is_none() {
        // SAFETY: `sk` is the context's.
        if let Some(asker) = unsafe { storage(&ASKERS, sk) } {
            asker.connected = 0;
        }
    }
    port
}

/// The server that a socket is connected to by way of a front.
#[inline(always)]
pub fn connected(sk: *mut bpf_sock) -> Option<Endpoint> {
    // SAFETY: `sk` is the context's.
    let asker = unsafe { storage(&ASKERS, sk) }?;
    // It connects to the first front only.
    (asker.connected != 0).then_some(asker.servers[0])
}

/// Tells the agent which server a query is for that leaves for a front, before it can arrive there.
#[inline(always)]
pub fn note_query(ctx: &SkBuffContext, datagram: &Datagram) -> Option<()> {
    // SAFETY: the socket is the context's.
    let asker = unsafe { storage(&ASKERS, of_packet(ctx)?) }?;
    let to = datagram.destination;
    for front in 0..FRONTS {
        let server = asker.servers[front];
        if asker.fronts[front] != to.port || server.address.is_v4() != to.address.is_v4() {
            continue;
        }
        let key = QueryKey {
            netns_cookie: asker.netns_cookie,
            client: Endpoint::new(datagram.source(ctx)?, datagram.source_port(ctx)?),
            number: ctx.load(datagram.payload).ok()?,
            front: front as u16,
        };
        let query = Query {
            cgroup_id: asker.cgroup_id,
            server,
            pid: asker.pid,
        };
        return QUERIES.insert(&key, &query, 0).ok();
    }
    None
}

/// Notes who asks which server, and gives the port of the front for it.
#[inline(always)]
fn redirect(
    ctx: &SockAddrContext,
    sk: *mut bpf_sock,
    dst: &Endpoint,
    ipv6: bool,
    connects: bool,
) -> Option<u16> {
    if !is_served(dst) {
        return None;
    }
    // SAFETY: `sk` is the context's.
    if unsafe { storage(&ROLES, sk) }.is_some() || is_kernel_thread() {
        return None;
    }
    // SAFETY: as above.
    if unsafe { (&raw const (*sk).bound_dev_if).read_volatile() } != 0 {
        count(Counter::QueryPassedDevice);
        return None;
    }
    // SAFETY: the context is valid while the program runs.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if spares_connection(netns_cookie) {
        return None;
    }
    // SAFETY: what is read of the value is copied at once.
    let Some(ours) = (unsafe { NAMESPACES.get(&netns_cookie) }) else {
        let _ = NEWCOMERS.output(bpf_get_current_pid_tgid() as u32, 0);
        count(Counter::QueryPassedNotEnrolled);
        return None;
    };
    let fronts = if ipv6 { ours.dns_v6 } else { ours.dns_v4 };
    // SAFETY: `sk` is the context's; all zero is nobody yet.
    let asker = unsafe { storage_or_zero(&ASKERS, sk) }?;
    let mut chosen = None;
    for front in 0..FRONTS {
        let server = &mut asker.servers[front];
        // A socket that connects hears nobody else from now on.
        if connects || server.port == 0 || *server == *dst {
            *server = *dst;
            asker.fronts[front] = fronts[front];
            chosen = Some(fronts[front]);
            break;
        }
    }
    let Some(port) = chosen else {
        count(Counter::QueryPassedServers);
        return None;
    };
    if port == 0 || !listener::is_ours(ctx, port, ipv6, SocketRole::Front) {
        count(Counter::QueryPassedAgentGone);
        return None;
    }
    // SAFETY: takes no argument.
    asker.cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    asker.netns_cookie = netns_cookie;
    asker.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if connects {
        asker.connected = 1;
    }
    Some(port)
}

/// The server that is asked by way of the front at `from`.
#[inline(always)]
fn server_behind(ctx: &SockAddrContext, from: &Endpoint) -> Option<Endpoint> {
    if !from.address.is_loopback() {
        return None;
    }
    // SAFETY: the socket is the context's.
    let asker = unsafe { storage(&ASKERS, socket(ctx)) }?;
    for front in 0..FRONTS {
        let server = asker.servers[front];
        if asker.fronts[front] == from.port && server.address.is_v4() == from.address.is_v4() {
            return Some(server);
        }
    }
    None
}

#[inline(always)]
fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }
}
