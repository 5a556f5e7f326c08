//! Whether a target may be tried.

use std::time::Duration;

use tokio::time::Instant;

use crate::policy::Outliers;

/// The longest ejection, unless the shortest is longer; Envoy's.
const MAX_EJECTION: Duration = Duration::from_secs(300);

/// What came of trying a target.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// It answered a request with this status.
    Answered(u16),
    /// There is a connection whose bytes are nobody's business.
    Connected,
    /// There was no connection, or no answer.
    Failed,
}

/// What is remembered of a target. It is tried freely until it has failed too often; then, when
/// its time is over, one try at a time decides whether it goes on.
#[derive(Clone, Debug, Default)]
pub(super) struct Health {
    /// Failures in a row.
    failures: u32,
    gateway_failures: u32,
    local_failures: u32,
    /// How often it was ejected, but for what is forgotten.
    ejections: u32,
    /// Since when it has been tried freely, if it ever was ejected.
    free_since: Option<Instant>,
    ejected: Option<Ejected>,
    /// Numbers trials.
    trials: u64,
}

#[derive(Clone, Copy, Debug)]
struct Ejected {
    until: Instant,
    /// The trial that is under way, and until when it is waited for.
    trial: Option<(u64, Instant)>,
}

impl Health {
    /// Whether it may be tried, and if that is a trial, its number.
    ///
    /// # Errors
    /// It may not, for so long.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        outliers: &Outliers,
    ) -> Result<Option<u64>, Duration> {
        if !outliers.ejects {
            self.ejected = None;
        }
        let Some(ejected) = &mut self.ejected else {
            return Ok(None);
        };
        if now < ejected.until {
            return Err(ejected.until - now);
        }
        if let Some((_, until)) = ejected.trial
            && now < until
        {
            return Err(until - now);
        }
        // A trial that takes too long does not keep others from trying.
        self.trials += 1;
        ejected.trial = Some((self.trials, now + outliers.base));
        Ok(Some(self.trials))
    }

    /// A trial ends without anything known.
    pub(super) fn give_up(&mut self, number: u64) {
        if let Some(ejected) = &mut self.ejected
            && ejected.trial.is_some_and(|(trial, _)| trial == number)
        {
            ejected.trial = None;
        }
    }

    /// What came of a try. Gives for how long the target is ejected now, if it is because of that.
    pub(super) fn note(
        &mut self,
        now: Instant,
        outliers: &Outliers,
        outcome: Outcome,
        trial: Option<u64>,
    ) -> Option<Duration> {
        let Some(ejected) = self.ejected else {
            return self
                .count(outliers, outcome)
                .then(|| self.eject(now, outliers));
        };
        // Of what began before, nothing is learnt any more.
        let of_trial = ejected.trial.map(|(number, _)| number);
        if of_trial.is_none() || of_trial != trial {
            return None;
        }
        if counts(outliers, outcome) {
            return Some(self.eject(now, outliers));
        }
        self.ejected = None;
        self.free_since = Some(now);
        None
    }

    /// Whether it was one time too often.
    fn count(&mut self, outliers: &Outliers, outcome: Outcome) -> bool {
        let mut too_often = false;
        let mut one_more = |count: &mut u32, limit: u32| {
            *count = count.saturating_add(1);
            too_often |= limit > 0 && *count >= limit;
        };
        match (outcome, outliers.local_failures) {
            (Outcome::Failed, Some(limit)) => one_more(&mut self.local_failures, limit),
            (Outcome::Failed, None) => {
                one_more(&mut self.failures, outliers.failures);
                one_more(&mut self.gateway_failures, outliers.gateway_failures);
            }
            (Outcome::Answered(status @ 500..=599), _) => {
                self.local_failures = 0;
                one_more(&mut self.failures, outliers.failures);
                if (502..=504).contains(&status) {
                    one_more(&mut self.gateway_failures, outliers.gateway_failures);
                } else {
                    self.gateway_failures = 0;
                }
            }
            (Outcome::Answered(_) | Outcome::Connected, _) => {
                self.failures = 0;
                self.gateway_failures = 0;
                self.local_failures = 0;
            }
        }
        too_often && outliers.ejects
    }

    fn eject(&mut self, now: Instant, outliers: &Outliers) -> Duration {
        if let Some(since) = self.free_since.take() {
            let intervals = (now - since).as_nanos() / outliers.interval.as_nanos().max(1);
            let forgotten = u32::try_from(intervals).unwrap_or(u32::MAX);
            self.ejections = self.ejections.saturating_sub(forgotten);
        }
        self.ejections = self.ejections.saturating_add(1);
        let longest = MAX_EJECTION.max(outliers.base);
        let time = outliers.base.saturating_mul(self.ejections).min(longest);
        self.failures = 0;
        self.gateway_failures = 0;
        self.local_failures = 0;
        self.ejected = Some(Ejected {
            until: now + time,
            trial: None,
        });
        time
    }

    /// Whether nothing is remembered that would make a difference for long.
    pub(super) fn is_blank(&self, now: Instant) -> bool {
        let counts = [self.failures, self.gateway_failures, self.local_failures];
        let is_over = |ejected: Ejected| ejected.until + MAX_EJECTION < now;
        counts == [0; 3] && self.ejected.is_none_or(is_over)
    }
}

