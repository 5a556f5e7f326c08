//! `cargo xtask <verb>`: set-up, build and tests of Underpass. One file per verb.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod cgroup;
mod crds;
mod debian;
mod demo;
mod fuzz;
mod kernels;
mod launch;
mod project;
mod report;
mod setup;
mod soak;
mod supervise;
mod test;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Measure the agent beside its peers
    Bench(bench::Arguments),
    /// Install what building and testing need
    Setup(setup::Arguments),
    /// Build the agent with its eBPF programs, and print where the binary is
    Build(build::Arguments),
    /// Write the CustomResourceDefinitions of policy, from its types
    Crds,
    /// Show the main job in a closed world: curl, tunnelled without knowing it
    Demo,
    /// Feed the parsers with inputs that nobody thought of
    Fuzz(fuzz::Arguments),
    /// Check everything: formatting, lints, documentation, unit, property and end-to-end tests
    Test(test::Arguments),
    /// Run the agent on Debian's kernels, in an emulator
    Kernels(kernels::Arguments),
    /// Keep an agent under mixed load for an hour, and see that it holds no more at the end
    Soak(soak::Arguments),
    #[command(hide = true)]
    Launch(launch::Arguments),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Setup(arguments) => setup::run(&arguments),
        Verb::Build(arguments) => build::run(&arguments),
        Verb::Crds => crds::run(),
        Verb::Demo => demo::run(),
        Verb::Fuzz(arguments) => fuzz::run(&arguments),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Kernels(arguments) => kernels::run(&arguments),
        Verb::Soak(arguments) => soak::run(&arguments),
        Verb::Launch(arguments) => launch::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::failure(&error);
            let stopped = error.downcast_ref::<supervise::Stopped>();
            stopped.map_or(ExitCode::FAILURE, |stopped| stopped.exit_code().into())
        }
    }
}
