//! IP addresses in one form for both families.

/// An IP address as 16 bytes in network byte order; IPv4 stands IPv4-mapped (`::ffff:a.b.c.d`,
/// RFC 4291 section 2.5.5.2), so that a workload's IPv4-mapped socket is treated as IPv4.
///
/// They are kept as the words that they are in memory: programs have no unaligned access, and would
/// copy and compare bytes one by one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Address(pub [u32; 4]);

/// What stands before an IPv4 address.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// None (`::`).
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// From an IPv4 address in network byte order.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self([0, 0, MAPPED, u32::from_ne_bytes(octets)])
    }

    /// Whether it stands for an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.0;
        a | b | (c ^ MAPPED) == 0
    }

    /// Whether it is a loopback address (127.0.0.0/8 or ::1).
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.0;
        if self.is_v4() {
            return d.to_ne_bytes()[0] == 127;
        }
        a | b | c | (d ^ 1u32.to_be()) == 0
    }

    /// Its bytes.
    #[inline(always)]
    pub fn octets(&self) -> [u8; 16] {
        let mut octets = [0; 16];
        for (bytes, word) in octets.as_chunks_mut().0.iter_mut().zip(self.0) {
            *bytes = word.to_ne_bytes();
        }
        octets
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

const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 4);
const _: () = assert!(size_of::<Endpoint>() == 20 && align_of::<Endpoint>() == 4);

#[cfg(feature = "user")]
mod user {
    #![expect(unsafe_code, reason = "aya::Pod is an unsafe marker trait")]

    use core::array;
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
                IpAddr::V6(ip) => {
                    let octets = ip.octets();
                    let words = octets.as_chunks().0;
                    Self(array::from_fn(|word| u32::from_ne_bytes(words[word])))
                }
            }
        }
    }

    impl From<Address> for IpAddr {
        /// IPv4-mapped addresses come out as IPv4.
        fn from(address: Address) -> Self {
            Self::V6(Ipv6Addr::from(address.octets())).to_canonical()
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
