//! Load on a world: the program `load` as a workload, and what it counts.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::World;
use crate::process::Running;

/// How its last line begins.
pub const END: &str = "end";
/// How a line about a wrong answer begins.
pub const WRONG: &str = "wrong";

/// A running load.
pub struct Load(Running);

impl Load {
    /// Starts `program` against `targets`; each of `kinds` is `KIND=THREADS:MILLISECONDS`.
    #[track_caller]
    pub fn start(world: &World, program: &Path, targets: &[SocketAddr], kinds: &[&str]) -> Self {
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let command = world.host().command(program).in_cgroup(world.workload());
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

    /// Lets every connection end, and takes the final counts; panics if an answer was wrong.
    #[track_caller]
    pub fn finish(self) -> Counts {
        self.0.signal(Signal::SIGTERM);
        let said = self.0.finish(Duration::from_secs(60)).expect_success();
        assert_eq!(wrong(&said.stdout), Vec::<String>::new(), "wrong answers");
        assert!(said.stdout.contains(END), "no last line: {said:?}");
        Counts::last_of(&said.stdout)
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
    use super::Counts;

    #[test]
    fn the_last_complete_line_counts() {
        let said = "a.ok=1\nwrong answer\na.ok=2 b.reset=3 b.ok=4\nb.ok=5";
        let counts = Counts::last_of(said);
        assert_eq!(counts.of("a", "ok"), 2);
        assert_eq!(counts.all("ok"), 6);
        assert_eq!(counts.failed(), 3);
        assert_eq!(counts.to_string(), "a.ok 2, b.ok 4, b.reset 3");
        assert_eq!(Counts::last_of("a.ok=1"), Counts::default());
    }
}
