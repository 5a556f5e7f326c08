//! `underpass status`: asks a running agent.

mod client;
mod text;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::ValueEnum;
use serde_json::Value;

use super::{EXIT_FAILURE, Failure};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Where the agent has its admin interface
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    admin_addr: SocketAddr,

    /// What to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// What the agent answered
    Json,
    /// Lines for people
    Text,
}

/// Succeeds if there is an agent and it is ready.
pub(super) fn main(args: &Args) -> Result<ExitCode, Failure> {
    let status = client::ask(args.admin_addr)?;
    match args.output {
        Output::Json => say(&format_args!("{status:#}")),
        Output::Text => say(&text::Text(&status)),
    }
    Ok(match status["ready"] {
        Value::Bool(true) => ExitCode::SUCCESS,
        _ => ExitCode::from(EXIT_FAILURE),
    })
}

#[expect(clippy::print_stdout, reason = "what the user asked for")]
fn say(what: &dyn std::fmt::Display) {
    println!("{what}");
}
