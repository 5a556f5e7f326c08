//! A fast hash for the tables that every connection asks several times.
//!
//! What is in these tables comes from policy; a workload only asks. Still each table has a seed of
//! its own that nobody knows, so that documents of one tenant cannot be made to slow down another.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Hashers with one seed.
#[derive(Clone, Debug)]
pub(super) struct Seed(u64);

impl Default for Seed {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0))
    }
}

impl BuildHasher for Seed {
    type Hasher = Folding;

    fn build_hasher(&self) -> Folding {
        Folding(self.0)
    }
}

/// Multiplies each word into the state, both halves of the product folded into one.
#[derive(Debug)]
pub(super) struct Folding(u64);

impl Folding {
    fn fold(&mut self, word: u64) {
        // Digits of pi: no pattern that input could have.
        const FACTOR: u64 = 0x243f_6a88_85a3_08d3;
        let product = u128::from(self.0 ^ word).wrapping_mul(u128::from(FACTOR));
        let [low, high] = halves(product);
        self.0 = (low ^ high).wrapping_add(word.rotate_left(32));
    }
}

impl Hasher for Folding {
    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in words.by_ref() {
            let mut whole = [0; 8];
            whole.copy_from_slice(word);
            self.fold(u64::from_le_bytes(whole));
        }
        let rest = words.remainder();
        if !rest.is_empty() {
            let mut padded = [0; 8];
            padded[..rest.len()].copy_from_slice(rest);
            self.fold(u64::from_le_bytes(padded));
        }
        self.fold(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    }

    fn write_u8(&mut self, byte: u8) {
        self.fold(byte.into());
    }

    fn write_u128(&mut self, number: u128) {
        let [low, high] = halves(number);
        self.fold(low);
        self.fold(high);
    }

    fn finish(&self) -> u64 {
        let mut last = Self(self.0);
        last.fold(self.0.rotate_left(17));
        last.0
    }
}

fn halves(number: u128) -> [u64; 2] {
    let bytes = number.to_le_bytes();
    let (mut low, mut high) = ([0; 8], [0; 8]);
    low.copy_from_slice(&bytes[..8]);
    high.copy_from_slice(&bytes[8..]);
    [low, high].map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Of keys that differ little the hashes differ as much as by chance: in the bits that choose
    /// the bucket, and in those that tell neighbours apart.
    #[test]
    fn keys_like_those_of_policy_spread() {
        let seed = Seed::default();
        let names: Vec<u64> = (0..4096)
            .map(|n| seed.hash_one(format!("s{n}.example.com").as_str()))
            .collect();
        let addresses: Vec<u64> = (0..4096_u128).map(|n| seed.hash_one(n << 8)).collect();
        let v6: Vec<u64> = (0..4096_u128).map(|n| seed.hash_one(n << 96)).collect();
        for hashes in [names, addresses, v6] {
            let all: HashSet<_> = hashes.iter().collect();
            assert_eq!(all.len(), hashes.len());
            for shift in [0, 57 - 12] {
                let buckets: HashSet<_> = hashes.iter().map(|hash| hash >> shift & 4095).collect();
                // By chance 63 % of the buckets are hit.
                assert!(buckets.len() > 2200, "{} of 4096", buckets.len());
            }
        }
    }

    #[test]
    fn every_table_has_a_seed_of_its_own() {
        let one = Seed::default();
        assert_eq!(one.hash_one("a"), one.clone().hash_one("a"));
        assert_ne!(one.hash_one("a"), Seed::default().hash_one("a"));
        assert_ne!(one.hash_one("a"), one.hash_one("a\0"));
    }
}
