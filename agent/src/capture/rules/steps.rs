//! From one set of prefix rules to another, without a moment that neither of them would allow.

use std::cmp::Reverse;
use std::collections::HashMap;

use underpass_abi::{RuleKey, Sides};

/// A rule's place in the trie.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Place {
    /// The bits of `key` that count.
    pub(super) bits: u32,
    pub(super) key: RuleKey,
}

impl Place {
    /// Of all rules that a destination is in, the one with the highest rank decides: those for its
    /// port go before those for any port, then the longest prefix wins.
    fn rank(self) -> (bool, u32) {
        (self.key.port != [0; 4], self.bits)
    }
}

/// One change of one entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// Inserts it, or replaces its value at once.
    Set(Place, Sides),
    Remove(Place),
}

/// The changes that lead from `old` to `new`, in an order in which every destination is, after each
/// of them, on its old or on its new side:
///
/// - What is new or has changed comes first, the highest rank before the lower ones. Had a wide
///   rule come before a narrow one inside it, the wide one would rule for a moment over addresses
///   that both sets treat otherwise. In this order an address keeps its old rule until its new one
///   is there, since nothing that outranks both is ever added.
/// - Then goes what is stale, the lowest rank first. In the other order the end of an old narrow
///   rule would for a moment hand its addresses to an old wider one.
pub(super) fn steps(old: &HashMap<Place, Sides>, new: &HashMap<Place, Sides>) -> Vec<Step> {
    let mut set: Vec<_> = new
        .iter()
        .filter(|(place, sides)| old.get(place) != Some(sides))
        .map(|(place, sides)| (*place, *sides))
        .collect();
    set.sort_by_key(|(place, _)| Reverse(place.rank()));
    let mut stale: Vec<_> = old
        .keys()
        .filter(|place| !new.contains_key(place))
        .copied()
        .collect();
    stale.sort_by_key(|place| place.rank());
    let set = set
        .into_iter()
        .map(|(place, sides)| Step::Set(place, sides));
    set.chain(stale.into_iter().map(Step::Remove)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use underpass_abi::{Address, Side};

    use super::*;

    type Table = HashMap<Place, Sides>;

    /// As the programs look a destination up: first on its port, then on any, each time the longest
    /// prefix.
    fn side(table: &Table, port: u16, last: u8) -> Sides {
        let address = Address::v4([203, 0, 113, last]);
        let longest = |port| {
            let wanted = RuleKey::new(port, address);
            table
                .iter()
                .filter(|(place, _)| masked(place.key, place.bits) == masked(wanted, place.bits))
                .max_by_key(|(place, _)| place.bits)
        };
        let rule = longest(port).or_else(|| longest(0));
        rule.map_or(Sides::all(Side::External), |(_, sides)| *sides)
    }

    /// The port, and the bits of the address that count.
    fn masked(key: RuleKey, bits: u32) -> ([u8; 4], u128) {
        let address = u128::from_be_bytes(key.address.octets());
        (key.port, address >> (RuleKey::BITS - bits))
    }

    /// A prefix of up to four bits in a network of sixteen addresses.
    fn place(port: u16, last: u8, length: u32) -> Place {
        let host_bits = 4 - length;
        let address = Address::v4([203, 0, 113, last >> host_bits << host_bits]);
        Place {
            bits: RuleKey::BITS - host_bits,
            key: RuleKey::new(port, address),
        }
    }

    fn table() -> impl Strategy<Value = Table> {
        const SIDES: &[Side] = &[Side::External, Side::Internal, Side::Open];
        let port = prop_oneof![Just(0_u16), Just(443)];
        let rule = (port, 0..16_u8, 0..=4_u32, proptest::sample::select(SIDES));
        let rule = rule
            .prop_map(|(port, last, length, side)| (place(port, last, length), Sides::all(side)));
        proptest::collection::vec(rule, 0..12).prop_map(|rules| rules.into_iter().collect())
    }

    proptest! {
        #[test]
        fn every_moment_is_old_or_new(old in table(), new in table()) {
            let mut now = old.clone();
            for step in steps(&old, &new) {
                match step {
                    Step::Set(place, sides) => now.insert(place, sides),
                    Step::Remove(place) => now.remove(&place),
                };
                for last in 0..16 {
                    for port in [443, 80] {
                        let is = side(&now, port, last);
                        prop_assert!(
                            is == side(&old, port, last) || is == side(&new, port, last),
                            "{last}:{port} is {is:?} after {step:?}"
                        );
                    }
                }
            }
            prop_assert_eq!(now, new);
        }
    }
}
