//! What this node must have, told before anything is tried that would fail with a bare errno.

use procfs::process::Process;
use procfs::sys::kernel::Version;

use super::CaptureError;
use super::cgroup::Hierarchy;
use crate::capabilities;

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
    let missing = capabilities::missing(status.capeff);
    if !missing.is_empty() {
        return Err(CaptureError::Capabilities(missing));
    }
    Hierarchy::find()
}
