//! The process itself, read from `/proc` on every scrape.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use prometheus::Error;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::family::Family;

/// Metrics named as every client library of Prometheus names them. One that cannot be read is
/// left out of the scrape.
#[derive(Clone, Debug)]
pub(super) struct ProcessCollector {
    open_fds: Family,
    max_fds: Family,
    resident_memory: Family,
}

impl ProcessCollector {
    pub(super) fn new() -> Result<Self, Error> {
        Ok(Self {
            open_fds: Family::gauge("process_open_fds", "Number of open file descriptors.", None)?,
            max_fds: Family::gauge(
                "process_max_fds",
                "Maximum number of open file descriptors.",
                None,
            )?,
            resident_memory: Family::gauge(
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
                None,
            )?,
        })
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![
            self.open_fds.desc(),
            self.max_fds.desc(),
            self.resident_memory.desc(),
        ]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        [
            (&self.open_fds, open_fds()),
            (&self.max_fds, max_fds()),
            (&self.resident_memory, resident_memory()),
        ]
        .into_iter()
        .filter_map(|(family, value)| Some(family.single(value?)))
        .collect()
    }
}

fn open_fds() -> Option<u64> {
    let listed = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    // The descriptor that lists the directory is listed too.
    Some(listed.saturating_sub(1))
}

fn max_fds() -> Option<u64> {
    let (soft, _hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    Some(soft)
}

fn resident_memory() -> Option<u64> {
    resident_memory_of(&fs::read_to_string("/proc/self/status").ok()?)
}

/// `VmRSS` of proc_pid_status(5), which is in KiB.
fn resident_memory_of(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t  999 kB\nVmRSS:\t    1234 kB\nThreads:\t1\n";
        assert_eq!(resident_memory_of(status), Some(1234 * 1024));
        assert_eq!(resident_memory_of("Name:\tkthread\n"), None);
    }

    #[test]
    fn the_numbers_are_of_this_process() {
        let held: Vec<_> = (0..50)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        assert!(open_fds().unwrap() >= held.len() as u64);
        assert!(max_fds().unwrap() >= open_fds().unwrap());
        assert!(resident_memory().unwrap() > 64 * 1024);
    }
}
