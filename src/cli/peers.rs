//! `clawmatrix peers`: JSON, for people and scripts alike.

use super::{
    Context,
    client::{Client, block_on},
    error::CliError,
    output,
};

pub(super) fn run(context: &Context) -> Result<u8, CliError> {
    let client = Client::open(&context.common)?;
    let peers = block_on(client.get("/api/v1/peers"))?;
    output::json(&peers)?;
    Ok(0)
}
