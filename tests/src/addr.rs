//! The addresses of a [`World`](crate::World): all from the ranges reserved for documentation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The workload host's own address.
pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The workload host's own IPv6 address.
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 2);
/// The router the host sees; the near end of the internet.
pub const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The router's IPv6 address.
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1);
/// `site.example`: where [`Nginx`](crate::servers::nginx::Nginx) serves.
pub const SITE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// `site.example` over IPv6.
pub const SITE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10);
/// `other.example`: free for servers of a test's own.
pub const OTHER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
/// `other.example` over IPv6.
pub const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x11);
/// `proxy.example`.
pub const PROXY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);
/// `proxy.example` over IPv6.
pub const PROXY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x2, 0, 0, 0, 0, 0x20);
/// The port of `proxy.example`.
pub const PROXY_PORT: u16 = 3128;
/// The name server of both namespaces.
pub const DNS_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
/// `internal.example`: a destination in RFC 1918 space, which is never tunnelled by default.
pub const INTERNAL_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 10);
/// An address nothing in a world routes to: reaching it would mean that the world leaks.
pub const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// As [`OUTSIDE_V4`] for IPv6.
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0x2, 0, 0, 0, 0, 0, 1);

/// Addresses of `inet` besides the router's.
pub const INET: [IpAddr; 8] = [
    IpAddr::V4(SITE_V4),
    IpAddr::V6(SITE_V6),
    IpAddr::V4(OTHER_V4),
    IpAddr::V6(OTHER_V6),
    IpAddr::V4(PROXY_V4),
    IpAddr::V6(PROXY_V6),
    IpAddr::V4(DNS_V4),
    IpAddr::V4(INTERNAL_V4),
];

/// Names the world's name server knows, with their addresses.
pub const NAMES: [(&str, &[IpAddr]); 7] = [
    ("site.example", &[IpAddr::V4(SITE_V4), IpAddr::V6(SITE_V6)]),
    (
        "other.example",
        &[IpAddr::V4(OTHER_V4), IpAddr::V6(OTHER_V6)],
    ),
    ("v4.example", &[IpAddr::V4(SITE_V4)]),
    ("v6.example", &[IpAddr::V6(SITE_V6)]),
    (
        "proxy.example",
        &[IpAddr::V4(PROXY_V4), IpAddr::V6(PROXY_V6)],
    ),
    ("mail.example", &[IpAddr::V4(OTHER_V4)]),
    ("internal.example", &[IpAddr::V4(INTERNAL_V4)]),
];

/// Whether `address` is one of the targets, which a tunnelled workload must not reach itself.
pub fn is_target(address: IpAddr) -> bool {
    [
        IpAddr::V4(SITE_V4),
        IpAddr::V6(SITE_V6),
        IpAddr::V4(OTHER_V4),
        IpAddr::V6(OTHER_V6),
    ]
    .contains(&address)
}

/// The proxy's socket address over IPv4.
pub fn proxy_v4() -> SocketAddr {
    SocketAddr::from((PROXY_V4, PROXY_PORT))
}

/// The proxy's socket address over IPv6.
pub fn proxy_v6() -> SocketAddr {
    SocketAddr::from((PROXY_V6, PROXY_PORT))
}
