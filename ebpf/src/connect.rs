//! `connect`: who is sent to the agent, who is left alone, who is refused.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_netns_cookie,
    bpf_get_socket_cookie,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::{debug, warn};
use underpass_abi::{Counter, Endpoint, Flow, Listeners, Redirect, Side, SocketRole, Verdict};

use crate::maps::{
    CONFIG, NAMESPACES, NEWCOMERS, PROXIES, REDIRECTS, ROLES, count, is_captured, sides,
};
use crate::node::spares_connection;
use crate::sockaddr::{loopback, read4, read6, write4, write6};
use crate::socket::{forget, storage, storage_or_zero};
use crate::task::is_kernel_thread;
use crate::{front, listener};

const PROTOCOL_TCP: u32 = 6;
const PROTOCOL_UDP: u32 = 17;
const PROTOCOL_MPTCP: u32 = 262;

/// What the kernel does after the hook: fail with EPERM, or go on.
const REFUSE: i32 = 0;
const PROCEED: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let dst = read4(&ctx);
    match decide(&ctx, &dst, false) {
        Step::Proceed => PROCEED,
        Step::Refuse => REFUSE,
        Step::Redirect(port) => {
            write4(&ctx, &loopback(&dst, port));
            PROCEED
        }
    }
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let dst = read6(&ctx);
    match decide(&ctx, &dst, !dst.address.is_v4()) {
        Step::Proceed => PROCEED,
        Step::Refuse => REFUSE,
        Step::Redirect(port) => {
            write6(&ctx, &loopback(&dst, port));
            PROCEED
        }
    }
}

enum Step {
    Proceed,
    Refuse,
    /// To the listener on this port of the loopback address.
    Redirect(u16),
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, dst: &Endpoint, ipv6: bool) -> Step {
    // SAFETY: the context is valid while the program runs.
    let (protocol, sk) = unsafe {
        (
            (&raw const (*ctx.sock_addr).protocol).read_volatile(),
            (*ctx.sock_addr).__bindgen_anon_1.sk,
        )
    };
    if protocol == PROTOCOL_UDP {
        return match front::on_connect(ctx, sk, dst, ipv6) {
            Some(port) => Step::Redirect(port),
            None => Step::Proceed,
        };
    }
    if protocol != PROTOCOL_TCP && protocol != PROTOCOL_MPTCP {
        return Step::Proceed;
    }
    match classify(ctx, sk, dst, ipv6) {
        Class::Skip(reason) => {
            count(reason);
            // A socket may connect again after a failure; what it carried from the first time
            // must not speak for the second.
            // SAFETY: `sk` is the context's.
            unsafe { forget(&REDIRECTS, sk) };
            Step::Proceed
        }
        Class::Stranger(netns_cookie) => {
            count(Counter::SkippedInternal);
            // SAFETY: `sk` is the context's; zero is a valid value.
            if let Some(redirect) = unsafe { storage_or_zero(&REDIRECTS, sk) } {
                *redirect = Redirect::EMPTY;
                redirect.netns_cookie = netns_cookie;
            }
            Step::Proceed
        }
        Class::Refuse(reason) => {
            count(reason);
            warn!(
                ctx,
                "connect refused, reason {}, port {}", reason as u32, dst.port
            );
            Step::Refuse
        }
        Class::Capture(netns_cookie, port) => {
            // SAFETY: `sk` is the context's; zero is a valid value.
            let Some(redirect) = (unsafe { storage_or_zero(&REDIRECTS, sk) }) else {
                count(Counter::RefusedStorage);
                return Step::Refuse;
            };
            // In place, for what is built on the stack is copied.
            *redirect = Redirect::EMPTY;
            redirect.flow = Flow {
                // SAFETY: takes no argument.
                cgroup_id: unsafe { bpf_get_current_cgroup_id() },
                // SAFETY: the context is valid while the program runs.
                socket_cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
                original_dst: *dst,
                pid: (bpf_get_current_pid_tgid() >> 32) as u32,
            };
            redirect.netns_cookie = netns_cookie;
            redirect.redirected = 1;
            // No service has port 0: that is a canary of the agent's own.
            if dst.port != 0 {
                count(Counter::Redirected);
            }
            debug!(ctx, "redirected, port {} to {}", dst.port, port);
            Step::Redirect(port)
        }
    }
}

