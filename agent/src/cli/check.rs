//! `underpass check`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{EXIT_USAGE, Failure, complain};
use crate::policy::{self, Options, Paths};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Policy files, and directories of them
    #[arg(required = true)]
    paths: Vec<PathBuf>,
}

/// Says nothing of a valid policy but what its author should know; of a bad one, a line a problem.
pub(super) fn main(args: &Args) -> Result<ExitCode, Failure> {
    let paths = Paths {
        policy: args.paths.clone(),
        secrets: Vec::new(),
    };
    match policy::load(&paths, &Options::default()) {
        Ok(policy) => {
            for warning in policy.warnings() {
                complain(&format_args!("warning: {warning}"));
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            for problem in error.problems() {
                say(problem);
            }
            Ok(ExitCode::from(EXIT_USAGE))
        }
    }
}

#[expect(clippy::print_stdout, reason = "what the user asked for")]
fn say(what: &dyn std::fmt::Display) {
    println!("{what}");
}
