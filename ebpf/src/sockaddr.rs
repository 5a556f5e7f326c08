//! The address that a hook is about: reading it, and putting another one in its place.

use aya_ebpf::programs::SockAddrContext;
use underpass_abi::{Address, Endpoint};

/// That of an IPv4 hook.
#[inline(always)]
pub fn read4(ctx: &SockAddrContext) -> Endpoint {
    // SAFETY: the context is valid while the program runs.
    let (ip, port) = unsafe {
        let addr = ctx.sock_addr;
        (
            (&raw const (*addr).user_ip4).read_volatile(),
            (&raw const (*addr).user_port).read_volatile(),
        )
    };
    Endpoint::new(Address::v4(ip.to_ne_bytes()), u16::from_be(port as u16))
}

/// That of an IPv6 hook; it may be IPv4-mapped.
#[inline(always)]
pub fn read6(ctx: &SockAddrContext) -> Endpoint {
    // SAFETY: the context is valid while the program runs. Words are read one by one, since the
    // verifier refuses the wide loads that the compiler would merge them into.
    let (ip, port) = unsafe {
        let ip = (&raw const (*ctx.sock_addr).user_ip6).cast::<u32>();
        (
            [
                ip.read_volatile(),
                ip.add(1).read_volatile(),
                ip.add(2).read_volatile(),
                ip.add(3).read_volatile(),
            ],
            (&raw const (*ctx.sock_addr).user_port).read_volatile(),
        )
    };
    Endpoint::new(Address(ip), u16::from_be(port as u16))
}

/// Puts another one into an IPv4 hook.
#[inline(always)]
pub fn write4(ctx: &SockAddrContext, to: &Endpoint) {
    let [.., ip] = to.address.0;
    // SAFETY: the context is valid while the program runs.
    unsafe {
        let addr = ctx.sock_addr;
        (&raw mut (*addr).user_ip4).write_volatile(ip);
        (&raw mut (*addr).user_port).write_volatile(u32::from(to.port.to_be()));
    }
}

/// Puts another one into an IPv6 hook.
#[inline(always)]
pub fn write6(ctx: &SockAddrContext, to: &Endpoint) {
    let words = to.address.0;
    // SAFETY: the context is valid while the program runs.
    unsafe {
        let ip = (&raw mut (*ctx.sock_addr).user_ip6).cast::<u32>();
        ip.write_volatile(words[0]);
        ip.add(1).write_volatile(words[1]);
        ip.add(2).write_volatile(words[2]);
        ip.add(3).write_volatile(words[3]);
        (&raw mut (*ctx.sock_addr).user_port).write_volatile(u32::from(to.port.to_be()));
    }
}

/// A port, in host byte order, of the loopback address that a socket can reach which was to reach
/// `dst`: an IPv4-mapped socket reaches what is on IPv4, an IPv6 one its own. A socket with
/// IPV6_V6ONLY could not use the other.
#[inline(always)]
pub fn loopback(dst: &Endpoint, port: u16) -> Endpoint {
    let address = if dst.address.is_v4() {
        Address::v4([127, 0, 0, 1])
    } else {
        Address([0, 0, 0, 1u32.to_be()])
    };
    Endpoint::new(address, port)
}
