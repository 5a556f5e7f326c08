//! Load on a world: the program `load` as a workload, and what it counts.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};

use crate::process::Running;
use crate::{Must as _, World, poll};

/// How its last line begins.
pub const END: &str = "end";
/// How a line about a wrong answer begins.
pub const WRONG: &str = "wrong";
/// How a line about a connection that failed begins.
pub const FAILED: &str = "failed";

/// This moment, in nanoseconds, for all processes of the machine.
pub fn now() -> u128 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).must("read the clock");
    Duration::from(now).as_nanos()
}

/// A running load.
pub struct Load(Running);

impl Load {
    /// Starts `program` (`load`) against `targets`; each of `kinds` is `KIND=THREADS:MILLISECONDS`.
    /// It says every `interval` what it has counted.
    #[track_caller]
    pub fn start(
        world: &World,
        program: &Path,
        interval: Duration,
        targets: &[SocketAddr],
        kinds: &[&str],
    ) -> Self {
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let command = world.host().command(program).in_cgroup(world.workload());
        let command = command.arg(interval.as_millis().to_string());
        Self(command.arg(targets.join(",")).args(kinds).start())
    }

    /// What it has counted so far.
    #[track_caller]
    pub fn counts(&mut self) -> Counts {
        assert!(self.0.is_running(), "the load ended\n{}", self.0.tails());
        Counts::last_of(&self.0.stdout())
    }

    /// The answers that were not the target's own, or to somebody else.
    pub fn wrong(&self) -> Vec<String> {
        wrong(&self.0.stdout())
    }

    /// Waits until `condition` holds for what it has counted.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, condition: impl Fn(&Counts) -> bool) {
        let seconds = Duration::from_secs(20);
        let reached = poll(seconds, || condition(&self.counts()).then_some(()));
        assert!(reached.is_some(), "{what}: {}", self.counts());
    }

    /// Lets every connection end, and takes the final counts and the connections that failed;
    /// panics if an answer was wrong.
    #[track_caller]
    pub fn finish(self) -> (Counts, Vec<Failed>) {
        self.0.signal(Signal::SIGTERM);
        let said = self.0.finish(Duration::from_secs(60)).expect_success();
        assert_eq!(wrong(&said.stdout), Vec::<String>::new(), "wrong answers");
        assert!(said.stdout.contains(END), "no last line: {said:?}");
        let failed = said.stdout.lines().filter_map(Failed::read).collect();
        (Counts::last_of(&said.stdout), failed)
    }
}

/// A connection that was not served from beginning to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Which kind it was.
    pub kind: String,
    /// How it ended.
    pub outcome: String,
    /// Before it called `connect`, by [`now`].
    pub start: u128,
    /// After it had failed.
    pub end: u128,
}

impl Failed {
    fn read(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix(FAILED)?.split_whitespace();
        Some(Self {
            kind: words.next()?.to_owned(),
            outcome: words.next()?.to_owned(),
            start: words.next()?.parse().ok()?,
            end: words.next()?.parse().ok()?,
        })
    }
}

fn wrong(said: &str) -> Vec<String> {
    said.lines()
        .filter(|line| line.starts_with(WRONG))
        .map(str::to_owned)
        .collect()
}

/// How many connections of each kind came to which end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// How many connections of `kind` ended as `outcome`.
    pub fn of(&self, kind: &str, outcome: &str) -> u64 {
        let key = format!("{kind}.{outcome}");
        self.0.get(&key).copied().unwrap_or_default()
    }

    /// How many of all kinds did.
    pub fn all(&self, outcome: &str) -> u64 {
        self.sum(|is| is == outcome)
    }

    /// How many were not served from beginning to end.
    pub fn failed(&self) -> u64 {
        self.sum(|is| is != "ok")
    }

    fn sum(&self, outcome: impl Fn(&str) -> bool) -> u64 {
        let counted = self.0.iter();
        counted
            .filter(|(key, _)| key.split('.').nth(1).is_some_and(&outcome))
            .map(|(_, count)| count)
            .sum()
    }

    /// From the last complete line of counts.
    fn last_of(said: &str) -> Self {
        let complete = said.rfind('\n').map_or("", |end| &said[..end]);
        let line = complete.lines().rev().find(|line| line.contains('='));
        let pairs = line.unwrap_or_default().split(' ');
        let counts = pairs.filter_map(|pair| {
            let (key, count) = pair.split_once('=')?;
            Some((key.to_owned(), count.parse().ok()?))
        });
        Self(counts.collect())
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.0.iter().map(|(key, count)| format!("{key} {count}"));
        f.write_str(&pairs.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, Failed};

    #[test]
    fn the_last_complete_line_counts() {
        let said = "a.ok=1\nfailed b reset 7 9\na.ok=2 b.reset=3 b.ok=4\nb.ok=5";
        let counts = Counts::last_of(said);
        assert_eq!(counts.of("a", "ok"), 2);
        assert_eq!(counts.all("ok"), 6);
        assert_eq!(counts.failed(), 3);
        assert_eq!(counts.to_string(), "a.ok 2, b.ok 4, b.reset 3");
        assert_eq!(Counts::last_of("a.ok=1"), Counts::default());
        let failed: Vec<_> = said.lines().filter_map(Failed::read).collect();
        assert_eq!((failed.len(), failed[0].start, failed[0].end), (1, 7, 9));
    }
}
