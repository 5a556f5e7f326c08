//! What this node must have, told before anything is tried that would fail with a bare errno.

use procfs::process::Process;
use procfs::sys::kernel::Version;

use super::CaptureError;
use super::cgroup::Hierarchy;

/// Capabilities by bit number (linux/capability.h). CAP_SYS_ADMIN stands in for CAP_BPF.
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

/// The oldest kernel that has what the programs need.
const OLDEST: Version = Version {
    major: 5,
    minor: 10,
    patch: 0,
};

/// Checks kernel, capabilities and cgroup v2.
///
/// # Errors
/// The first thing that is missing, and how to get it.
pub fn preflight() -> Result<Hierarchy, CaptureError> {
    let unreadable = |what| move |source| CaptureError::Proc { what, source };
    let version = Version::current().map_err(unreadable("the kernel version"))?;
    if version < OLDEST {
        return Err(CaptureError::Kernel {
            found: format!("{}.{}.{}", version.major, version.minor, version.patch),
        });
    }
    let status = Process::myself()
        .and_then(|process| process.status())
        .map_err(unreadable("this process's capabilities"))?;
    let missing = missing_capabilities(status.capeff);
    if !missing.is_empty() {
        return Err(CaptureError::Capabilities(missing));
    }
    Hierarchy::find()
}

fn missing_capabilities(effective: u64) -> Vec<&'static str> {
    let has = |capability| effective & capability != 0;
    let admin = has(CAP_SYS_ADMIN);
    let mut missing = Vec::new();
    for (name, present) in [
        ("CAP_BPF", admin || has(CAP_BPF)),
        ("CAP_PERFMON", admin || has(CAP_PERFMON)),
        ("CAP_NET_ADMIN", has(CAP_NET_ADMIN)),
    ] {
        if !present {
            missing.push(name);
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(
            missing_capabilities(0),
            ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]
        );
        assert_eq!(missing_capabilities(CAP_SYS_ADMIN), ["CAP_NET_ADMIN"]);
        assert!(missing_capabilities(CAP_BPF | CAP_PERFMON | CAP_NET_ADMIN).is_empty());
        assert!(missing_capabilities(u64::MAX).is_empty());
    }
}
