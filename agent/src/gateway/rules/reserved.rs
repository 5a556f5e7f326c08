//! Addresses that lead to what is the operator's own: the gateway's machine, link, network, cloud.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A range whose hosts no client may reach unless a rule names it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reserved {
    /// The range; of an IPv4 range written inside IPv6 addresses, its image there.
    net: IpNet,
    /// What it is, for whoever is refused.
    pub(super) kind: &'static str,
}

impl Reserved {
    /// The range that `addr` is in, itself or by an IPv4 address inside it.
    pub(super) fn of(addr: IpAddr) -> Option<Self> {
        if let Some(own) = Self::containing(addr) {
            return Some(own);
        }
        let IpAddr::V6(v6) = addr else {
            return None;
        };
        embedded(v6).find_map(|(v4, position)| {
            let inner = Self::containing(v4.into())?;
            let image = Ipv6Net::new(v6, position + inner.net.prefix_len()).ok()?;
            Some(Self {
                net: image.trunc().into(),
                ..inner
            })
        })
    }

    /// Whether a rule about `net` is about this range and not about all the world: `0.0.0.0/0`
    /// allows every host and does not name the loopback or metadata address.
    pub(super) fn is_named_by(&self, net: &IpNet) -> bool {
        self.net.contains(net)
    }

    fn containing(addr: IpAddr) -> Option<Self> {
        RESERVED
            .into_iter()
            .find(|reserved| reserved.net.contains(&addr))
    }

    const fn v4(addr: [u8; 4], prefix: u8, kind: &'static str) -> Self {
        let [a, b, c, d] = addr;
        Self {
            net: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)),
            kind,
        }
    }

    /// A range by the first four groups of its addresses.
    const fn v6(start: [u16; 4], prefix: u8, kind: &'static str) -> Self {
        let [a, b, c, d] = start;
        let addr = Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0);
        Self {
            net: IpNet::V6(Ipv6Net::new_assert(addr, prefix)),
            kind,
        }
    }

    const fn metadata_v6(a: u16, b: u16) -> Self {
        let addr = Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0x254);
        Self {
            net: IpNet::V6(Ipv6Net::new_assert(addr, 128)),
            kind: METADATA,
        }
    }
}

/// The IPv4 addresses to which a translator or tunnel may send what goes to `addr`, each with the
/// position of its first bit.
pub(super) fn embedded(addr: Ipv6Addr) -> impl Iterator<Item = (Ipv4Addr, u8)> {
    let bits = addr.to_bits();
    let at = |position: u8| Ipv4Addr::from_bits((bits >> (96 - u32::from(position))) as u32);
    let mut found = [None; 2];
    match addr.segments() {
        // IPv4-mapped (RFC 4291 section 2.5.5.2) and -translated (RFC 2765), and NAT64 (RFC 6052
        // section 2.1).
        [0, 0, 0, 0, 0, 0xffff, ..]
        | [0, 0, 0, 0, 0xffff, 0, ..]
        | [0x64, 0xff9b, 0, 0, 0, 0, ..] => found[0] = Some((at(96), 96)),
        // 6to4 (RFC 3056).
        [0x2002, ..] => found[0] = Some((at(16), 16)),
        // Teredo: the server, and the client with its bits inverted (RFC 4380 section 4).
        [0x2001, 0, ..] => {
            let client = Ipv4Addr::from_bits(!at(96).to_bits());
            found = [Some((at(32), 32)), Some((client, 96))];
        }
        // ISATAP (RFC 5214 section 6.1).
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => found[0] = Some((at(96), 96)),
        _ => {}
    }
    found.into_iter().flatten()
}

const METADATA: &str = "a metadata service";
const PRIVATE: &str = "a private address";
const LINK_LOCAL: &str = "a link-local address";
const MULTICAST: &str = "a multicast address";

/// The narrow ones stand before the wide ones they are in: a rule for the wide one does not name
/// them.
const RESERVED: [Reserved; 24] = [
    // By number private, public or for protocols; by nature the cloud's own: AWS, Google, Alibaba,
    // Oracle, Azure. 169.254.169.254 is link-local.
    Reserved::metadata_v6(0xfd00, 0xec2),
    Reserved::metadata_v6(0xfd20, 0xce),
    Reserved::v4([100, 100, 100, 200], 32, METADATA),
    Reserved::v4([192, 0, 0, 192], 32, METADATA),
    Reserved::v4([168, 63, 129, 16], 32, METADATA),
    Reserved::v4([0, 0, 0, 0], 8, "an unspecified address"),
    Reserved::v4([127, 0, 0, 0], 8, "a loopback address"),
    Reserved::v4([169, 254, 0, 0], 16, LINK_LOCAL),
    Reserved::v4([10, 0, 0, 0], 8, PRIVATE),
    Reserved::v4([172, 16, 0, 0], 12, PRIVATE),
    Reserved::v4([192, 168, 0, 0], 16, PRIVATE),
    // RFC 6598.
    Reserved::v4([100, 64, 0, 0], 10, "a shared address of a provider"),
    // RFC 6890 section 2.1.
    Reserved::v4([192, 0, 0, 0], 24, "an address for protocols"),
    // RFC 2544; also where tools put addresses that stand for names.
    Reserved::v4([198, 18, 0, 0], 15, "an address for benchmarks"),
    Reserved::v4([224, 0, 0, 0], 4, MULTICAST),
    Reserved::v4([255, 255, 255, 255], 32, "the broadcast address"),
    Reserved::v4([240, 0, 0, 0], 4, "an address for future use"),
    // `::`, `::1` and the IPv4-compatible addresses that were given up (RFC 4291 section 2.5.5.1).
    Reserved::v6([0; 4], 96, "a loopback or unspecified address"),
    // NAT64 with prefixes of the network's own (RFC 8215).
    Reserved::v6([0x64, 0xff9b, 1, 0], 48, "a translated address"),
    // For discarding (RFC 6666).
    Reserved::v6([0x100, 0, 0, 0], 64, "an address that discards"),
    Reserved::v6([0xfe80, 0, 0, 0], 10, LINK_LOCAL),
    // Site-local, given up (RFC 3879), and unique-local (RFC 4193).
    Reserved::v6([0xfec0, 0, 0, 0], 10, PRIVATE),
    Reserved::v6([0xfc00, 0, 0, 0], 7, PRIVATE),
    Reserved::v6([0xff00, 0, 0, 0], 8, MULTICAST),
];
