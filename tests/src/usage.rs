//! What a process has used of processors, and what it holds.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

use crate::Must as _;

/// What a process has used of processors since its start, in seconds; the kernel tells it in steps
/// of ten milliseconds.
#[track_caller]
pub fn processor_time(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).must("read its stat");
    // proc(5): utime and stime are the 14th and 15th field; the second may have spaces in it.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    ticks / per_second as f64
}

/// What a process has in memory, in KiB.
#[track_caller]
pub fn resident(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).must("read its status");
    number_after(&status, "VmRSS:")
}

/// The number that follows `what` at the beginning of a line; not a number if there is none.
pub fn number_after(text: &str, what: &str) -> f64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(what));
    let number = rest.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn this_process_has_memory_and_uses_time() {
        let pid = std::process::id();
        let before = processor_time(pid);
        let start = Instant::now();
        while processor_time(pid) == before {
            assert!(start.elapsed() < Duration::from_secs(20));
        }
        assert!(resident(pid) > 100.0);
    }

    #[test]
    fn a_line_that_is_not_there_is_no_number() {
        assert_eq!(number_after("a: 1\nb: 2 kB\n", "b:"), 2.0);
        assert!(number_after("a: 1\n", "b:").is_nan());
    }
}
