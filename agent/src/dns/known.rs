//! What workloads have resolved: which names an address has, as each of them was told.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::answer::Answer;
use crate::name::HostName;

/// Names that are remembered of one address.
const MAX_NAMES: usize = 8;

/// How long an address is its name's at least: an answer that may not be kept at all is for the
/// connection that comes after it, and some programs keep every answer for this long (Java).
const MIN_TTL: Duration = Duration::from_secs(30);

/// And at most.
const MAX_TTL: Duration = Duration::from_secs(86_400);

/// How much is remembered at the most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Workloads.
    pub(super) workloads: usize,
    /// Addresses of each.
    pub(super) addresses: usize,
}

/// Names by workload and address. What is not good any more is not told, and goes when there is no
/// room; then goes what ends first.
#[derive(Debug)]
pub(super) struct Known {
    bounds: Bounds,
    /// By the id of the cgroup.
    workloads: HashMap<u64, Resolved>,
    /// Addresses of all of them.
    addresses: usize,
}

#[derive(Debug, Default)]
struct Resolved {
    names: HashMap<IpAddr, Vec<Name>>,
    learnt: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Name {
    name: HostName,
    until: Instant,
}

impl Known {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            workloads: HashMap::new(),
            addresses: 0,
        }
    }

    /// Remembers what a workload was told at `now`.
    pub(super) fn learn(&mut self, workload: u64, answer: &Answer, now: Instant) {
        if !self.workloads.contains_key(&workload) && self.workloads.len() >= self.bounds.workloads
        {
            let oldest = self.workloads.iter().min_by_key(|(_, it)| it.learnt);
            let oldest = oldest.map(|(id, _)| *id);
            if let Some(gone) = oldest.and_then(|id| self.workloads.remove(&id)) {
                self.addresses -= gone.names.len();
            }
        }
        let resolved = self.workloads.entry(workload).or_default();
        resolved.learnt = Some(now);
        self.addresses -= resolved.names.len();
        let until = now + answer.ttl.clamp(MIN_TTL, MAX_TTL);
        for address in &answer.addresses {
            resolved.learn(*address, &answer.name, until, now, self.bounds.addresses);
        }
        self.addresses += resolved.names.len();
    }

    /// The names that an address has for a workload, the one that it was told last first.
    pub(super) fn names(&self, workload: u64, address: IpAddr, now: Instant) -> Vec<HostName> {
        let resolved = self.workloads.get(&workload);
        let names = resolved.and_then(|it| it.names.get(&address.to_canonical()));
        let names = names.into_iter().flatten();
        let good = names.filter(|name| name.until > now);
        good.map(|name| name.name.clone()).collect()
    }

    /// Names of every workload that has some, by the id of its cgroup, no more than `limit` each.
    pub(super) fn all(&self, now: Instant, limit: usize) -> Vec<(u64, Vec<(HostName, IpAddr)>)> {
        let mut all: Vec<_> = self
            .workloads
            .iter()
            .map(|(id, resolved)| {
                let names = resolved.names.iter().flat_map(|(address, names)| {
                    let good = names.iter().filter(|name| name.until > now);
                    good.map(|name| (name.name.clone(), *address))
                });
                let mut names: Vec<_> = names.collect();
                names.sort();
                names.truncate(limit);
                (*id, names)
            })
            .collect();
        all.retain(|(_, names)| !names.is_empty());
        all.sort();
        all
    }

    /// How many addresses have names, those included that are not good any more.
    pub(super) fn len(&self) -> usize {
        self.addresses
    }
}

impl Resolved {
    fn learn(
        &mut self,
        address: IpAddr,
        name: &HostName,
        until: Instant,
        now: Instant,
        max_addresses: usize,
    ) {
        if !self.names.contains_key(&address) && self.names.len() >= max_addresses {
            self.make_room(now, max_addresses);
        }
        let names = self.names.entry(address).or_default();
        names.retain(|old| old.name != *name);
        names.insert(
            0,
            Name {
                name: name.clone(),
                until,
            },
        );
        names.truncate(MAX_NAMES);
    }

