//! Keeps the services of freshly installed packages from running.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process,
};

use anyhow::Context as _;

use crate::report;

/// Asked by packages before they start a service; refuses with exit status 101.
pub(super) const POLICY: &str = "/usr/sbin/policy-rc.d";

const MARK: &str = "# Made by `cargo xtask setup`, process ";

/// As long as it lives, packages start no service.
#[derive(Debug)]
pub(super) struct NoServices {
    /// The policy we made; None where the machine has one of its own, which rules.
    made: Option<PathBuf>,
}

impl NoServices {
    /// Forbids services by a policy at `path`, unless there is a policy already.
    pub(super) fn hold(path: &Path) -> anyhow::Result<Self> {
        if is_stale(path) {
            fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(path);
        let mut file = match file {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Ok(Self { made: None });
            }
            file => file.with_context(|| format!("making {}", path.display()))?,
        };
        // From here on, dropping this removes it again.
        let made = Self {
            made: Some(path.to_owned()),
        };
        write!(file, "#!/bin/sh\n{MARK}{}\nexit 101\n", process::id())
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(made)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.made
            && let Err(error) = fs::remove_file(path)
        {
            report::progress(format_args!(
                "warning: remove {} yourself, no service starts as long as it is there: {error}",
                path.display()
            ));
        }
    }
}

/// Whether a set-up that was killed left its policy behind.
fn is_stale(path: &Path) -> bool {
    fs::read_to_string(path)
        .ok()
        .and_then(|policy| maker(&policy))
        .is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// The process that made a policy, if it was made by a set-up.
fn maker(policy: &str) -> Option<u32> {
    policy
        .lines()
        .find_map(|line| line.strip_prefix(MARK))?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_policy_refuses_and_goes_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy-rc.d");
        let held = NoServices::hold(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o111,
            0o111
        );
        assert!(fs::read_to_string(&path).unwrap().ends_with("\nexit 101\n"));
        drop(held);
        assert!(!path.exists());
    }

    #[test]
    fn a_policy_of_the_machine_stays_untouched() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy-rc.d");
        fs::write(&path, "#!/bin/sh\nexit 0\n").unwrap();
        drop(NoServices::hold(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "#!/bin/sh\nexit 0\n");
    }

    #[test]
    fn a_policy_left_behind_is_taken_over_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy-rc.d");
        // Beyond the largest process id Linux hands out.
        fs::write(&path, format!("#!/bin/sh\n{MARK}4194305\nexit 101\n")).unwrap();
        drop(NoServices::hold(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_policy_of_a_running_set_up_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy-rc.d");
        let first = NoServices::hold(&path).unwrap();
        drop(NoServices::hold(&path).unwrap());
        assert!(path.exists());
        drop(first);
        assert!(!path.exists());
    }
}
