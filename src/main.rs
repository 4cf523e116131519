//! The `clawmatrix` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    clawmatrix::cli::main()
}
