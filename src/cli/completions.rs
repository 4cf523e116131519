//! `clawmatrix completions`.

use clap::CommandFactory as _;

use super::{Cli, error::CliError, output};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell.
    shell: clap_complete::Shell,
}

pub(super) fn run(args: &Args) -> Result<u8, CliError> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "clawmatrix", &mut text);
    output::print(&String::from_utf8_lossy(&text))?;
    Ok(0)
}