/// Whether an outcome is one of those that a target is ejected for.
fn counts(outliers: &Outliers, outcome: Outcome) -> bool {
    match outcome {
        Outcome::Connected => false,
        Outcome::Failed => match outliers.local_failures {
            Some(limit) => limit > 0,
            None => outliers.failures > 0 || outliers.gateway_failures > 0,
        },
        Outcome::Answered(status) => {
            (outliers.failures > 0 && (500..=599).contains(&status))
                || (outliers.gateway_failures > 0 && (502..=504).contains(&status))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn outliers() -> Outliers {
        Outliers {
            failures: 3,
            base: 10 * SECOND,
            ..Outliers::default()
        }
    }

    /// Tries once, if it may be. Gives whether it might.
    fn tried(health: &mut Health, now: Instant, outliers: &Outliers, outcome: Outcome) -> bool {
        match health.admit(now, outliers) {
            Ok(trial) => {
                health.note(now, outliers, outcome, trial);
                true
            }
            Err(_) => false,
        }
    }

    #[test]
    fn it_is_refused_after_so_many_failures_in_a_row() {
        use Outcome::{Answered, Connected, Failed};
        let split = Outliers {
            local_failures: Some(2),
            ..outliers()
        };
        let gateway = Outliers {
            failures: 0,
            gateway_failures: 2,
            ..outliers()
        };
        let never = Outliers {
            failures: 0,
            ..outliers()
        };
        let not_at_all = Outliers {
            ejects: false,
            ..outliers()
        };
        for (outliers, outcomes, expected) in [
            (
                outliers(),
                &[Answered(500), Answered(503), Failed][..],
                true,
            ),
            (outliers(), &[Failed, Failed, Answered(499), Failed], false),
            (
                outliers(),
                &[Failed, Failed, Connected, Failed, Failed],
                false,
            ),
            (gateway, &[Answered(502), Answered(504)], true),
            (gateway, &[Failed, Answered(503)], true),
            (
                gateway,
                &[Answered(502), Answered(500), Answered(504)],
                false,
            ),
            (split, &[Failed, Failed], true),
            (
                split,
                &[Failed, Answered(500), Failed, Answered(500)],
                false,
            ),
            (
                split,
                &[Answered(500), Failed, Answered(500), Answered(500)],
                true,
            ),
            (split, &[Failed, Connected, Failed], false),
            (never, &[Failed; 9], false),
            (not_at_all, &[Failed; 9], false),
        ] {
            let now = Instant::now();
            let mut health = Health::default();
            for outcome in outcomes {
                assert!(tried(&mut health, now, &outliers, *outcome), "{outcomes:?}");
            }
            let refused = health.admit(now, &outliers).is_err();
            assert_eq!(refused, expected, "{outliers:?} {outcomes:?}");
        }
    }

    #[test]
    fn each_time_in_a_row_it_takes_longer_until_one_try_succeeds() {
        let outliers = outliers();
        let start = Instant::now();
        let mut health = Health::default();
        for _ in 0..3 {
            assert!(tried(&mut health, start, &outliers, Outcome::Failed));
        }
        let mut now = start;
        // A trial that fails ejects at once; times grow by the base, to five minutes.
        for times in [1, 2, 3, 4] {
            let wait = health.admit(now, &outliers).unwrap_err();
            assert_eq!(wait, times * 10 * SECOND);
            now += wait;
            assert!(tried(&mut health, now, &outliers, Outcome::Answered(503)));
        }
        now += 50 * SECOND;
        assert!(tried(&mut health, now, &outliers, Outcome::Answered(200)));
        assert!(tried(&mut health, now, &outliers, Outcome::Answered(500)));
        // Two intervals later two times are forgotten: the next is the fourth.
        now += 20 * SECOND;
        for _ in 0..2 {
            assert!(tried(&mut health, now, &outliers, Outcome::Failed));
        }
        assert_eq!(health.admit(now, &outliers), Err(40 * SECOND));
        let mut ill = Health {
            ejections: 1000,
            ..Health::default()
        };
        assert_eq!(ill.eject(now, &outliers), MAX_EJECTION);
        let long = Outliers {
            base: 2 * MAX_EJECTION,
            ..outliers
        };
        assert_eq!(ill.eject(now, &long), 2 * MAX_EJECTION);
    }

    #[test]
    fn one_at_a_time_tries_whether_it_is_well() {
        let outliers = outliers();
        let now = Instant::now();
        let mut health = Health::default();
        let before = health.admit(now, &outliers).unwrap();
        for _ in 0..3 {
            tried(&mut health, now, &outliers, Outcome::Failed);
        }
        // What began before it was ejected makes no difference.
        health.note(now, &outliers, Outcome::Answered(200), before);
        assert!(health.admit(now, &outliers).is_err());
        let now = now + 10 * SECOND;
        let first = health.admit(now, &outliers).unwrap();
        assert!(first.is_some());
        assert!(health.admit(now, &outliers).is_err());
        health.note(now, &outliers, Outcome::Answered(200), before);
        assert!(health.admit(now, &outliers).is_err());
        // One that is given up, or takes too long, makes room for the next.
        health.give_up(first.unwrap());
        let second = health.admit(now, &outliers).unwrap();
        assert_eq!(health.admit(now, &outliers), Err(10 * SECOND));
        let now = now + 10 * SECOND;
        let third = health.admit(now, &outliers).unwrap();
        assert_eq!(health.note(now, &outliers, Outcome::Failed, second), None);
        health.give_up(second.unwrap());
        assert!(health.admit(now, &outliers).is_err());
        assert_eq!(health.note(now, &outliers, Outcome::Connected, third), None);
        assert_eq!(health.admit(now, &outliers), Ok(None));
    }

    #[test]
    fn policy_may_change_its_mind() {
        let outliers = outliers();
        let now = Instant::now();
        let mut health = Health::default();
        for _ in 0..3 {
            tried(&mut health, now, &outliers, Outcome::Failed);
        }
        assert!(!health.is_blank(now));
        let never = Outliers {
            ejects: false,
            ..outliers
        };
        assert_eq!(health.admit(now, &never), Ok(None));
        assert!(health.is_blank(now));
    }
}
