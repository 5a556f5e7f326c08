//! IP addresses in one form for both families.

/// An IP address as 16 bytes in network byte order; IPv4 stands IPv4-mapped (`::ffff:a.b.c.d`,
/// RFC 4291 section 2.5.5.2), so that a workload's IPv4-mapped socket is treated as IPv4.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// From an IPv4 address in network byte order.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// Whether it stands for an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = self.0;
        (a | b | c | d | e | f | g | h | i | j) == 0 && k == 0xff && l == 0xff
    }

    /// Whether it is a loopback address (127.0.0.0/8 or ::1).
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            return self.0[12] == 127;
        }
        matches!(self.0, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    }
}

/// An address and a TCP port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// The port, host byte order.
    pub port: u16,
    /// Always zero.
    pub _pad: u16,
}

impl Endpoint {
    /// An endpoint; `port` in host byte order.
    #[inline(always)]
    pub const fn new(address: Address, port: u16) -> Self {
        Self {
            address,
            port,
            _pad: 0,
        }
    }
}

const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 1);
const _: () = assert!(size_of::<Endpoint>() == 20 && align_of::<Endpoint>() == 2);

#[cfg(feature = "user")]
mod user {
    #![expect(unsafe_code, reason = "aya::Pod is an unsafe marker trait")]

    use core::net::{IpAddr, Ipv6Addr, SocketAddr};

    use super::{Address, Endpoint};

    // SAFETY: repr(C), only integers, no padding (see the size asserts above).
    unsafe impl aya::Pod for Address {}
    // SAFETY: as above; the pad is a field.
    unsafe impl aya::Pod for Endpoint {}

    impl From<IpAddr> for Address {
        fn from(ip: IpAddr) -> Self {
            match ip {
                IpAddr::V4(ip) => Self::v4(ip.octets()),
                IpAddr::V6(ip) => Self(ip.octets()),
            }
        }
    }

    impl From<Address> for IpAddr {
        /// IPv4-mapped addresses come out as IPv4.
        fn from(address: Address) -> Self {
            Self::V6(Ipv6Addr::from(address.0)).to_canonical()
        }
    }

    impl From<SocketAddr> for Endpoint {
        fn from(addr: SocketAddr) -> Self {
            Self::new(addr.ip().into(), addr.port())
        }
    }

    impl From<Endpoint> for SocketAddr {
        fn from(endpoint: Endpoint) -> Self {
            Self::new(endpoint.address.into(), endpoint.port)
        }
    }
}
