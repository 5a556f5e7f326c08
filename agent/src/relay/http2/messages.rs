//! Messages of gRPC, counted as their bytes pass.

use super::Request;

/// The prefix of a message: whether it is compressed, and its length.
const PREFIX: u8 = 5;

/// Where a stream of messages stands. However its bytes are cut, the count is the same.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Messages {
    counted: bool,
    /// Bytes of the prefix that have passed.
    prefix: u8,
    /// The length, as far as the prefix has told it; then what is left of the message.
    left: u32,
}

impl Messages {
    /// Those of a call; of what is none, none are counted.
    pub(super) fn of(request: &Request) -> Self {
        Self {
            counted: request.is_call(),
            ..Self::default()
        }
    }

    /// These bytes pass. Gives how many messages end with or within them.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) -> u64 {
        let mut ended = 0;
        if !self.counted {
            return ended;
        }
        while let [first, rest @ ..] = bytes {
            if self.prefix < PREFIX {
                if self.prefix > 0 {
                    self.left = self.left << 8 | u32::from(*first);
                }
                self.prefix += 1;
                bytes = rest;
            } else {
                let left = usize::try_from(self.left).unwrap_or(usize::MAX);
                let passed = left.min(bytes.len());
                // It is no more than `left`.
                self.left -= passed as u32;
                bytes = &bytes[passed..];
            }
            if self.prefix == PREFIX && self.left == 0 {
                ended += 1;
                self.prefix = 0;
            }
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn begin() -> Messages {
        Messages {
            counted: true,
            ..Messages::default()
        }
    }

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        bytes.extend(vec![0xff; length]);
        bytes
    }

    #[test]
    fn a_message_counts_when_it_is_whole() {
        let mut messages = begin();
        assert_eq!(messages.pass(b""), 0);
        assert_eq!(messages.pass(&[0, 0, 0, 0, 3, 1, 2]), 0);
        assert_eq!(messages.pass(&[3]), 1);
        assert_eq!(messages.pass(&[1, 0, 0, 0, 0, 0, 0, 0, 0]), 1);
        assert_eq!(messages.pass(&[0]), 1);
        // The longest that can be said.
        assert_eq!(messages.pass(&[0, 0xff, 0xff, 0xff, 0xff, 1]), 0);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_are_cut(
            lengths in vec(0_usize..40, 0..12),
            cuts in vec(0_usize..600, 0..30),
            missing in 0_usize..8,
        ) {
            let mut bytes: Vec<u8> = lengths.iter().copied().flat_map(message).collect();
            bytes.truncate(bytes.len().saturating_sub(missing));
            let whole = begin().pass(&bytes);
            let mut ends: Vec<usize> = lengths.iter().map(|length| length + 5).collect();
            for at in 1..ends.len() {
                ends[at] += ends[at - 1];
            }
            let expected = ends.iter().filter(|end| **end <= bytes.len()).count();
            prop_assert_eq!(whole, expected as u64);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut messages = begin();
            let pieces = cuts.windows(2).map(|cut| messages.pass(&bytes[cut[0]..cut[1]]));
            prop_assert_eq!(pieces.sum::<u64>(), expected as u64);
        }
    }
}
