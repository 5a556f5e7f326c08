//! Virtual addresses: what a workload is told where a host is, so that the agent knows by the address
//! which host a connection is to.
//!
//! Each host has a slot, which stands for an IPv4 and an IPv6 address. It is found by a hash of the
//! name, so that a host has the same addresses on every node and after every start; if the slot is
//! taken, by the slots behind it. The lower half is for hosts that policy names, the older document
//! first, so that a new one takes nothing from an older one; the upper half for hosts below a
//! wildcard, which are known when they are asked for.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::api::value::HostPattern;
use super::rule::Service;
use super::served::is_internal_name;
use crate::name::HostName;

/// The addresses that hosts are given.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VirtualRange {
    v4: Ipv4Net,
    v6: Ipv6Net,
}

/// A place in a [`VirtualRange`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Slot(u32);

/// Why a range is none for virtual addresses.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidVirtualRange {
    /// There are several of a family.
    #[error("{0} is the second range of its family")]
    Second(IpNet),
    /// It has too few addresses, or more than a slot can tell.
    #[error("{0} has the wrong size: IPv4 from /8 to /24, IPv6 from /8 to /96")]
    Size(IpNet),
}

impl Default for VirtualRange {
    /// 240.240.0.0/16, which nobody can have (RFC 1112 section 4), and fd75:6e64:6572:7061::/64, which
    /// is ours as far as an address of RFC 4193 can be.
    fn default() -> Self {
        let v6 = Ipv6Addr::new(0xfd75, 0x6e64, 0x6572, 0x7061, 0, 0, 0, 0);
        Self {
            v4: Ipv4Net::new_assert(Ipv4Addr::new(240, 240, 0, 0), 16),
            v6: Ipv6Net::new_assert(v6, 64),
        }
    }
}

impl VirtualRange {
    /// These ranges, at most one of a family, and the default for the other.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn new(nets: &[IpNet]) -> Result<Self, InvalidVirtualRange> {
        let mut range = Self::default();
        let mut given = [false; 2];
        for net in nets {
            let sizes = match net {
                IpNet::V4(v4) => {
                    range.v4 = v4.trunc();
                    8..=24
                }
                IpNet::V6(v6) => {
                    range.v6 = v6.trunc();
                    8..=96
                }
            };
            if !sizes.contains(&net.prefix_len()) {
                return Err(InvalidVirtualRange::Size(*net));
            }
            let second = &mut given[usize::from(matches!(net, IpNet::V6(_)))];
            if std::mem::replace(second, true) {
                return Err(InvalidVirtualRange::Second(*net));
            }
        }
        Ok(range)
    }

    /// Both ranges.
    pub fn nets(&self) -> [IpNet; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Whether the address is in it.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.nets().iter().any(|net| net.contains(&addr))
    }

    /// The addresses of a slot.
    pub fn addresses(&self, Slot(slot): Slot) -> [IpAddr; 2] {
        let v4 = Ipv4Addr::from_bits(self.v4.network().to_bits() | slot);
        let v6 = Ipv6Addr::from_bits(self.v6.network().to_bits() | u128::from(slot));
        [v4.into(), v6.into()]
    }

    /// The slot of an address in it.
    pub fn slot(&self, addr: IpAddr) -> Option<Slot> {
        let slot = match addr {
            IpAddr::V4(addr) => addr.to_bits() & self.v4.hostmask().to_bits(),
            IpAddr::V6(addr) => {
                let slot = addr.to_bits() & self.v6.hostmask().to_bits();
                u32::try_from(slot).ok()?
            }
        };
        let slot = Slot(slot);
        (self.contains(addr) && self.addresses(slot).contains(&addr)).then_some(slot)
    }

    /// How many slots each half has.
    pub fn half(&self) -> u32 {
        // Neither the first address nor the last is anybody's.
        self.v4.hostmask().to_bits() / 2
    }

    /// The slots of a name below a wildcard, the best first.
    pub fn upper(&self, name: &HostName) -> impl Iterator<Item = Slot> + use<> {
        let half = self.half();
        from(name, half).map(move |at| Slot(half + at))
    }

    /// Those of a name that policy has.
    fn lower(&self, name: &HostName) -> impl Iterator<Item = Slot> + use<> {
        from(name, self.half() - 1).map(|at| Slot(1 + at))
    }
}

