//! `underpass check`.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::options::{OutputFormat, ScopeOptions, SecretOptions};
use super::{EXIT_USAGE, Failure, complain, say};
use crate::policy::{self, Options, Problem};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Policy files, and directories of them
    #[arg(required = true)]
    paths: Vec<PathBuf>,

    #[command(flatten)]
    secrets: SecretOptions,

    #[command(flatten)]
    scope: ScopeOptions,

    /// What to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
}

/// Says nothing of a valid policy but what its author should know; of a bad one, a line a problem.
pub(super) fn main(args: Args) -> Result<ExitCode, Failure> {
    let paths = args.secrets.with(args.paths);
    let options = Options {
        root_namespace: args.scope.root_namespace(),
        ..Options::default()
    };
    let checked = policy::load(&paths, &options, None).policy;
    let (problems, warnings) = match &checked {
        Ok(policy) => (&[][..], policy.warnings()),
        Err(error) => (error.problems(), &[][..]),
    };
    match args.output {
        OutputFormat::Json => say(&format_args!(
            "{:#}",
            json!({
                "valid": problems.is_empty(),
                "problems": problems.iter().map(shown).collect::<Vec<_>>(),
                "warnings": warnings.iter().map(shown).collect::<Vec<_>>(),
            })
        )),
        OutputFormat::Text => {
            for problem in problems {
                say(problem);
            }
            for warning in warnings {
                complain(&format_args!("warning: {warning}"));
            }
        }
    }
    Ok(if checked.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_USAGE)
    })
}

fn shown(problem: &Problem) -> Value {
    json!({
        "file": problem.file(),
        "line": problem.line(),
        "object": problem.subject(),
        "key": problem.key(),
        "reason": problem.reason(),
    })
}