enum Class {
    Skip(Counter),
    /// Not external, but towards our listener in the namespace of this cookie.
    Stranger(u64),
    Refuse(Counter),
    /// In the namespace of this cookie, to the listener on this port.
    Capture(u64, u16),
}

#[inline(always)]
fn classify(ctx: &SockAddrContext, sk: *mut bpf_sock, dst: &Endpoint, ipv6: bool) -> Class {
    // SAFETY: `sk` is the context's.
    if unsafe { storage(&ROLES, sk) }.is_some() {
        return Class::Skip(Counter::SkippedAgent);
    }
    if is_kernel_thread() {
        return Class::Skip(Counter::SkippedKernel);
    }
    if front::is_served(dst)
        && let Some(class) = capture_query(ctx, sk, ipv6)
    {
        return class;
    }
    if dst.address.is_loopback() {
        // SAFETY: the context is valid while the program runs.
        let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
        // SAFETY: the value is copied at once.
        return match unsafe { NAMESPACES.get(&cookie) } {
            Some(ours) if dst.port == ours.port_v4 || dst.port == ours.port_v6 => {
                Class::Stranger(cookie)
            }
            _ => Class::Skip(Counter::SkippedInternal),
        };
    }
    let side = sides(dst).tcp;
    if side == Side::Internal as u8 {
        return Class::Skip(Counter::SkippedInternal);
    }
    // SAFETY: only asks whether it is there.
    if unsafe { PROXIES.get(dst) }.is_some() {
        return Class::Skip(Counter::SkippedProxy);
    }
    if side != Side::Virtual as u8 && !is_captured(dst.port) {
        return Class::Skip(Counter::SkippedPort);
    }
    // SAFETY: as above.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // Port 0 is a canary of the agent's own.
    if dst.port != 0 && spares_connection(cookie) {
        return Class::Skip(Counter::SkippedHostNetwork);
    }
    // SAFETY: the value is copied at once.
    let Some(&Listeners {
        port_v4, port_v6, ..
    }) = (unsafe { NAMESPACES.get(&cookie) })
    else {
        // The agent may not have come here yet: it is told, by the thread that is here.
        let _ = NEWCOMERS.output(bpf_get_current_pid_tgid() as u32, 0);
        let as_ruled = CONFIG
            .get(0)
            .is_some_and(|config| config.not_enrolled == Verdict::AsRuled as u32);
        return if as_ruled && side == Side::Open as u8 {
            Class::Skip(Counter::SkippedNotEnrolled)
        } else {
            Class::Refuse(Counter::RefusedNotEnrolled)
        };
    };
    // SAFETY: `sk` is the context's.
    if unsafe { (&raw const (*sk).bound_dev_if).read_volatile() } != 0 {
        return Class::Refuse(Counter::RefusedDevice);
    }
    let port = if ipv6 { port_v6 } else { port_v4 };
    if port == 0 {
        return Class::Refuse(Counter::RefusedFamily);
    }
    if !listener::is_ours(ctx, port, ipv6, SocketRole::Listener) {
        return if side == Side::Open as u8 {
            Class::Skip(Counter::SkippedAgentGone)
        } else {
            Class::Refuse(Counter::RefusedListener)
        };
    }
    Class::Capture(cookie, port)
}

/// Queries over TCP come to the agent wherever the name server is, if they can; else the way of every
/// other connection is theirs.
#[inline(always)]
fn capture_query(ctx: &SockAddrContext, sk: *mut bpf_sock, ipv6: bool) -> Option<Class> {
    // SAFETY: the context is valid while the program runs, and `sk` is the context's.
    let (cookie, device) = unsafe {
        (
            bpf_get_netns_cookie(ctx.as_ptr()),
            (&raw const (*sk).bound_dev_if).read_volatile(),
        )
    };
    // As its datagrams are: nobody asked for it.
    if spares_connection(cookie) {
        return None;
    }
    // SAFETY: the value is copied at once.
    let &Listeners {
        port_v4, port_v6, ..
    } = unsafe { NAMESPACES.get(&cookie) }?;
    let port = if ipv6 { port_v6 } else { port_v4 };
    let there =
        port != 0 && device == 0 && listener::is_ours(ctx, port, ipv6, SocketRole::Listener);
    there.then_some(Class::Capture(cookie, port))
}
