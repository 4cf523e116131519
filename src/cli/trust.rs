//! `clawmatrix trust`: whose keys are believed. Through the running node, or on its state folder
//! when it does not run.

use http::Method;
use serde_json::{Value, json};

use super::{
    Context,
    client::{Client, block_on},
    error::{CONFIG, CliError, USAGE},
    locate,
    output::{self, Paint, clean},
};
use crate::{
    config::{Config, TrustConfig},
    control::trust::{self, Change},
    crypto::identity::{KeyId, PublicKey},
    ids::NodeId,
    state::StateDir,
    trust::{TrustError, TrustStore},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List known nodes with their keys, denied keys, and refused ones that wait for you.
    List,
    /// Trust a key for a node, before or after its first contact.
    Add {
        /// The node's name.
        node: NodeId,
        /// Its public key, as `clawmatrix identity` prints it there.
        key: PublicKey,
        /// A label for `allow` lists; may be given more than once.
        #[arg(long, value_name = "LABEL")]
        label: Vec<String>,
    },
    /// Confirm a key that has shown up for a node; it replaces the one known before.
    Accept {
        /// The node's name.
        node: NodeId,
        /// The short form of the key: compare it with `clawmatrix identity` there.
        key_id: KeyId,
    },
    /// Deny a key everywhere and close its links.
    Deny {
        /// The short form of the key.
        key_id: KeyId,
    },
    /// Forget a node's key, or lift the denial of a key.
    Remove {
        /// The node's name, or the short form of a denied key.
        #[arg(value_name = "NODE|KEYID")]
        what: String,
    },
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let change = match &args.verb {
        Verb::List => {
            let keys = match Client::find(&context.common)? {
                Some(client) => block_on(client.get("/api/v1/trust"))?,
                None => offline(context, |store| Ok(json!(trust::keys(store))))?,
            };
            if context.common.json {
                output::json(&keys)?;
            } else {
                output::print(&render(&keys, context.paint))?;
            }
            return Ok(0);
        }
        Verb::Add { node, key, label } => Change::Add {
            node: node.clone(),
            key: *key,
            labels: label.clone(),
        },
        Verb::Accept { node, key_id } => Change::Accept {
            node: node.clone(),
            key_id: *key_id,
        },
        Verb::Deny { key_id } => Change::Deny { key_id: *key_id },
        Verb::Remove { what } => removed(what)?,
    };
    match Client::find(&context.common)? {
        Some(client) => {
            let body = json!(change);
            block_on(client.call(Method::POST, "/api/v1/trust", Some(&body)))?;
        }
        None => offline(context, |store| trust::apply(store, &change))?,
    }
    if context.common.json {
        output::json(&json!({"changed": true}))?;
    } else {
        output::line(&told(&change))?;
    }
    Ok(0)
}

/// A key id has eight groups of four digits; a node may have such a name, so a name that is known
/// to be one can be given as `node` only when it is no key id.
fn removed(what: &str) -> Result<Change, CliError> {
    if let Ok(key_id) = what.parse::<KeyId>() {
        return Ok(Change::Lift { key_id });
    }
    let node = what.parse::<NodeId>().map_err(|error| {
        CliError::with(USAGE, error.to_string(), "give a node's name or a key id")
    })?;
    Ok(Change::Remove { node })
}

fn told(change: &Change) -> String {
    match change {
        Change::Add { node, key, .. } => format!("{node} is trusted with key {}", key.id()),
        Change::Accept { node, key_id } => format!("{node} is trusted with key {key_id}"),
        Change::Deny { key_id } => format!("key {key_id} is denied"),
        Change::Remove { node } => format!("the key of {node} is forgotten"),
        Change::Lift { key_id } => format!("key {key_id} is no longer denied"),
    }
}

/// Works on the state folder of a node that does not run, and keeps it from starting meanwhile.
fn offline<T>(
    context: &Context,
    work: impl FnOnce(&TrustStore) -> Result<T, TrustError>,
) -> Result<T, CliError> {
    let root = locate::state_dir(&context.common)?;
    let state = StateDir::open(&root)?;
    let _lock = state.lock()?;
    // Keys in the configuration count too, where it can be found.
    let config = if Some(&root) == locate::own_state_dir().as_ref() {
        locate::own_config_file()
            .filter(|file| file.exists())
            .and_then(|file| Config::from_file(&file).ok())
    } else {
        None
    };
    let (none, no_peers) = (TrustConfig::default(), Vec::new());
    let (given, peers) = config
        .as_ref()
        .map_or((&none, &no_peers), |c| (&c.trust, &c.peers));
    let store = TrustStore::load(&state, given, peers).map_err(|e| failed(&e))?;
    work(&store).map_err(|e| failed(&e))
}

fn failed(error: &TrustError) -> CliError {
    match error {
        TrustError::Damaged { .. } | TrustError::TwoKeys(_) => {
            CliError::with(CONFIG, error.to_string(), error.hint())
        }
        _ => CliError::failed(error.to_string(), error.hint()),
    }
}

fn render(keys: &Value, paint: Paint) -> String {
    let none = Vec::new();
    let list = |key: &str| keys[key].as_array().unwrap_or(&none);
    let text = |value: &Value| clean(value.as_str().unwrap_or_default());
    let mut out = String::new();
    if list("nodes").is_empty() {
        out.push_str("no keys are known yet\n");
    }
    for node in list("nodes") {
        let mut notes = vec![text(&node["level"])];
        if node["via"] == "config" {
            notes.push("from the configuration".to_owned());
        }
        if node["denied"] == true {
            notes.push("denied".to_owned());
        }
        let labels: Vec<String> = node["labels"]
            .as_array()
            .into_iter()
            .flatten()
            .map(text)
            .collect();
        if !labels.is_empty() {
            notes.push(format!("labels: {}", labels.join(" ")));
        }
        out.push_str(&format!(
            "{} ({})\n  Key id: {}\n  Public key: {}\n",
            paint.bold(&text(&node["node"])),
            notes.join(", "),
            text(&node["keyId"]),
            text(&node["key"])
        ));
    }
    if !list("denied").is_empty() {
        out.push_str(&format!("\n{}\n", paint.bold("Denied keys")));
        for key in list("denied") {
            out.push_str(&format!("  {}\n", text(key)));
        }
    }
    if !list("conflicts").is_empty() {
        out.push_str(&format!("\n{}\n", paint.bold("Refused, waiting for you")));
        for conflict in list("conflicts") {
            out.push_str(&format!(
                "  {} with key {} (refused {}x)\n    {}\n",
                text(&conflict["node"]),
                text(&conflict["keyId"]),
                conflict["count"],
                text(&conflict["hint"])
            ));
        }
    }
    out
}
