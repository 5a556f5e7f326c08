//! The command line. One file per verb; each turns its arguments into a configuration, runs it,
//! and says how it ended.

mod argv;
mod check;
mod detach;
mod exec;
mod explain;
mod gateway;
mod heap;
mod options;
mod run;
mod status;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::app::StartError;

/// Usage and configuration errors (EX_USAGE of sysexits.h).
const EXIT_USAGE: u8 = 64;

/// Anything else that stops us.
const EXIT_FAILURE: u8 = 1;

/// How long the last lines of the log may take to be written before the process ends.
const FLUSH: Duration = Duration::from_secs(1);

#[derive(Parser)]
#[command(
    name = "underpass",
    version,
    about = "Transparent egress tunneling: what leaves this node goes through a forward proxy",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Tunnel what the processes of this node, or of one cgroup, connect to
    Run(run::Args),
    /// Tunnel one command
    Exec(exec::Args),
    /// Check policy files
    Check(check::Args),
    /// Tell what a policy decides about a connection, and why
    Explain(explain::Args),
    /// Ask a running agent how it is
    Status(status::Args),
    /// Remove what a stopped agent left behind: programs, pins and cgroups
    Detach(detach::Args),
    /// Be a forward proxy: the other end of the tunnel
    Gateway(gateway::Args),
    /// Makes sockets for canaries; started by the agent itself
    #[command(hide = true)]
    CanaryHelper { cgroup: PathBuf },
    /// The last step before the command of `exec`; started by `exec` itself
    #[command(hide = true)]
    ExecEnter(exec::enter::Args),
    /// Ends the command of `exec` when `exec` is gone; started by `exec` itself
    #[command(hide = true)]
    ExecGuard(exec::guard::Args),
}

/// What stopped a command, and its exit status.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    error: anyhow::Error,
}

impl Failure {
    /// Wrong usage or configuration.
    fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self {
            status: EXIT_USAGE,
            error: error.into(),
        }
    }

    /// The same failure with another exit status, unless it is a usage error.
    fn with_status(mut self, status: u8) -> Self {
        if self.status != EXIT_USAGE {
            self.status = status;
        }
        self
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let status = match error.downcast_ref() {
            Some(StartError::Policy(_)) => EXIT_USAGE,
            #[cfg(feature = "kubernetes")]
            Some(StartError::Cluster(_)) => EXIT_USAGE,
            _ => EXIT_FAILURE,
        };
        Self { status, error }
    }
}

impl fmt::Display for Failure {
    /// The error and its causes on one line, each said once: many errors quote their cause.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = String::new();
        for error in self.error.chain() {
            let text = error.to_string();
            if !said.contains(&text) {
                let link = if said.is_empty() { "" } else { ": " };
                said.push_str(link);
                said.push_str(&text);
            }
        }
        f.write_str(&said)
    }
}

/// Parses the command line, runs the command and returns its exit status.
pub fn main() -> ExitCode {
    heap::share();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nowhere to tell it if even this fails.
            let _ = error.print();
            let status = if error.use_stderr() { EXIT_USAGE } else { 0 };
            return ExitCode::from(status);
        }
    };
    let result = match cli.command {
        Command::Run(args) => run::main(args),
        Command::Exec(args) => exec::main(args),
        Command::Check(args) => check::main(args),
        Command::Explain(args) => explain::main(args),
        Command::Status(args) => status::main(&args),
        Command::Detach(args) => detach::main(&args),
        Command::Gateway(args) => gateway::main(args),
        Command::CanaryHelper { cgroup } => crate::capture::serve_sockets(&cgroup)
            .map(|()| ExitCode::SUCCESS)
            .map_err(Failure::from),
        Command::ExecEnter(args) => exec::enter::main(&args),
        Command::ExecGuard(args) => exec::guard::main(&args),
    };
    result.unwrap_or_else(|failure| {
        complain(&failure);
        ExitCode::from(failure.status)
    })
}

/// Says on standard error what the user must know.
#[expect(
    clippy::print_stderr,
    reason = "the last word of a command that failed"
)]
fn complain(message: &dyn fmt::Display) {
    eprintln!("underpass: {message}");
}

/// Says on standard output what the user asked for.
#[expect(clippy::print_stdout, reason = "what the user asked for")]
fn say(what: &dyn fmt::Display) {
    println!("{what}");
}
