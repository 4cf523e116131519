//! `clawmatrix secret`.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;

use super::{Context, error::CliError, output};
use crate::ids::random_bytes;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Print a new cluster secret: 32 random bytes as text.
    New,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    match args.verb {
        Verb::New => {
            let secret = generate();
            if context.common.json {
                output::json(&json!({ "secret": secret }))?;
            } else {
                output::line(&secret)?;
            }
        }
    }
    Ok(0)
}

/// A cluster secret of 256 random bits.
pub(super) fn generate() -> String {
    URL_SAFE_NO_PAD.encode(random_bytes::<32>())
}
