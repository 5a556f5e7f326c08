//! Sets of small numbers.

/// A set of the indexes of rules.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub(super) struct Bits(Box<[u64]>);

impl Bits {
    /// Whether `index` is in it.
    pub(super) fn contains(&self, index: usize) -> bool {
        self.0
            .get(index / 64)
            .is_some_and(|word| word & (1 << (index % 64)) != 0)
    }

    /// All that is in it, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().flat_map(|(at, word)| {
            (0..64)
                .filter(move |bit| word & (1 << bit) != 0)
                .map(move |bit| at * 64 + bit)
        })
    }

    /// The least index that is in both.
    pub(super) fn first_common(&self, other: &Self) -> Option<usize> {
        let words = self.0.iter().zip(&other.0).enumerate();
        words
            .map(|(at, (a, b))| (at, a & b))
            .find(|(_, common)| *common != 0)
            .map(|(at, common)| at * 64 + common.trailing_zeros() as usize)
    }
}

impl FromIterator<usize> for Bits {
    fn from_iter<I: IntoIterator<Item = usize>>(indexes: I) -> Self {
        let mut words = Vec::new();
        for index in indexes {
            if words.len() <= index / 64 {
                words.resize(index / 64 + 1, 0u64);
            }
            words[index / 64] |= 1 << (index % 64);
        }
        Self(words.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_common_one_is_found_beyond_a_word() {
        let set = |indexes: &[usize]| indexes.iter().copied().collect::<Bits>();
        assert_eq!(
            set(&[1, 70, 300]).first_common(&set(&[2, 70, 71])),
            Some(70)
        );
        assert_eq!(set(&[0, 63]).first_common(&set(&[63, 64])), Some(63));
        assert_eq!(set(&[5]).first_common(&set(&[6, 500])), None);
        assert_eq!(Bits::default().first_common(&set(&[0])), None);
        assert_eq!(set(&[300, 0, 64]).iter().collect::<Vec<_>>(), [0, 64, 300]);
        assert!(set(&[64]).contains(64) && !set(&[64]).contains(0));
        assert!(!set(&[1]).contains(1000));
    }
}
