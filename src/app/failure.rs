//! Why the last start failed, kept for `status` and `doctor`: they have no node to ask, and what it
//! said may be in a log that nobody looks at.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::state::{StateDir, StateError};

/// The file in the state folder; gone once a node is ready.
pub(super) const FILE: &str = "run/failed";

/// A start that failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// Its exit code.
    pub code: u8,
    /// What it said: every problem with its way out, no secrets.
    pub message: String,
}

/// Keeps why a start failed. A folder that another node holds is left alone.
pub fn remember(state_dir: &Path, code: u8, message: &str) {
    let failure = Failure {
        code,
        message: message.to_owned(),
    };
    let kept = serde_json::to_vec(&failure)
        .ok()
        .and_then(|text| not_held(state_dir).ok()?.write(FILE, &text).ok());
    if kept.is_none() {
        tracing::debug!("the reason of the failed start is not on disk");
    }
}

/// The folder, unless a running node holds it: then the failure is not that node's.
fn not_held(state_dir: &Path) -> Result<StateDir, StateError> {
    let state = StateDir::open(state_dir)?;
    // Given back at once: this process ends next.
    drop(state.lock()?);
    Ok(state)
}

/// Why the last start on `state_dir` failed, if it did.
#[must_use]
pub fn last_failure(state_dir: &Path) -> Option<Failure> {
    let bytes = std::fs::read(state_dir.join(FILE)).ok()?;
    serde_json::from_slice(&bytes).ok()
}
