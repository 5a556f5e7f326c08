//! Which endpoint comes next, and which are passed over. Without input and output: it is told the
//! time and what came of each try.

use std::time::Duration;

use tokio::time::Instant;

use crate::policy::{Balance as Way, Ejection};

/// No endpoint is passed over for longer.
const LONGEST: Duration = Duration::from_secs(300);

/// The endpoints of one proxy.
#[derive(Debug)]
pub(super) struct Balance {
    way: Way,
    ejection: Ejection,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    weight: u16,
    /// By how much it is ahead of its turn, for round robin.
    credit: i64,
    /// Failures in a row.
    failures: u32,
    /// How often it has been ejected lately.
    ejections: u32,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Good { since: Option<Instant> },
    Ejected { until: Instant, on_trial: bool },
}

/// An endpoint that was chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Choice {
    pub(super) index: usize,
    /// It has been passed over, and this one try tells whether that goes on. The outcome must be
    /// told, or the [trial given up](Balance::give_up).
    pub(super) trial: bool,
}

/// What changed for an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Change {
    Back,
    PassedOver(Duration),
}

impl Balance {
    pub(super) fn new(way: Way, ejection: Ejection, weights: impl Iterator<Item = u16>) -> Self {
        let members = weights.map(|weight| Member {
            weight,
            credit: 0,
            failures: 0,
            ejections: 0,
            state: State::Good { since: None },
        });
        Self {
            way,
            ejection,
            members: members.collect(),
        }
    }

    /// The endpoint to try next, of those that are `open` to it; `active` tells how many tunnels
    /// each has.
    pub(super) fn choose(
        &mut self,
        now: Instant,
        open: impl Fn(usize) -> bool,
        active: impl Fn(usize) -> usize,
    ) -> Option<Choice> {
        let open: Vec<usize> = (0..self.members.len()).filter(|i| open(*i)).collect();
        for &index in &open {
            if let State::Ejected { until, on_trial } = &mut self.members[index].state
                && *until <= now
                && !*on_trial
            {
                *on_trial = true;
                return Some(Choice { index, trial: true });
            }
        }
        let is_good = |i: &&usize| matches!(self.members[**i].state, State::Good { .. });
        let good: Vec<usize> = open.iter().filter(is_good).copied().collect();
        let index = match (good.is_empty(), self.way) {
            (true, _) => *open.iter().min_by_key(|i| match self.members[**i].state {
                State::Ejected { until, .. } => Some(until),
                State::Good { .. } => None,
            })?,
            (false, Way::RoundRobin) => self.in_turn(&good)?,
            (false, Way::Random) => self.by_chance(&good).first().copied()?,
            (false, Way::LeastActive) => {
                let load = |i: usize| active(i) as f64 / f64::from(self.members[i].weight);
                let order = self.by_chance(&good).into_iter();
                order.min_by(|a, b| load(*a).total_cmp(&load(*b)))?
            }
        };
        Some(Choice {
            index,
            trial: false,
        })
    }

    /// A try at this endpoint, which is not for anybody's use.
    pub(super) fn visit(&mut self, index: usize, now: Instant) -> Choice {
        let trial = match &mut self.members[index].state {
            State::Ejected { until, on_trial } if *until <= now && !*on_trial => {
                *on_trial = true;
                true
            }
            _ => false,
        };
        Choice { index, trial }
    }

    /// Whether a try now would be at an endpoint that is well, or one whose time has come.
    pub(super) fn is_available(&self, now: Instant) -> bool {
        self.members.iter().any(|member| match member.state {
            State::Good { .. } => true,
            State::Ejected { until, on_trial } => until <= now && !on_trial,
        })
    }

    fn by_chance(&self, among: &[usize]) -> Vec<usize> {
        let order = crate::tunnel::shuffled(among, |i| self.members[*i].weight);
        order.into_iter().copied().collect()
    }

    /// Each gains its weight, and who is ahead gives all of that away: so turns are spread evenly.
    fn in_turn(&mut self, among: &[usize]) -> Option<usize> {
        let mut total = 0;
        for &index in among {
            let member = &mut self.members[index];
            member.credit += i64::from(member.weight);
            total += i64::from(member.weight);
        }
        let first = among.iter().copied().rev();
        let first = first.max_by_key(|index| self.members[*index].credit)?;
        self.members[first].credit -= total;
        Some(first)
    }

    /// Takes note that a try went well, as far as the endpoint is concerned.
    pub(super) fn worked(&mut self, index: usize, now: Instant) -> Option<Change> {
        let member = &mut self.members[index];
        member.failures = 0;
        match member.state {
            State::Good { since } => {
                if since.is_some_and(|since| now - since > LONGEST) {
                    member.ejections = 0;
                }
                None
            }
            State::Ejected { .. } => {
                member.state = State::Good { since: Some(now) };
                Some(Change::Back)
            }
        }
    }

    /// Takes note of a failure of the endpoint's.
    pub(super) fn failed(&mut self, choice: Choice, now: Instant) -> Option<Change> {
        let ejected = self.members.iter().filter(|m| m.is_ejected()).count();
        let percent = usize::from(self.ejection.max_percent);
        let may_eject = self.ejection.after > 0
            && percent > 0
            && (ejected == 0 || (ejected + 1) * 100 <= percent * self.members.len());
        let member = &mut self.members[choice.index];
        member.failures = member.failures.saturating_add(1);
        let ejects = match member.state {
            State::Good { .. } => may_eject && member.failures >= self.ejection.after,
            State::Ejected { .. } => choice.trial,
        };
        if !ejects {
            return None;
        }
        let doubled = self.ejection.base * 2_u32.pow(member.ejections.min(10));
        let time = doubled.min(LONGEST.max(self.ejection.base));
        let time = time + time.mul_f64(fastrand::f64() / 4.0);
        member.ejections += 1;
        member.state = State::Ejected {
            until: now + time,
            on_trial: false,
        };
        Some(Change::PassedOver(time))
    }

