//! `underpass status`: asks a running agent.

mod client;
mod text;

use std::net::SocketAddr;
use std::process::ExitCode;

use serde_json::Value;

use super::options::OutputFormat;
use super::{EXIT_FAILURE, Failure, say};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Where the agent has its admin interface
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    admin_addr: SocketAddr,

    /// What to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
}

/// Succeeds if there is an agent and it is ready.
pub(super) fn main(args: &Args) -> Result<ExitCode, Failure> {
    let status = client::ask(args.admin_addr)?;
    match args.output {
        OutputFormat::Json => say(&format_args!("{status:#}")),
        OutputFormat::Text => say(&text::Text(&status)),
    }
    Ok(match status["ready"] {
        Value::Bool(true) => ExitCode::SUCCESS,
        _ => ExitCode::from(EXIT_FAILURE),
    })
}
