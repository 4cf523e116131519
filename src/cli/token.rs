//! `clawmatrix token`: tokens of the local API. Through the running node, or on its state folder
//! when it does not run.

use http::Method;
use serde_json::{Value, json};

use super::{
    Context,
    client::{Client, block_on},
    error::{CliError, USAGE},
    locate,
    output::{self, clean},
};
use crate::{
    proxy::tokens::{Scope, TokenError, TokenStore},
    state::StateDir,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a token; it is shown once.
    Create {
        /// A name for it.
        name: String,
        /// What it may do, from `models`, `send`, `tools`, `read`, `admin`; may be given more than
        /// once [default: models].
        #[arg(long, value_name = "SCOPE", value_delimiter = ',')]
        scope: Vec<String>,
    },
    /// List the tokens, without their text.
    List,
    /// Forget a token.
    Revoke {
        /// Its name.
        name: String,
    },
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let client = Client::find(&context.common)?;
    match &args.verb {
        Verb::Create { name, scope } => {
            let scopes = scope
                .iter()
                .map(|s| s.parse::<Scope>())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| CliError::with(USAGE, error.to_string(), ""))?;
            let made = match client {
                Some(client) => {
                    let body = json!({"name": name, "scopes": scope});
                    block_on(client.call(Method::POST, "/api/v1/tokens", Some(&body)))?
                }
                None => offline(context, |store| {
                    let token = store.create(name, &scopes)?;
                    Ok(json!({"name": name, "token": token.reveal(), "scopes": scope}))
                })?,
            };
            if context.common.json {
                output::json(&made)?;
            } else {
                output::line(made["token"].as_str().unwrap_or_default())?;
                output::note("It is not shown again.");
            }
        }
        Verb::List => {
            let list = match client {
                Some(client) => block_on(client.get("/api/v1/tokens"))?,
                None => offline(context, |store| Ok(json!({"tokens": store.list()})))?,
            };
            if context.common.json {
                output::json(&list)?;
            } else {
                output::print(&render(&list))?;
            }
        }
        Verb::Revoke { name } => {
            match client {
                Some(client) => {
                    let body = json!({ "name": name });
                    block_on(client.call(Method::DELETE, "/api/v1/tokens", Some(&body)))?;
                }
                None => offline(context, |store| store.revoke(name))?,
            }
            if context.common.json {
                output::json(&json!({"revoked": true}))?;
            } else {
                output::line(&format!("token {} is revoked", clean(name)))?;
            }
        }
    }
    Ok(0)
}

/// Works on the state folder of a node that does not run, and keeps it from starting meanwhile.
fn offline<T>(
    context: &Context,
    work: impl FnOnce(&TokenStore) -> Result<T, TokenError>,
) -> Result<T, CliError> {
    let state = StateDir::open(locate::state_dir(&context.common)?)?;
    let _lock = state.lock()?;
    let failed = |error: TokenError| CliError::failed(error.to_string(), "");
    let store = TokenStore::open(&state).map_err(failed)?;
    work(&store).map_err(failed)
}

fn render(list: &Value) -> String {
    let none = Vec::new();
    let tokens = list["tokens"].as_array().unwrap_or(&none);
    if tokens.is_empty() {
        return "no named tokens\n".to_owned();
    }
    let mut out = String::new();
    for token in tokens {
        let scopes: Vec<&str> = token["scopes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        out.push_str(&format!(
            "{} ({})\n",
            clean(token["name"].as_str().unwrap_or_default()),
            scopes.join(", ")
        ));
    }
    out
}
