//! Values by address prefix.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::hash::Seed;

/// A table from prefixes to values, found by address in time that grows only with the number of
/// different prefix lengths.
#[derive(Clone, Debug)]
pub(super) struct PrefixTable<T> {
    v4: Vec<Level<T>>,
    v6: Vec<Level<T>>,
}

/// All prefixes of one length; levels stand longest first.
#[derive(Clone, Debug)]
struct Level<T> {
    length: u8,
    prefixes: HashMap<u128, (IpNet, T), Seed>,
}

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self {
            v4: Vec::new(),
            v6: Vec::new(),
        }
    }
}

impl<T> PrefixTable<T> {
    /// Every prefix that covers `addr` with its value, longest first.
    pub(super) fn covering(&self, addr: IpAddr) -> impl Iterator<Item = (IpNet, &T)> {
        let addr = addr.to_canonical();
        let levels = match addr {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        };
        levels.iter().filter_map(move |level| {
            let (net, value) = level.prefixes.get(&key(addr, level.length))?;
            Some((*net, value))
        })
    }

    /// All prefixes, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (IpNet, &T)> {
        let levels = self.v4.iter().chain(&self.v6);
        let mut all: Vec<_> = levels
            .flat_map(|level| level.prefixes.values())
            .map(|(net, value)| (*net, value))
            .collect();
        all.sort_by_key(|(net, _)| *net);
        all.into_iter()
    }

    /// The value of exactly this prefix, made if it is not there.
    pub(super) fn entry(&mut self, net: IpNet) -> &mut T
    where
        T: Default,
    {
        let net = canonical(net);
        let levels = match net {
            IpNet::V4(_) => &mut self.v4,
            IpNet::V6(_) => &mut self.v6,
        };
        let length = net.prefix_len();
        let at = match levels.binary_search_by(|level| length.cmp(&level.length)) {
            Ok(at) => at,
            Err(at) => {
                let prefixes = HashMap::default();
                levels.insert(at, Level { length, prefixes });
                at
            }
        };
        let (_, value) = levels[at]
            .prefixes
            .entry(key(net.network(), length))
            .or_insert_with(|| (net, T::default()));
        value
    }
}

/// The prefix without host bits, IPv4-mapped IPv6 as the IPv4 it stands for.
pub(super) fn canonical(net: IpNet) -> IpNet {
    let mapped = match (net.network(), net.prefix_len().checked_sub(96)) {
        (IpAddr::V6(addr), Some(length)) => addr
            .to_ipv4_mapped()
            .and_then(|addr| Ipv4Net::new(addr, length).ok()),
        _ => None,
    };
    mapped.map_or(net, IpNet::V4).trunc()
}

fn key(addr: IpAddr, length: u8) -> u128 {
    let (bits, width) = match addr {
        IpAddr::V4(addr) => (u128::from(addr.to_bits()), 32),
        IpAddr::V6(addr) => (addr.to_bits(), 128),
    };
    let host_bits = width - u32::from(length);
    u128::MAX
        .checked_shl(host_bits)
        .map_or(0, |mask| bits & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_comes_first() {
        let mut table = PrefixTable::<u8>::default();
        for (net, value) in [
            ("10.0.0.0/8", 1),
            ("0.0.0.0/0", 2),
            ("10.1.2.3/32", 3),
            ("::/0", 4),
            ("2001:db8::/32", 5),
            ("2001:db8::1/128", 6),
            ("::ffff:10.1.0.0/112", 7),
        ] {
            *table.entry(net.parse().unwrap()) = value;
        }
        for (addr, expected) in [
            ("10.1.2.3", &[3, 7, 1, 2][..]),
            ("10.1.2.4", &[7, 1, 2]),
            ("::ffff:10.2.0.1", &[1, 2]),
            ("192.0.2.1", &[2]),
            ("2001:db8::1", &[6, 5, 4]),
            ("2001:db9::1", &[4]),
        ] {
            let found: Vec<_> = table
                .covering(addr.parse().unwrap())
                .map(|(_, value)| *value)
                .collect();
            assert_eq!(found, expected, "{addr}");
        }
        let first = table.iter().next().map(|(net, _)| net.to_string());
        assert_eq!(first.as_deref(), Some("0.0.0.0/0"));
        assert_eq!(table.iter().count(), 7);
    }
}
