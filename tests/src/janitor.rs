//! Cleaning up behind a test process that could not do so itself.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::Must as _;
use crate::spawn::{Entry, enter};

/// Waits for the end of its standard input, which comes when the test process lets go of it in
/// whatever way, and then removes what is left of the world.
///
/// Dying with the parent (PR_SET_PDEATHSIG) would not do: it is bound to the spawning thread, it
/// is lost when a server changes its user, and it reaches no grandchildren.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
round=0
while [ -d "$1" ] && [ $round -lt 100 ]; do
    [ $round -gt 0 ] && sleep 0.05
    echo 1 >"$1/cgroup.kill"
    find "$1" -depth -type d -exec rmdir {} \;
    round=$((round + 1))
done 2>/dev/null
rm -rf "$2"
"#;

/// A process that outlives the test process just long enough to remove its cgroup, with all
/// processes in it, and its directory.
pub struct Janitor(Child);

impl Janitor {
    /// Starts a janitor for one world.
    pub fn start(cgroup: &Path, dir: &Path) -> Self {
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(SCRIPT)
            .arg("underpass-janitor")
            .arg(cgroup)
            .arg(dir);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        enter(
            &mut command,
            Entry {
                new_session: true,
                ..Entry::default()
            },
        );
        Self(command.spawn().must("start the janitor"))
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
