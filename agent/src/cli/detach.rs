//! `underpass detach`.

use std::process::ExitCode;

use super::Failure;
use crate::capture::cgroup::{self, Hierarchy};

/// Removes what agents that are gone left behind. Those that still run keep what is theirs.
pub(super) fn main() -> Result<ExitCode, Failure> {
    let hierarchy = Hierarchy::find()?;
    let leftovers = cgroup::leftovers(hierarchy.root());
    for path in &leftovers {
        cgroup::end(path)?;
        say(&format_args!("removed cgroup {}", path.display()));
    }
    if leftovers.is_empty() {
        say(&"nothing was left behind");
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "what the user asked for")]
fn say(what: &dyn std::fmt::Display) {
    println!("{what}");
}
