//! What other nodes may use of this one: requests a minute, at once and a day, tokens and bytes a day,
//! for each peer and for each rule (protocol 8.5).
//!
//! ```text
//! exchange -> inbound::Metered (limits.perPeer) -> the service -> tools/quota (limits of a rule)
//!                          '---- ledger, one for both ----'
//! ```
//! Counted here, by the key of the asking node, from what really passed. What counts for a day is kept
//! in the state folder: written every 10 s and at a stop, so that a restart gives nobody a second budget
//! and a crash gives at most ten seconds of one.

pub mod inbound;
mod ledger;
mod usage;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, interval};

pub use self::ledger::{Account, Caps, Cost, Usage};
use self::ledger::{Entry, Ledger, Now};
use crate::{state::StateDir, wire::code::Failure};

/// The file within the state folder.
const FILE: &str = "budgets.json";
/// How often it is written when something changed.
const WRITE_EVERY: Duration = Duration::from_secs(10);

/// Bytes of a text for one token, where nobody says how many it was (protocol 8.5).
pub const TOKEN_BYTES: u64 = 3;

/// The counts of a node; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Budgets(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Never held while anything is awaited.
    books: Mutex<Books>,
    /// None: nothing is kept, in tests.
    state: Option<StateDir>,
    /// Held while the file is written: a later state never loses against an earlier one.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Books {
    ledger: Ledger,
    /// `limits.perPeer`.
    per_peer: Caps,
}

/// What is in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// Days since 1970, UTC.
    day: u64,
    used: Vec<Entry>,
}

/// A place taken; given back when dropped.
#[derive(Debug)]
pub struct Share {
    budgets: Budgets,
    account: Account,
}

impl Share {
    /// Counts what came after the begin: bytes and tokens more, or tokens fewer than thought.
    pub fn add(&self, bytes: u64, tokens: i64) {
        let now = now();
        let mut books = self.budgets.books();
        books.ledger.add(&self.account, bytes, tokens, now);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budgets.books().ledger.leave(&self.account);
    }
}

impl Budgets {
    /// Goes on with what `state` knows of today. A file that cannot be read is said in the log and
    /// begun anew: counts are no reason not to start. Blocks on the disk.
    #[must_use]
    pub fn load(state: StateDir, per_peer: Caps) -> Self {
        let mut ledger = Ledger::default();
        match kept(&state) {
            Ok(Some(kept)) => ledger.restore(kept.day, kept.used),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(
                    error,
                    file = FILE,
                    "what peers used today cannot be read: it is counted from nothing"
                );
            }
        }
        Self(Arc::new(Inner {
            books: Mutex::new(Books { ledger, per_peer }),
            state: Some(state),
            writing: tokio::sync::Mutex::default(),
        }))
    }

    /// Puts other limits for each peer in force; what was used stays used.
    pub fn set_per_peer(&self, caps: Caps) {
        self.books().per_peer = caps;
    }

    /// `limits.perPeer`.
    #[must_use]
    pub fn per_peer(&self) -> Caps {
        self.books().per_peer
    }

    /// What other nodes use now, and how long this day lasts.
    #[must_use]
    pub fn usage(&self) -> (Vec<Usage>, Duration) {
        let now = now();
        (self.books().ledger.usage(now), now.left())
    }

    /// Takes a place within `caps`, and counts what is known of the cost.
    ///
    /// # Errors
    /// `rate_limited` and `budget_exceeded` with the time to wait, `overloaded`; nothing was counted.
    pub fn enter(&self, account: Account, caps: &Caps, cost: Cost) -> Result<Share, Failure> {
        let now = now();
        self.books()
            .ledger
            .enter(&account, caps, cost, now)
            .map_err(|refusal| refusal.failure(&account))?;
        Ok(Share {
            budgets: self.clone(),
            account,
        })
    }

    /// Keeps the file up to date until the task is dropped.
    pub async fn run(self) {
        let mut tick = interval(WRITE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.flush().await;
        }
    }

    /// Writes what changed since the last time.
    pub async fn flush(&self) {
        let Some(state) = &self.0.state else { return };
        let _writing = self.0.writing.lock().await;
        let Some((day, used)) = self.books().ledger.changes() else {
            return;
        };
        let state = state.clone();
        let written = tokio::task::spawn_blocking(move || {
            let text =
                serde_json::to_vec(&Kept { day, used }).map_err(|error| error.to_string())?;
            state.write(FILE, &text).map_err(|error| error.to_string())
        });
        let failed = match written.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = failed {
            // Tried again in ten seconds.
            self.books().ledger.unwritten();
            tracing::warn!(error, "what peers used today cannot be written");
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kept(state: &StateDir) -> Result<Option<Kept>, String> {
    let Some(bytes) = state.read(FILE).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let kept = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    Ok(Some(kept))
}

fn now() -> Now {
    Now {
        at: Instant::now(),
        unix: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
