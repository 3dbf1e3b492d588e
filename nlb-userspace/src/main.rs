//! The `nlb` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    nlb::cli::run()
}
