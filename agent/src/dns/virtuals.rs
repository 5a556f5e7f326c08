//! Virtual addresses that are given on demand: to hosts below wildcards, when somebody asks for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::name::HostName;
use crate::policy::{Slot, VirtualRange};

/// How long a host that nobody asks for or connects to has its addresses at the least: far longer than
/// answers are good, since some programs keep them.
const KEEP: Duration = Duration::from_secs(3600);

/// How many places are looked at for one host.
const TRIES: usize = 16;

/// The most hosts of one workload, in parts of all there may be: nobody can use up all with his own.
const SHARE: usize = 4;

/// Which hosts have which places, for ever; a host gives way to another only when it was not used for
/// an hour. There are no more than the range has places.
#[derive(Debug, Default)]
pub struct Virtuals(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    slots: HashMap<Arc<HostName>, Slot>,
    entries: HashMap<Slot, Entry>,
    /// How many entries each workload has brought.
    brought: HashMap<u64, usize>,
}

#[derive(Debug)]
struct Entry {
    host: Arc<HostName>,
    used: Instant,
    /// Id of the cgroup of the workload that was the first to ask.
    by: u64,
}

/// There is no place for a host.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Exhausted {
    /// All that could be its are in use.
    #[error("no virtual address is left for it")]
    Range,
    /// The workload has its share.
    #[error("the workload has asked for too many hosts below wildcards")]
    Share,
}

impl Virtuals {
    /// The place of a host, for which the workload in the cgroup of this id asks.
    ///
    /// # Errors
    /// There is none for it.
    pub fn give(
        &self,
        host: &HostName,
        range: &VirtualRange,
        workload: u64,
        now: Instant,
    ) -> Result<Slot, Exhausted> {
        let mut table = self.0.lock();
        if let Some(slot) = table.slots.get(host).copied() {
            table.touch(slot, now);
            return Ok(slot);
        }
        let share = range.half() as usize / SHARE;
        if table
            .brought
            .get(&workload)
            .is_some_and(|has| *has >= share)
        {
            return Err(Exhausted::Share);
        }
        let is_free = |slot: &Slot| {
            let entry = table.entries.get(slot);
            entry.is_none_or(|entry| now.saturating_duration_since(entry.used) > KEEP)
        };
        let mut slots = range.upper(host).take(TRIES);
        let slot = slots.find(is_free).ok_or(Exhausted::Range)?;
        table.put(slot, host, workload, now);
        Ok(slot)
    }

    /// The host that has this place, for a connection to it.
    pub fn host(&self, slot: Slot, now: Instant) -> Option<HostName> {
        let mut table = self.0.lock();
        table.touch(slot, now);
        table
            .entries
            .get(&slot)
            .map(|entry| HostName::clone(&entry.host))
    }

    /// How many hosts have one.
    pub fn len(&self) -> usize {
        self.0.lock().entries.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Table {
    fn touch(&mut self, slot: Slot, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&slot) {
            entry.used = now;
        }
    }

    fn put(&mut self, slot: Slot, host: &HostName, by: u64, used: Instant) {
        let host = Arc::new(host.clone());
        self.slots.insert(Arc::clone(&host), slot);
        *self.brought.entry(by).or_default() += 1;
        let Some(before) = self.entries.insert(slot, Entry { host, used, by }) else {
            return;
        };
        self.slots.remove(&before.host);
        if let Some(brought) = self.brought.get_mut(&before.by) {
            *brought -= 1;
            if *brought == 0 {
                self.brought.remove(&before.by);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn host(n: u32) -> HostName {
        format!("n{n}.wild.example").parse().unwrap()
    }

    #[test]
    fn ten_thousand_hosts_each_have_their_own_and_keep_it() {
        let (virtuals, range) = (Virtuals::default(), VirtualRange::default());
        let start = Instant::now();
        let give = |n, at| virtuals.give(&host(n), &range, u64::from(n % 7), at);
        let slots: Vec<_> = (0..10_000).map(|n| give(n, start)).collect();
        let different: HashSet<_> = slots.iter().flatten().collect();
        // At the worst a few of so many find all their places taken.
        assert!(different.len() > 9_990, "{}", different.len());
        assert_eq!(virtuals.len(), different.len());
        for (n, slot) in (0..).zip(&slots).filter(|(_, slot)| slot.is_ok()) {
            assert_eq!(give(n, start), *slot);
            assert_eq!(virtuals.host(slot.unwrap(), start), Some(host(n)));
        }

        // After a start a host has the same, as far as nobody asked for others before.
        let again = Virtuals::default();
        assert_eq!(again.give(&host(0), &range, 1, start), slots[0]);
    }

    #[test]
    fn a_flood_of_one_workload_leaves_room_and_ends() {
        let range = VirtualRange::new(&["198.51.100.0/24".parse().unwrap()]).unwrap();
        let virtuals = Virtuals::default();
        let start = Instant::now();
        let given = (0..1000).filter(|n| virtuals.give(&host(*n), &range, 1, start).is_ok());
        assert_eq!(given.count(), range.half() as usize / SHARE);
        assert_eq!(
            virtuals.give(&host(5000), &range, 1, start),
            Err(Exhausted::Share)
        );
        assert!(virtuals.give(&host(5000), &range, 2, start).is_ok());
        for workload in 3..20 {
            for n in 0..1000 {
                let _ = virtuals.give(&host(n + 1000 * workload), &range, workload.into(), start);
            }
        }
        assert!(virtuals.len() <= range.half() as usize);

        // Who is used stays, who is not gives way.
        let used = virtuals.give(&host(0), &range, 1, start).unwrap();
        let later = start + KEEP + Duration::from_secs(1);
        assert_eq!(virtuals.host(used, later), Some(host(0)));
        let new: Vec<_> = (0..1000)
            .map_while(|n| virtuals.give(&host(n + 100_000), &range, 99, later).ok())
            .collect();
        assert!(!new.is_empty() && !new.contains(&used));
        assert!(virtuals.len() <= range.half() as usize);
    }
}
