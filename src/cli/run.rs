//! `clawmatrix run`: one node in the foreground. Only its arguments are here.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use super::{
    Context,
    error::{CONFIG, CliError, USAGE},
    locate,
    output::Paint,
};
use crate::{
    app::{self, Start},
    config::{self, Config, Source},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file [default: ~/.config/clawmatrix/node.json]; `-` reads standard input to
    /// its end and forgets it.
    #[arg(long, value_name = "FILE", conflicts_with = "parent")]
    config: Option<PathBuf>,
    /// Take configuration and orders from a parent process, as the OpenClaw plugin does.
    #[arg(long, value_name = "HOW", value_parser = ["stdio"])]
    parent: Option<String>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let state = match &context.common.state_dir {
        Some(dir) => dir.clone(),
        None => locate::own_state_dir().ok_or_else(|| {
            CliError::with(
                USAGE,
                "there is no place for the state folder: `HOME` is not set",
                "give `--state-dir`",
            )
        })?,
    };
    let start = if args.parent.is_some() {
        Start::Shim
    } else {
        match read(args.config.as_deref()) {
            Ok(config) => Start::Alone(Box::new(config), file(args.config.as_deref())),
            Err(error) => {
                if error.code == CONFIG {
                    app::remember(&state, error.code, &error.text(Paint::PLAIN));
                }
                return Err(error);
            }
        }
    };
    Ok(app::run(start, &state))
}

/// The file a configuration is read from; none for standard input.
fn file(named: Option<&Path>) -> Option<PathBuf> {
    if named == Some(Path::new("-")) {
        return None;
    }
    std::path::absolute(file_or_default(named).ok()?).ok()
}

/// The configuration of a node without OpenClaw.
pub(super) fn read(file: Option<&Path>) -> Result<Config, CliError> {
    if file == Some(Path::new("-")) {
        let mut text = zeroize::Zeroizing::new(Vec::new());
        std::io::stdin()
            .lock()
            .read_to_end(&mut text)
            .map_err(|error| {
                CliError::failed(format!("cannot read standard input: {error}"), "")
            })?;
        let folder = std::env::current_dir().unwrap_or_default();
        let source = Source {
            openclaw: false,
            folder: &folder,
            env: &config::process_env,
        };
        return Ok(Config::from_text(&text, &source)?);
    }
    Ok(Config::from_file(&file_or_default(file)?)?)
}

/// The named file, or the default one.
pub(super) fn file_or_default(file: Option<&Path>) -> Result<PathBuf, CliError> {
    file.map(Path::to_owned)
        .or_else(locate::own_config_file)
        .ok_or_else(|| {
            CliError::with(
                USAGE,
                "there is no default configuration: `HOME` is not set",
                "give `--config`",
            )
        })
}
