//! `GET`, `POST` and `DELETE /api/v1/tokens`: the named tokens. A token's text is shown once, by the
//! answer that makes it.

use serde::{Deserialize, Serialize};

use super::internal;
use crate::{
    proxy::tokens::{Scope, TokenError, TokenInfo, TokenStore},
    wire::code::{Code, Failure},
};

/// What `POST` wants.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    name: String,
    #[serde(default)]
    scopes: Vec<String>,
}

/// What `DELETE` wants.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    name: String,
}

#[derive(Serialize)]
struct Made<'a> {
    name: &'a str,
    token: &'a str,
    scopes: Vec<Scope>,
}

#[derive(Serialize)]
struct List {
    tokens: Vec<TokenInfo>,
}

/// The names, without the tokens.
#[must_use]
pub fn list(store: &TokenStore) -> String {
    let tokens = store.list();
    serde_json::to_string(&List { tokens }).unwrap_or_default()
}

/// Makes one.
///
/// # Errors
/// [`Failure`] as the store says.
pub async fn create(store: &TokenStore, wanted: Create) -> Result<String, Failure> {
    let scopes: Result<Vec<Scope>, TokenError> =
        wanted.scopes.iter().map(|scope| scope.parse()).collect();
    let scopes = scopes.map_err(failure)?;
    let (store, name) = (store.clone(), wanted.name.clone());
    let asked = scopes.clone();
    // It writes and syncs a file.
    let made = tokio::task::spawn_blocking(move || store.create(&name, &asked));
    let token = made.await.map_err(internal)?.map_err(failure)?;
    let made = Made {
        name: &wanted.name,
        token: token.reveal(),
        scopes: if scopes.is_empty() {
            vec![Scope::Models]
        } else {
            scopes
        },
    };
    Ok(serde_json::to_string(&made).unwrap_or_default())
}

/// Forgets one.
///
/// # Errors
/// [`Failure`] as the store says.
pub async fn revoke(store: &TokenStore, wanted: Revoke) -> Result<String, Failure> {
    let store = store.clone();
    let revoked = tokio::task::spawn_blocking(move || store.revoke(&wanted.name));
    revoked.await.map_err(internal)?.map_err(failure)?;
    Ok("{\"revoked\":true}".to_owned())
}

fn failure(error: TokenError) -> Failure {
    let code = match &error {
        TokenError::State(_) | TokenError::Damaged(_) => return internal(error),
        TokenError::Unknown(_) => Code::NotFound,
        TokenError::Approve => Code::Forbidden,
        TokenError::Exists(_) | TokenError::Name | TokenError::Scope(_) | TokenError::TooMany => {
            Code::InvalidRequest
        }
    };
    Failure::not_started(code, error.to_string())
}
