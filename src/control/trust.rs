//! `GET` and `POST /api/v1/trust`: whose keys are believed. The command line does the same on the
//! state folder of a node that does not run.

use serde::{Deserialize, Serialize};

use super::internal;
use crate::{
    crypto::identity::{KeyId, PublicKey},
    ids::NodeId,
    trust::{Conflict, TrustEntry, TrustError, TrustStore},
    wire::code::{Code, Failure},
};

/// What is known about keys.
#[derive(Debug, Serialize)]
pub struct Keys {
    /// Known names with their keys.
    pub nodes: Vec<TrustEntry>,
    /// Denied keys.
    pub denied: Vec<KeyId>,
    /// Refused names and keys that wait for the operator.
    pub conflicts: Vec<Conflict>,
}

/// What `POST` wants.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(
    tag = "action",
    rename_all = "lowercase",
    rename_all_fields = "camelCase"
)]
pub enum Change {
    /// Trust a key for a name.
    Add {
        /// The name.
        node: NodeId,
        /// The whole key.
        key: PublicKey,
        /// Labels for `allow` lists.
        #[serde(default)]
        labels: Vec<String>,
    },
    /// Confirm a key that has shown up for a name.
    Accept {
        /// The name.
        node: NodeId,
        /// The key.
        key_id: KeyId,
    },
    /// Deny a key everywhere.
    Deny {
        /// The key.
        key_id: KeyId,
    },
    /// Forget the pin of a name.
    Remove {
        /// The name.
        node: NodeId,
    },
    /// Lift the denial of a key.
    Lift {
        /// The key.
        key_id: KeyId,
    },
}

/// What is known about keys.
#[must_use]
pub fn keys(store: &TrustStore) -> Keys {
    Keys {
        nodes: store.list(),
        denied: store.denied(),
        conflicts: store.conflicts(),
    }
}

/// Does what is wanted. Blocks on the disk.
///
/// # Errors
/// As the store says.
pub fn apply(store: &TrustStore, change: &Change) -> Result<(), TrustError> {
    match change {
        Change::Add { node, key, labels } => store.add(node, key, labels),
        Change::Accept { node, key_id } => store.accept(node, *key_id),
        Change::Deny { key_id } => store.deny(*key_id),
        Change::Remove { node } => store.remove(node),
        Change::Lift { key_id } => store.lift(*key_id),
    }
}

/// The body of `GET`.
#[must_use]
pub fn list(store: &TrustStore) -> String {
    serde_json::to_string(&keys(store)).unwrap_or_default()
}

/// The answer to `POST`.
///
/// # Errors
/// [`Failure`] as the store says, with the way out.
pub async fn change(store: &TrustStore, wanted: Change) -> Result<String, Failure> {
    let store = store.clone();
    // It writes and syncs a file.
    let done = tokio::task::spawn_blocking(move || apply(&store, &wanted));
    done.await.map_err(internal)?.map_err(failure)?;
    Ok("{\"changed\":true}".to_owned())
}

fn failure(error: TrustError) -> Failure {
    let code = match &error {
        TrustError::State(_) | TrustError::Damaged { .. } | TrustError::TwoKeys(_) => {
            return internal(error);
        }
        TrustError::Unknown(_) => Code::NotFound,
        TrustError::Held { .. } => Code::IdentityConflict,
        TrustError::Configured(_)
        | TrustError::NotOffered { .. }
        | TrustError::Denied(_)
        | TrustError::Retired(_) => Code::InvalidRequest,
    };
    Failure::not_started(code, format!("{error}; {}", error.hint()))
}
