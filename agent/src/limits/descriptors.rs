//! File descriptors: every connection needs two.

use std::fmt;
use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What a connection holds: the workload's socket and the one towards the proxy.
const PER_CONNECTION: u64 = 2;

/// For everything else: maps and programs, the endpoints' connections, name servers, and the
/// second of two addresses of a proxy that are tried at a time. Connections leave it free, or half
/// of what there is if that is less.
const RESERVE: u64 = 512;

/// How many descriptors the process may have, and how many it should.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Descriptors {
    /// The soft limit that the process was started with; for children that are not ours.
    pub inherited: u64,
    /// What is allowed now.
    pub allowed: u64,
    /// What the limit on connections needs.
    pub needed: u64,
    connections: u32,
}

impl Descriptors {
    /// Whether that many connections cannot be had. `Display` says so.
    pub fn too_few(&self) -> bool {
        self.allowed < self.needed
    }
}

impl fmt::Display for Descriptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            allowed,
            needed,
            connections,
            ..
        } = self;
        write!(
            f,
            "{connections} connections (--max-connections) need {needed} file descriptors, and \
             the hard limit is {allowed} (RLIMIT_NOFILE): connections beyond it will be reset; \
             raise it (`LimitNOFILE=` of systemd, `ulimit -Hn`) or lower --max-connections"
        )
    }
}

/// Raises the soft limit of this process to the hard one, for as many connections.
///
/// # Errors
/// The limit can be neither read nor set.
pub fn raise_descriptors(connections: u32) -> io::Result<Descriptors> {
    let (inherited, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if inherited < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(Descriptors {
        inherited,
        allowed: hard,
        needed: PER_CONNECTION * u64::from(connections) + RESERVE,
        connections,
    })
}

/// How many connections the limit in force now has descriptors for, besides those that are spared
/// for others.
pub(super) fn connections_allowed(spared: u64) -> u32 {
    connections_with(soft_limit().saturating_sub(spared))
}

fn connections_with(descriptors: u64) -> u32 {
    let free = descriptors - RESERVE.min(descriptors / 2);
    u32::try_from(free / PER_CONNECTION).unwrap_or(u32::MAX)
}

/// The limit in force now; others may change it while we run.
pub(super) fn soft_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _hard)| soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_numbers_are_named_where_they_do_not_fit() {
        let descriptors = Descriptors {
            inherited: 1024,
            allowed: 4096,
            needed: 20_512,
            connections: 10_000,
        };
        assert!(descriptors.too_few());
        let text = descriptors.to_string();
        for part in ["10000 connections", "20512", "4096", "--max-connections"] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        let enough = Descriptors {
            allowed: 20_512,
            ..descriptors
        };
        assert!(!enough.too_few());
    }

    #[test]
    fn connections_leave_a_reserve() {
        assert_eq!(connections_with(20_512), 10_000);
        assert_eq!(connections_with(1024), 256);
        assert_eq!(connections_with(100), 25);
        assert_eq!(connections_with(0), 0);
        assert_eq!(connections_with(u64::MAX), u32::MAX, "no limit");
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard / 2, hard).unwrap();
        let descriptors = raise_descriptors(10).unwrap();
        assert_eq!(descriptors.inherited, hard / 2);
        assert_eq!(descriptors.allowed, hard);
        assert_eq!(soft_limit(), hard);
    }
}
