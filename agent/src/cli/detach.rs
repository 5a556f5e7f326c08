//! `underpass detach`.

use std::process::ExitCode;

use anyhow::{Context, anyhow};
use nix::sys::signal::{SigSet, Signal};

use super::Failure;
use crate::capture::cgroup::{self, Hierarchy};
use crate::capture::pins;

#[derive(clap::Args)]
pub(super) struct Args {
    /// When all is removed, stay until told to end, as a pod of a DaemonSet has to; fail where an agent
    /// still runs
    #[arg(long)]
    stay: bool,
}

/// Removes what agents that are gone left behind. Those that still run keep what is theirs.
pub(super) fn main(args: &Args) -> Result<ExitCode, Failure> {
    // As the first process of a container we are told nothing that we do not wait for.
    let told = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    if args.stay {
        told.thread_block().context("cannot take signals")?;
    }
    let mut found = false;
    let mut alive = 0;
    for directory in pins::leftovers() {
        let path = directory.path.display();
        found = true;
        if directory.alive {
            alive += 1;
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
    if args.stay {
        if alive > 0 {
            return Err(anyhow!("agents that still run: {alive}; stop them first").into());
        }
        told.wait().context("cannot wait for a signal")?;
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "what the user asked for")]
fn say(what: &dyn std::fmt::Display) {
    println!("{what}");
}
