//! `clawmatrix version`.

use serde_json::json;

use super::{Context, error::CliError, output};

pub(super) fn run(context: &Context) -> Result<u8, CliError> {
    let version = env!("CARGO_PKG_VERSION");
    if context.common.json {
        output::json(&json!({
            "name": "clawmatrix",
            "version": version,
            "os": std::env::consts::OS,
            "arch": std::env::consts::ARCH,
        }))?;
    } else {
        output::line(&format!("clawmatrix {version}"))?;
    }
    Ok(0)
}
