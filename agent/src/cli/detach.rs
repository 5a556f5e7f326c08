//! `underpass detach`.

use std::process::ExitCode;

use super::Failure;
use crate::capture::cgroup::{self, Hierarchy};
use crate::capture::pins;

/// Removes what agents that are gone left behind. Those that still run keep what is theirs.
pub(super) fn main() -> Result<ExitCode, Failure> {
    let mut found = false;
    for directory in pins::leftovers() {
        let path = directory.path.display();
        found = true;
        if directory.alive {
            say(&format_args!("left alone {path}: its agent is running"));
            continue;
        }
        pins::release(&directory.path)?;
        say(&format_args!("removed the programs pinned in {path}"));
    }
    let hierarchy = Hierarchy::find()?;
    for path in cgroup::leftovers(hierarchy.root()) {
        found = true;
        cgroup::end(&path)?;
        say(&format_args!("removed cgroup {}", path.display()));
    }
    if !found {
        say(&"nothing was left behind");
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "what the user asked for")]
fn say(what: &dyn std::fmt::Display) {
    println!("{what}");
}