/// All places below `size`, from that of the name on.
fn from(name: &HostName, size: u32) -> impl Iterator<Item = u32> + use<> {
    let first = u32::try_from(hash(name.as_str()) % u64::from(size)).unwrap_or(0);
    (first..size).chain(0..first)
}

/// FNV-1a with a finish that has every bit tell on every other. It never changes: addresses depend
/// on it.
fn hash(text: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ hash >> 33
}

/// The hosts of a policy that have virtual addresses.
#[derive(Clone, Debug)]
pub(super) struct VirtualHosts {
    pub(super) range: VirtualRange,
    /// Of proxies, to which workloads may speak themselves.
    pub(super) not: HashSet<HostName>,
    slots: HashMap<HostName, Slot>,
    hosts: HashMap<Slot, HostName>,
}

impl VirtualHosts {
    /// Gives every host a slot that may have one.
    pub(super) fn new(range: VirtualRange, services: &[Service], not: &HashSet<HostName>) -> Self {
        let mut hosts = Self {
            range,
            not: not.clone(),
            slots: HashMap::new(),
            hosts: HashMap::new(),
        };
        let external = services.iter().filter(|service| service.is_somewhere());
        for name in external.flat_map(|service| service.hosts.iter().filter_map(HostPattern::name))
        {
            if !is_internal_name(name) && !not.contains(name) {
                hosts.give(name);
            }
        }
        hosts
    }

    fn give(&mut self, name: &HostName) {
        if self.slots.contains_key(name) {
            return;
        }
        let mut slots = self.range.lower(name);
        if let Some(slot) = slots.find(|slot| !self.hosts.contains_key(slot)) {
            self.slots.insert(name.clone(), slot);
            self.hosts.insert(slot, name.clone());
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The slot of a host.
    pub(super) fn slot(&self, name: &HostName) -> Option<Slot> {
        self.slots.get(name).copied()
    }

    /// The host of a slot.
    pub(super) fn host(&self, slot: Slot) -> Option<&HostName> {
        self.hosts.get(&slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    /// What stands here is in the caches of workloads.
    #[test]
    fn a_name_has_the_same_addresses_for_ever() {
        let range = VirtualRange::default();
        let first = |name: &HostName| range.addresses(range.lower(name).next().unwrap());
        let shown = |addresses: [IpAddr; 2]| addresses.map(|it| it.to_string());
        assert_eq!(
            shown(first(&name("db.example.com"))),
            ["240.240.64.231", "fd75:6e64:6572:7061::40e7"]
        );
    }

    #[test]
    fn slots_and_addresses_belong_together() {
        let range = VirtualRange::default();
        for slot in [1, 2, range.half() - 1, range.half(), 2 * range.half() - 1] {
            for address in range.addresses(Slot(slot)) {
                assert_eq!(range.slot(address), Some(Slot(slot)), "{address}");
            }
        }
        for foreign in [
            "203.0.113.7",
            "240.241.0.1",
            "fd75:6e64:6572:7061:1::1",
            "::1",
        ] {
            assert_eq!(range.slot(foreign.parse().unwrap()), None, "{foreign}");
        }
        let lower: HashSet<_> = range.lower(&name("a.test")).collect();
        assert_eq!(lower.len(), range.half() as usize - 1);
        assert_eq!(lower.iter().min(), Some(&Slot(1)));
        let upper: HashSet<_> = range.upper(&name("a.test")).collect();
        assert_eq!(upper.iter().min(), Some(&Slot(range.half())));
        assert!(upper.iter().all(|slot| {
            let [v4, _] = range.addresses(*slot);
            v4 != IpAddr::from([240, 240, 255, 255])
        }));
    }

    #[test]
    fn ranges_have_a_size() {
        let new = |nets: &[&str]| {
            let nets: Vec<_> = nets.iter().map(|net| net.parse().unwrap()).collect();
            VirtualRange::new(&nets).map_err(|error| error.to_string())
        };
        assert_eq!(new(&[]), Ok(VirtualRange::default()));
        let other = new(&["198.18.0.0/15", "fd00:1::/64"]).unwrap();
        assert_eq!(other.half(), 65_535);
        assert!(other.contains("198.19.0.1".parse().unwrap()));
        for bad in [
            &["198.18.0.0/25"][..],
            &["fd00::/97"],
            &["10.0.0.0/9", "10.0.0.0/10"],
        ] {
            assert!(new(bad).is_err(), "{bad:?}");
        }
    }
}