    /// A trial came to no outcome.
    pub(super) fn give_up(&mut self, index: usize) {
        if let State::Ejected { on_trial, .. } = &mut self.members[index].state {
            *on_trial = false;
        }
    }
}

impl Member {
    fn is_ejected(&self) -> bool {
        matches!(self.state, State::Ejected { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balance(way: Way, weights: &[u16]) -> Balance {
        let ejection = Ejection {
            after: 2,
            base: Duration::from_secs(10),
            max_percent: 100,
        };
        Balance::new(way, ejection, weights.iter().copied())
    }

    fn fail(balance: &mut Balance, index: usize, now: Instant) -> Option<Change> {
        let trial = false;
        balance.failed(Choice { index, trial }, now)
    }

    #[test]
    fn the_fewest_tunnels_by_weight_win_and_equals_share_by_weight() {
        let mut balance = balance(Way::LeastActive, &[1, 3]);
        let now = Instant::now();
        let mut choose = |active: [usize; 2]| {
            let choice = balance.choose(now, |_| true, |i| active[i]);
            choice.unwrap().index
        };
        assert_eq!(choose([1, 0]), 1);
        assert_eq!(choose([1, 2]), 1);
        assert_eq!(choose([1, 4]), 0);
        let heavy = (0..4000).filter(|_| choose([0, 0]) == 1).count();
        assert!((2700..3300).contains(&heavy), "{heavy}");
    }

    #[test]
    fn turns_are_spread_evenly() {
        let mut balance = balance(Way::RoundRobin, &[2, 1, 1]);
        let now = Instant::now();
        let mut next = || balance.choose(now, |_| true, |_| 0).unwrap().index;
        let order: Vec<_> = (0..8).map(|_| next()).collect();
        assert_eq!(order, [0, 1, 2, 0, 0, 1, 2, 0]);
    }

    #[test]
    fn an_endpoint_that_fails_is_passed_over_then_tried_by_one_and_each_time_longer() {
        let mut balance = balance(Way::LeastActive, &[1, 1]);
        let mut now = Instant::now();
        let choose = |balance: &mut Balance, now| balance.choose(now, |_| true, |_| 0).unwrap();
        assert_eq!(fail(&mut balance, 0, now), None);
        assert_eq!(balance.worked(0, now), None);
        assert_eq!(fail(&mut balance, 0, now), None);
        let mut last = Duration::ZERO;
        for round in 0..3 {
            let trial = round > 0;
            let Some(Change::PassedOver(time)) = balance.failed(Choice { index: 0, trial }, now)
            else {
                panic!("not passed over");
            };
            let base = Duration::from_secs(10) * 2_u32.pow(round);
            assert!(time >= base && time <= base.mul_f64(1.25), "{time:?}");
            assert!(time > last);
            last = time;
            // Others that still fail there change nothing.
            assert_eq!(fail(&mut balance, 0, now), None);
            for _ in 0..20 {
                let index = 1;
                let trial = false;
                assert_eq!(choose(&mut balance, now), Choice { index, trial });
            }
            now += time;
            let index = 0;
            assert_eq!(choose(&mut balance, now), Choice { index, trial: true });
            assert_eq!(choose(&mut balance, now).index, 1, "one at a time");
            balance.give_up(0);
            assert_eq!(choose(&mut balance, now), Choice { index, trial: true });
        }
        assert_eq!(balance.worked(0, now), Some(Change::Back));
        assert_eq!(balance.worked(0, now), None);
    }

    #[test]
    fn when_all_are_passed_over_the_one_whose_time_is_nearest_is_used() {
        let mut balance = balance(Way::LeastActive, &[1, 1]);
        let now = Instant::now();
        for (index, at) in [(1, now), (0, now + Duration::from_secs(5))] {
            fail(&mut balance, index, at);
            assert!(fail(&mut balance, index, at).is_some());
        }
        assert!(!balance.is_available(now));
        let choice = balance.choose(now, |_| true, |_| 0).unwrap();
        let expected = Choice {
            index: 1,
            trial: false,
        };
        assert_eq!(choice, expected);
        assert_eq!(balance.choose(now, |i| i == 0, |_| 0).unwrap().index, 0);
        assert_eq!(balance.choose(now, |_| false, |_| 0), None);
        // Their time comes for one try each.
        let later = now + LONGEST;
        assert!(balance.is_available(later));
        balance.choose(later, |_| true, |_| 0);
        assert!(balance.is_available(later));
        balance.choose(later, |_| true, |_| 0);
        assert!(!balance.is_available(later));
        assert_eq!(balance.worked(1, later), Some(Change::Back));
        assert!(balance.is_available(later));
    }

    #[test]
    fn no_more_than_the_share_allowed_are_passed_over() {
        let mut balance = balance(Way::LeastActive, &[1; 4]);
        balance.ejection.max_percent = 50;
        let now = Instant::now();
        let mut out = |index| {
            fail(&mut balance, index, now);
            fail(&mut balance, index, now).is_some()
        };
        assert_eq!([out(0), out(1), out(2)], [true, true, false]);
        balance.ejection.max_percent = 10;
        balance.worked(0, now);
        balance.worked(1, now);
        let mut out = |index| {
            fail(&mut balance, index, now);
            fail(&mut balance, index, now).is_some()
        };
        assert_eq!([out(0), out(1)], [true, false], "one in any case");
    }
}