    /// What is not good any more goes; if that is not an eighth, what ends first goes as well, so that
    /// this does not come with every new address.
    fn make_room(&mut self, now: Instant, max_addresses: usize) {
        let ends = |names: &[Name]| names.iter().map(|name| name.until).max();
        self.names.retain(|_, names| ends(names) > Some(now));
        let too_many = self.names.len().saturating_sub(max_addresses * 7 / 8);
        let by_end = self.names.iter().map(|(at, names)| (ends(names), *at));
        let mut by_end: Vec<_> = by_end.collect();
        by_end.sort();
        for (_, address) in by_end.into_iter().take(too_many) {
            self.names.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        workloads: 3,
        addresses: 100,
    };

    fn answer(name: &str, addresses: &[&str], ttl: u64) -> Answer {
        Answer {
            name: name.parse().unwrap(),
            addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
            ttl: Duration::from_secs(ttl),
        }
    }

    fn names(known: &Known, workload: u64, address: &str, now: Instant) -> Vec<String> {
        let names = known.names(workload, address.parse().unwrap(), now);
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_workload_knows_what_it_was_told_for_as_long_as_it_is_good() {
        let mut known = Known::new(BOUNDS);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        known.learn(
            1,
            &answer("a.test", &["203.0.113.7", "2001:db8::7"], 60),
            start,
        );
        known.learn(1, &answer("b.test", &["203.0.113.7"], 0), start);
        known.learn(2, &answer("c.test", &["203.0.113.7"], 60), start);

        assert_eq!(names(&known, 1, "203.0.113.7", at(5)), ["b.test", "a.test"]);
        assert_eq!(names(&known, 1, "::ffff:203.0.113.7", at(5)).len(), 2);
        assert_eq!(names(&known, 1, "203.0.113.7", at(59)), ["a.test"]);
        assert_eq!(names(&known, 1, "2001:db8::7", at(59)), ["a.test"]);
        assert_eq!(names(&known, 1, "203.0.113.7", at(60)), [""; 0]);
        assert_eq!(names(&known, 2, "203.0.113.7", at(5)), ["c.test"]);
        assert_eq!(names(&known, 3, "203.0.113.7", at(5)), [""; 0]);
        assert_eq!(known.all(at(5), 1).len(), 2);

        // Told again, it counts again, and from then on.
        known.learn(1, &answer("a.test", &["203.0.113.7"], 60), at(50));
        assert_eq!(names(&known, 1, "203.0.113.7", at(100)), ["a.test"]);
    }

    #[test]
    fn memory_is_bounded_whatever_is_asked_for() {
        let mut known = Known::new(BOUNDS);
        let start = Instant::now();
        for n in 0..10_000_u32 {
            let now = start + Duration::from_millis(n.into());
            let [_, _, c, d] = n.to_be_bytes();
            let address = format!("203.0.{c}.{d}");
            let name = format!("n{n}.test");
            known.learn(
                u64::from(n % 10),
                &answer(&name, &[&address, "192.0.2.1"], 300),
                now,
            );
            let there = known.workloads.values().map(|it| it.names.len());
            assert_eq!(known.len(), there.sum::<usize>());
            assert!(known.len() <= BOUNDS.workloads * BOUNDS.addresses);
            // What was just learnt is known.
            assert_eq!(names(&known, u64::from(n % 10), &address, now), [name]);
        }
        let many = known.names(9, "192.0.2.1".parse().unwrap(), start);
        assert!(many.len() <= MAX_NAMES);
        assert_eq!(known.workloads.len(), BOUNDS.workloads);
    }

    #[test]
    fn what_ends_first_goes_first() {
        let mut known = Known::new(BOUNDS);
        let start = Instant::now();
        for n in 0..=100_u8 {
            let address = format!("203.0.113.{n}");
            known.learn(1, &answer("a.test", &[&address], 100 + u64::from(n)), start);
        }
        assert_eq!(names(&known, 1, "203.0.113.0", start), [""; 0]);
        assert_eq!(names(&known, 1, "203.0.113.99", start), ["a.test"]);
        assert_eq!(names(&known, 1, "203.0.113.100", start), ["a.test"]);
    }
}
