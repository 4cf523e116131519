//! `clawmatrix identity`: the public key others may put into `peers[].key`.

use serde_json::json;

use super::{Context, error::CliError, locate, output};
use crate::{crypto::identity::Identity, state::StateDir};

pub(super) fn run(context: &Context) -> Result<u8, CliError> {
    let state = locate::state_dir(&context.common)?;
    let key = state.join("identity.key");
    if !key.exists() {
        return Err(CliError::failed(
            format!("there is no key in `{}` yet", state.display()),
            "the node makes it at its first start: `clawmatrix run`, or start the OpenClaw gateway",
        ));
    }
    let identity = Identity::load_or_create(&StateDir::open(&state)?, None)
        .map_err(|error| CliError::with(super::error::CONFIG, error.to_string(), error.hint()))?;
    let public = identity.public();
    if context.common.json {
        output::json(&json!({"publicKey": public.to_string(), "keyId": public.id().to_string()}))?;
    } else {
        output::line(&format!("Public key: {public}"))?;
        output::line(&format!("Key id: {}", public.id()))?;
    }
    Ok(0)
}
