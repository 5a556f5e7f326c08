//! Whether the flow map has room.

/// Rounds for which a map that turned connections away counts as full: longer than the 10 s
/// between two looks of a probe, so that a short burst is seen.
const REMEMBERED: u32 = 5;

/// What is known about the flow map from the rounds before.
#[derive(Debug)]
pub(super) struct FlowMap {
    refused: u64,
    rounds_left: u32,
}

impl FlowMap {
    /// Before the first round; `refused` counts the connections that the map had no room for.
    pub(super) fn new(refused: u64) -> Self {
        Self {
            refused,
            rounds_left: 0,
        }
    }

    /// One round, with the numbers of now.
    ///
    /// # Errors
    /// The map is full, or was a short while ago.
    pub(super) fn check(
        &mut self,
        entries: u64,
        capacity: u32,
        refused: u64,
    ) -> Result<(), String> {
        if refused > self.refused || entries >= capacity.into() {
            self.refused = refused;
            self.rounds_left = REMEMBERED;
        }
        if self.rounds_left == 0 {
            return Ok(());
        }
        self.rounds_left -= 1;
        Err(format!(
            "the map FLOWS is full: {capacity} connections (--max-connections) wait to be \
             accepted, and further ones are reset"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_is_full_now_or_a_short_while_ago() {
        let mut map = FlowMap::new(7);
        assert_eq!(map.check(99, 100, 7), Ok(()), "refused before we looked");
        let problem = map.check(100, 100, 7).unwrap_err();
        assert!(
            problem.contains("FLOWS") && problem.contains("100"),
            "{problem}"
        );
        for _ in 1..REMEMBERED {
            assert_eq!(map.check(0, 100, 7), Err(problem.clone()));
        }
        assert_eq!(map.check(0, 100, 7), Ok(()));

        // Full and empty again between two rounds.
        assert_eq!(map.check(3, 100, 8), Err(problem));
    }
}
