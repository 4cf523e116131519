//! `clawmatrix identity`: the public key others may put into `peers[].key`; and `identity rotate`, which
//! prepares another one for the next start.

use serde_json::json;

use super::{
    Context,
    client::{Client, block_on},
    error::{CONFIG, CliError},
    locate, output,
};
use crate::{
    config::Config,
    crypto::identity::Identity,
    ids::NodeId,
    mesh::rotation::{self, RotationError},
    state::StateDir,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a new key, signed by the old one, which the node takes at its next start.
    Rotate,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let folder = locate::state_dir(&context.common)?;
    if !folder.join("identity.key").exists() {
        return Err(CliError::failed(
            format!("there is no key in `{}` yet", folder.display()),
            "the node makes it at its first start: `clawmatrix run`, or start the OpenClaw gateway",
        ));
    }
    let state = StateDir::open(&folder)?;
    let identity = Identity::load_or_create(&state, None)
        .map_err(|error| CliError::with(CONFIG, error.to_string(), error.hint()))?;
    match args.verb {
        None => show(context, &state, &identity),
        Some(Verb::Rotate) => rotate(context, &state, &identity),
    }
}

fn show(context: &Context, state: &StateDir, identity: &Identity) -> Result<u8, CliError> {
    let public = identity.public();
    let next = rotation::prepared(state, public).map_err(|error| failed(&error))?;
    if context.common.json {
        let mut shown = json!({"publicKey": public.to_string(), "keyId": public.id().to_string()});
        if let Some(next) = next {
            shown["next"] = json!({"publicKey": next.to_string(), "keyId": next.id().to_string()});
        }
        output::json(&shown)?;
    } else {
        output::line(&format!("Public key: {public}"))?;
        output::line(&format!("Key id: {}", public.id()))?;
        if let Some(next) = next {
            output::line(&format!(
                "From the next start: {next}, key id {}",
                next.id()
            ))?;
        }
    }
    Ok(0)
}

fn rotate(context: &Context, state: &StateDir, identity: &Identity) -> Result<u8, CliError> {
    let node = our_name(context, identity)?;
    let new = rotation::prepare(state, &node, identity).map_err(|error| failed(&error))?;
    let (old, new) = (identity.public(), new.public());
    if context.common.json {
        output::json(&json!({
            "node": node,
            "keyId": old.id().to_string(),
            "next": {"publicKey": new.to_string(), "keyId": new.id().to_string()},
        }))?;
    } else {
        output::line(&format!(
            "{node} gives up key {} for {} at its next start; nodes that know the old key follow.\n\
             Restart it now: the service, or `openclaw plugins reload clawmatrix`.\n\
             Public key: {new}",
            old.id(),
            new.id()
        ))?;
    }
    Ok(0)
}

/// The name of the node whose key lies here: as it says when it runs, else as its configuration does.
fn our_name(context: &Context, identity: &Identity) -> Result<NodeId, CliError> {
    let unknown = || {
        CliError::failed(
            "the name of this node is not known here",
            "start it first: the new key then comes into force at the next start",
        )
    };
    if let Some(client) = Client::find(&context.common)? {
        let status = block_on(client.get("/api/v1/status"))?;
        if status["keyId"] != identity.public().id().to_string() {
            return Err(failed(&RotationError::Foreign));
        }
        let name = status["nodeId"].as_str().unwrap_or_default();
        return name.parse().map_err(|_| unknown());
    }
    let own = Some(locate::state_dir(&context.common)?) == locate::own_state_dir();
    let file = locate::own_config_file().filter(|file| own && file.exists());
    let config = file.and_then(|file| Config::from_file(&file).ok());
    let config = config.ok_or_else(unknown)?;
    if config.identity_file.is_some() || config.identity_seed.is_some() {
        return Err(failed(&RotationError::Foreign));
    }
    Ok(config.node_id)
}

fn failed(error: &RotationError) -> CliError {
    CliError::failed(error.to_string(), error.hint())
}
