//! What is external.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;

use super::prefix::PrefixTable;

/// On which side of the egress boundary an address lies.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Beyond the proxies: connections to it may be captured, and are refused while no agent is
    /// there to tunnel them.
    #[default]
    External,
    /// On this side: never captured.
    Internal,
    /// Beyond the proxies as well, but passed on while no agent is there.
    Open,
    /// Nowhere but in what the agent makes of it: connections to any port are captured.
    Virtual,
}

/// On which sides an address lies for the kernel side.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Captured {
    /// With TCP.
    pub tcp: Side,
    /// With UDP on port 443. What is captured of UDP is refused.
    pub quic: Side,
    /// With UDP on other ports, likewise.
    pub udp: Side,
}

impl Captured {
    /// What nobody has: there is no other end for UDP.
    pub(super) const VIRTUAL: Self = Self {
        tcp: Side::Virtual,
        quic: Side::External,
        udp: Side::External,
    };
}

impl From<Side> for Captured {
    fn from(side: Side) -> Self {
        Self {
            tcp: side,
            quic: side,
            udp: side,
        }
    }
}

/// The side of every address, or its sides; the longest prefix decides.
#[derive(Clone, Debug)]
pub(super) struct Sides<S = Side>(PrefixTable<S>);

impl<S: Copy + Default + From<Side>> Sides<S> {
    /// The ranges that are internal by their nature, and everything else on the side `elsewhere`.
    pub(super) fn new(elsewhere: S) -> Self {
        let mut sides = Self(PrefixTable::default());
        for net in EVERYTHING {
            sides.set(net, elsewhere);
        }
        for net in INTERNAL_V4.map(IpNet::V4) {
            sides.set(net, Side::Internal.into());
        }
        for net in INTERNAL_V6.map(IpNet::V6) {
            sides.set(net, Side::Internal.into());
        }
        sides
    }

    /// Says on which side a range lies.
    pub(super) fn set(&mut self, net: IpNet, side: S) {
        *self.0.entry(net) = side;
    }

    /// The side of an address, and the range that says so.
    pub(super) fn of(&self, addr: IpAddr) -> Option<(IpNet, S)> {
        let (net, side) = self.0.covering(addr).next()?;
        Some((net, *side))
    }

    /// All ranges; together they cover every address.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = (IpNet, S)> {
        self.0.iter().map(|(net, side)| (net, *side))
    }
}

/// Whether a range is one that stays on the node or its link, or names no host: whatever documents
/// say, connections to it are not captured.
pub(super) fn is_never_external(net: IpNet) -> bool {
    let v4 = NEVER_V4.map(IpNet::V4);
    let v6 = NEVER_V6.map(IpNet::V6);
    v4.iter().chain(&v6).any(|never| never.contains(&net))
}

const EVERYTHING: [IpNet; 2] = [
    IpNet::V4(v4([0, 0, 0, 0], 0)),
    IpNet::V6(v6([0, 0, 0, 0, 0, 0, 0, 0], 0)),
];

/// Documentation, benchmarking and reserved ranges (240.0.0.0/4) are external: tests and virtual
/// addresses use them, and nothing on a node does.
const INTERNAL_V4: [Ipv4Net; 9] = [
    // "This host": connecting to it reaches the node itself.
    v4([0, 0, 0, 0], 8),
    // RFC 1918.
    v4([10, 0, 0, 0], 8),
    // Shared address space of carriers and clouds (RFC 6598).
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    // Link-local, with the metadata service of clouds.
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    // Multicast.
    v4([224, 0, 0, 0], 4),
    // Broadcast.
    v4([255, 255, 255, 255], 32),
];

const INTERNAL_V6: [Ipv6Net; 5] = [
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128),
    // Unique local (RFC 4193).
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
    // Link-local.
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    // Multicast.
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

const NEVER_V4: [Ipv4Net; 5] = [
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([224, 0, 0, 0], 4),
    v4([255, 255, 255, 255], 32),
];

const NEVER_V6: [Ipv6Net; 4] = [
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

const fn v4(octets: [u8; 4], length: u8) -> Ipv4Net {
    let [a, b, c, d] = octets;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6(segments: [u16; 8], length: u8) -> Ipv6Net {
    let [a, b, c, d, e, f, g, h] = segments;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_has_a_side() {
        let sides = Sides::new(Side::External);
        for (addr, expected) in [
            ("0.0.0.0", Side::Internal),
            ("1.1.1.1", Side::External),
            ("9.255.255.255", Side::External),
            ("10.0.0.0", Side::Internal),
            ("11.0.0.0", Side::External),
            ("100.63.255.255", Side::External),
            ("100.64.0.1", Side::Internal),
            ("100.128.0.0", Side::External),
            ("127.255.255.254", Side::Internal),
            ("169.254.169.254", Side::Internal),
            ("172.15.255.255", Side::External),
            ("172.31.255.255", Side::Internal),
            ("172.32.0.0", Side::External),
            ("192.0.2.1", Side::External),
            ("192.168.0.1", Side::Internal),
            ("198.18.0.1", Side::External),
            ("198.51.100.7", Side::External),
            ("203.0.113.7", Side::External),
            ("224.0.0.1", Side::Internal),
            ("239.255.255.255", Side::Internal),
            ("240.240.0.1", Side::External),
            ("255.255.255.254", Side::External),
            ("255.255.255.255", Side::Internal),
            ("::", Side::Internal),
            ("::1", Side::Internal),
            ("::2", Side::External),
            ("::ffff:10.0.0.1", Side::Internal),
            ("::ffff:198.51.100.7", Side::External),
            ("2001:db8::1", Side::External),
            ("2606:4700::1", Side::External),
            ("fbff::1", Side::External),
            ("fc00::1", Side::Internal),
            ("fdff::1", Side::Internal),
            ("fe80::1", Side::Internal),
            ("febf::1", Side::Internal),
            ("fec0::1", Side::External),
            ("ff02::1", Side::Internal),
        ] {
            let (_, side) = sides.of(addr.parse().unwrap()).unwrap();
            assert_eq!(side, expected, "{addr}");
        }
    }

    #[test]
    fn the_longest_prefix_decides() {
        let mut sides = Sides::new(Side::External);
        sides.set("10.9.0.0/16".parse().unwrap(), Side::External);
        sides.set("198.51.100.0/24".parse().unwrap(), Side::Internal);
        let side = |addr: &str| sides.of(addr.parse().unwrap()).map(|(_, side)| side);
        assert_eq!(side("10.9.0.1"), Some(Side::External));
        assert_eq!(side("10.8.0.1"), Some(Side::Internal));
        assert_eq!(side("198.51.100.1"), Some(Side::Internal));
        assert_eq!(side("198.51.101.1"), Some(Side::External));
    }
}
