//! The `underpass` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    underpass::cli::main()
}
