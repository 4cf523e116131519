//! Whose keys we believe: pins, labels, denials (protocol 2).
//!
//! [`TrustStore`] is asked at two points of a handshake: by the dialer before it proves the secret,
//! by the listener after the proof and before it accepts ([`TrustStore::check`]); and once more,
//! when the handshake has succeeded, to pin a new key ([`TrustStore::pin`]). Links watch it
//! ([`TrustStore::subscribe`]) and close when their key no longer has a [`TrustStore::standing`].
//!
//! What must stay true: a pin never changes by anything another node says; only the operator, by
//! configuration or command, and a rotation that the old key and the new one have signed
//! ([`TrustStore::follow`]) replace a key. Decisions are made by the pure `book` under a lock
//! that is never held during disk access; writes are whole files, one after the other.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::{SystemTime, UNIX_EPOCH},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use crate::{
    config::{PeerConfig, TrustConfig},
    crypto::identity::{KeyId, PublicKey},
    ids::NodeId,
    state::{StateDir, StateError},
};

mod book;
mod conflicts;
mod file;
mod follow;
mod retired;
#[cfg(test)]
mod tests;

use book::Book;
pub use book::Followed;
pub use conflicts::{Conflict, ConflictKind};
pub use retired::NotFollowed;

/// How far a key is trusted (protocol 2). Ordered: a later one implies the earlier.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Known from a signed record only.
    Seen,
    /// Trusted on first use, from a verified handshake.
    Pinned,
    /// Confirmed by the operator, or given in the configuration.
    Trusted,
}

/// Where a pin came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// A handshake on a link.
    Link,
    /// A handshake end to end.
    EndToEnd,
    /// The operator's command.
    Operator,
    /// The configuration; never in the file.
    Config,
}

/// What we grant to a name and key that are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// How far.
    pub level: Level,
    /// The only tags that may grant rights.
    pub labels: Arc<[String]>,
    /// Whether the key is not pinned yet.
    pub new: bool,
}

/// Why a name with a key is not believed. For our own operator only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The operator denied the key.
    #[error("key {0} is denied")]
    Denied(KeyId),
    /// The name belongs to another key.
    #[error("identity conflict: node `{node}` shows key {found}, but key {held} is pinned for it")]
    Conflict {
        /// The name.
        node: NodeId,
        /// The key we hold.
        held: KeyId,
        /// The key it showed.
        found: KeyId,
        /// Whether the key we hold is in the configuration, where no command can change it.
        configured: bool,
    },
    /// The name differs only in case from a known one.
    #[error(
        "identity conflict: the name `{node}` differs only in case from the known node `{like}`"
    )]
    LooksLike {
        /// The name it showed.
        node: NodeId,
        /// The known one.
        like: NodeId,
        /// The key it showed.
        found: KeyId,
    },
    /// The node gave this key up for another.
    #[error("node `{node}` shows key {key}, which was given up for {successor}")]
    Retired {
        /// The name it showed.
        node: NodeId,
        /// The key it showed.
        key: KeyId,
        /// The key that followed.
        successor: KeyId,
    },
    /// Mode `explicit`, and this key is not listed.
    #[error("node `{node}` is not listed, and `trust.mode` is `explicit`")]
    NotListed {
        /// The name.
        node: NodeId,
        /// The key it showed.
        key: PublicKey,
    },
    /// Too many new names in the last minute.
    #[error("too many new nodes within a minute")]
    TooFast,
    /// No room for another name.
    #[error("too many pinned nodes")]
    Full,
}

impl Refusal {
    /// The way out, for the operator.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Denied(key) => format!("if that was a mistake: `clawmatrix trust remove {key}`"),
            Self::Conflict {
                configured: true, ..
            } => "if the node has a new key on purpose, change `key` in `trust.nodes` or `peers`; \
                 else somebody uses its name"
                .into(),
            Self::Conflict { node, found, .. } => format!(
                "if the node has a new key on purpose: `clawmatrix trust accept {node} {found}`; \
                 else somebody uses its name"
            ),
            Self::LooksLike { node, like, found } => format!(
                "give that node another `nodeId`; if it replaces `{like}`: `clawmatrix trust accept \
                 {node} {found}`"
            ),
            Self::NotListed { node, key } => {
                format!("to admit it: `clawmatrix trust add {node} {key}`")
            }
            Self::Retired { key, .. } => format!(
                "if the node was restored from a backup of before, restore its present `identity.key`; \
                 else somebody has its old key. To believe the old one again: `clawmatrix trust \
                 remove {key}`"
            ),
            Self::TooFast => "new nodes are admitted again within a minute; a flood of them means \
                 that the secret is known to others"
                .into(),
            Self::Full => "remove nodes that are gone: `clawmatrix trust list`, `clawmatrix trust \
                 remove <node>`"
                .into(),
        }
    }
}

/// Why the store could not be read, or a command not be followed.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// `pins.json` is not what we wrote.
    #[error("`{path}` is damaged: {reason}")]
    Damaged {
        /// The file.
        path: String,
        /// Where and what.
        reason: String,
    },
    /// The disk refused. The change itself holds until the node stops.
    #[error("the change could not be saved")]
    State(#[from] StateError),
    /// The configuration gives two keys for one name.
    #[error("the configuration gives two keys for node `{0}`")]
    TwoKeys(NodeId),
    /// The key of this name is in the configuration.
    #[error("the key of node `{0}` is given in the configuration")]
    Configured(NodeId),
    /// The name is taken.
    #[error("node `{node}` is pinned with key {held}")]
    Held {
        /// The name as it is pinned.
        node: NodeId,
        /// Its key.
        held: KeyId,
    },
    /// No such key has shown up for this name.
    #[error("key {key} has not shown up for node `{node}`")]
    NotOffered {
        /// The name.
        node: NodeId,
        /// The wanted key.
        key: KeyId,
    },
    /// The key is denied.
    #[error("key {0} is denied")]
    Denied(KeyId),
    /// The key was given up.
    #[error("key {0} was given up for another")]
    Retired(KeyId),
    /// Nothing of that name or key is known.
    #[error("nothing is known about `{0}`")]
    Unknown(String),
}

impl TrustError {
    /// The way out, for the operator.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Damaged { .. } => "restore it from a backup, or delete it: every node is then \
                 trusted anew at first contact"
                .into(),
            Self::State(_) => {
                "free disk space or mend its permissions, then repeat the command".into()
            }
            Self::TwoKeys(_) => "make `peers[].key` and `trust.nodes` agree".into(),
            Self::Configured(node) => {
                format!("change the entry of `{node}` in `trust.nodes` or `peers`")
            }
            Self::Held { node, .. } => format!(
                "`clawmatrix trust remove {node}` first, or `clawmatrix trust accept` if the new key \
                 has shown up"
            ),
            Self::NotOffered { node, .. } => format!(
                "`clawmatrix status` lists the keys that did; with the whole key in hand: \
                 `clawmatrix trust add {node} <key>`"
            ),
            Self::Denied(key) => format!("`clawmatrix trust remove {key}` lifts the denial"),
            Self::Retired(key) => format!("`clawmatrix trust remove {key}` lets it be used again"),
            Self::Unknown(_) => "`clawmatrix trust list` shows what is".into(),
        }
    }
}

/// One line of `trust list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrustEntry {
    /// The name.
    #[schemars(with = "String")]
    pub node: NodeId,
    /// The key, as `trust add` takes it.
    #[schemars(with = "String")]
    pub key: PublicKey,
    /// The key as people compare it.
    #[schemars(with = "String")]
    pub key_id: KeyId,
    /// How far it is trusted.
    pub level: Level,
    /// Unix time of the first contact in seconds; none for a key that only the configuration knows.
    pub first_seen: Option<u64>,
    /// Where the key came from.
    pub via: Via,
    /// Labels given by the operator.
    pub labels: Vec<String>,
    /// Whether the key is denied all the same.
    pub denied: bool,
}

/// Handle to the node's trust decisions. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TrustStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// A std mutex: held for map look-ups only, never across disk access or an await.
    book: Mutex<Book>,
    /// Held while the file is written, so that an older text never replaces a newer one.
    writing: Mutex<()>,
    dir: Option<StateDir>,
    changes: watch::Sender<u64>,
    /// Whether a rotation was followed that is not on disk yet.
    unsaved: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves whole entries behind; going on beats refusing every node.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

impl TrustStore {
    /// Reads `pins.json` and lays the configuration over it. Blocks on the disk.
    ///
    /// # Errors
    /// [`TrustError::Damaged`], [`TrustError::State`], [`TrustError::TwoKeys`].
    pub fn load(
        dir: &StateDir,
        config: &TrustConfig,
        peers: &[PeerConfig],
    ) -> Result<Self, TrustError> {
        let stored = file::read(dir)?;
        Ok(Self::with(
            Book::new(stored, config, peers)?,
            Some(dir.clone()),
        ))
    }

    /// A store that writes nothing to disk.
    ///
    /// # Errors
    /// [`TrustError::TwoKeys`].
    pub fn in_memory(config: &TrustConfig, peers: &[PeerConfig]) -> Result<Self, TrustError> {
        let book = Book::new(file::Stored::default(), config, peers)?;
        Ok(Self::with(book, None))
    }

    fn with(book: Book, dir: Option<StateDir>) -> Self {
        Self {
            inner: Arc::new(Inner {
                book: Mutex::new(book),
                writing: Mutex::new(()),
                dir,
                changes: watch::Sender::new(0),
                unsaved: AtomicBool::new(false),
            }),
        }
    }

    /// Whether the name means anything to us, whoever uses it.
    #[must_use]
    pub fn knows(&self, node: &NodeId) -> bool {
        lock(&self.inner.book).knows(node)
    }

    /// Judges a name and the key that signs for it, and remembers a conflict.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn check(&self, node: &NodeId, key: &PublicKey) -> Result<Admission, Refusal> {
        let mut book = lock(&self.inner.book);
        let verdict = book.judge(node, key, Instant::now());
        if let Err(refusal) = &verdict
            && book.note(node, key, refusal, unix_seconds())
        {
            drop(book);
            tracing::warn!(%node, key = %key.id(), reason = %refusal, hint = refusal.hint(),
                "node refused");
        }
        verdict
    }

    /// Pins the key of a handshake that has succeeded, unless it is pinned already. Judges again,
    /// since another handshake may have taken the name meanwhile. Blocks on the disk when the key is
    /// new: the pin is stored before anything relies on it.
    ///
    /// # Errors
    /// [`Refusal`]. A disk that refuses is logged, not an error: a full disk must not end the mesh.
    pub fn pin(&self, node: &NodeId, key: &PublicKey, via: Via) -> Result<Admission, Refusal> {
        let known = lock(&self.inner.book).judge(node, key, Instant::now())?;
        if !known.new {
            return Ok(known);
        }
        let admitted = self.change(|book| book.pin(node, key, via, Instant::now(), unix_seconds()));
        match admitted {
            Ok((admission, saved)) => {
                if let Err(error) = saved {
                    let cause: &(dyn std::error::Error + 'static) = &error;
                    tracing::warn!(%node, error = cause, hint = error.hint(), "a new key is not on disk");
                }
                tracing::info!(%node, key = %key.id(), "key pinned at first contact");
                Ok(admission)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Judges a name and the key that signed a record for it, and holds the key for that name until
    /// [`TrustStore::forget`]: no other key gets the name meanwhile. Remembers a conflict. `vouched`
    /// says that a neighbour which the operator trusts passed the record on.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn see(&self, node: &NodeId, key: &PublicKey, vouched: bool) -> Result<Level, Refusal> {
        let mut book = lock(&self.inner.book);
        let verdict = book.see(node, key, vouched);
        if let Err(refusal) = &verdict
            && book.note(node, key, refusal, unix_seconds())
        {
            drop(book);
            tracing::warn!(%node, key = %key.id(), reason = %refusal, hint = refusal.hint(),
                "record of a node refused");
        }
        verdict
    }

    /// Lets go of a key that only a record made known, since the record is gone.
    pub fn forget(&self, node: &NodeId, key: &PublicKey) {
        lock(&self.inner.book).forget(node, key);
    }

    /// What a name and key have now; none when a link of theirs must close.
    #[must_use]
    pub fn standing(&self, node: &NodeId, key: &PublicKey) -> Option<Admission> {
        let verdict = lock(&self.inner.book).judge(node, key, Instant::now());
        verdict.ok().filter(|admission| !admission.new)
    }

    /// How far `key` is trusted for `node`; none when it is not believed.
    #[must_use]
    pub fn level(&self, node: &NodeId, key: &PublicKey) -> Option<Level> {
        self.standing(node, key).map(|admission| admission.level)
    }

    /// Changes whenever a key, level, label or denial did. Links then ask for their standing.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Every known name with its key, by name.
    #[must_use]
    pub fn list(&self) -> Vec<TrustEntry> {
        lock(&self.inner.book).list()
    }

    /// Level and labels a request of `node` would come with; a name without a key would be pinned.
    #[must_use]
    pub fn rights_of(&self, node: &NodeId) -> (Level, Vec<String>) {
        lock(&self.inner.book).rights_of(node)
    }

    /// Every denied key.
    #[must_use]
    pub fn denied(&self) -> Vec<KeyId> {
        lock(&self.inner.book).denied()
    }

    /// Refused names and keys that wait for the operator, the latest first.
    #[must_use]
    pub fn conflicts(&self) -> Vec<Conflict> {
        lock(&self.inner.book).conflicts()
    }

    /// The conflicts and whether new nodes find no room, in words with the way out, for `status`.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let (crowded, outdated) = {
            let book = lock(&self.inner.book);
            (book.crowded(unix_seconds()), book.outdated())
        };
        let outdated = outdated.into_iter().map(|(node, key)| {
            format!(
                "node `{node}` has a new key: write `{key}` instead of the old one in `trust.nodes` or `peers`"
            )
        });
        let conflicts = self.conflicts();
        let conflicts = conflicts.iter().map(Conflict::warning);
        crowded
            .into_iter()
            .chain(conflicts)
            .chain(outdated)
            .collect()
    }

    /// How many new nodes were refused since the start because too many came.
    #[must_use]
    pub fn crowded_total(&self) -> u64 {
        lock(&self.inner.book).crowded_total()
    }

    /// How often a conflict was met since the start.
    #[must_use]
    pub fn conflicts_total(&self) -> u64 {
        lock(&self.inner.book).conflicts_total()
    }

    /// Trusts `key` for `node`. Blocks on the disk, as the other commands do.
    ///
    /// # Errors
    /// [`TrustError`], among them [`TrustError::Held`] when the name has another key.
    pub fn add(&self, node: &NodeId, key: &PublicKey, labels: &[String]) -> Result<(), TrustError> {
        self.command(|book| book.add(node, key, labels, unix_seconds()))
    }

    /// Confirms a key that has shown up for `node`: the pinned one, or one that was refused, which
    /// then replaces it.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn accept(&self, node: &NodeId, key: KeyId) -> Result<(), TrustError> {
        self.command(|book| book.accept(node, key, unix_seconds()))
    }

    /// Denies a key everywhere; its links close. The name stays pinned, so that nobody else takes it.
    ///
    /// # Errors
    /// [`TrustError::State`].
    pub fn deny(&self, key: KeyId) -> Result<(), TrustError> {
        self.command(|book| {
            book.deny(key, unix_seconds());
            Ok(())
        })
    }

    /// Forgets the pin of `node`: its next contact is a first one.
    ///
    /// # Errors
    /// [`TrustError::Unknown`], [`TrustError::Configured`], [`TrustError::State`].
    pub fn remove(&self, node: &NodeId) -> Result<(), TrustError> {
        self.command(|book| book.remove(node))
    }

    /// Lifts the denial of a key.
    ///
    /// # Errors
    /// [`TrustError::Unknown`], [`TrustError::State`].
    pub fn lift(&self, key: KeyId) -> Result<(), TrustError> {
        self.command(|book| book.lift(key))
    }

    fn command(
        &self,
        change: impl FnOnce(&mut Book) -> Result<(), TrustError>,
    ) -> Result<(), TrustError> {
        let ((), saved) = self.change(change)?;
        saved
    }

    /// Applies a change, tells the watchers, writes the file. A change that could not be written
    /// holds in memory all the same: a denial must not wait for disk space.
    fn change<T, E>(
        &self,
        change: impl FnOnce(&mut Book) -> Result<T, E>,
    ) -> Result<(T, Result<(), TrustError>), E> {
        let _writing = lock(&self.inner.writing);
        let (outcome, stored) = {
            let mut book = lock(&self.inner.book);
            let outcome = change(&mut book)?;
            (outcome, self.inner.dir.is_some().then(|| book.stored()))
        };
        self.inner.changes.send_modify(|count| *count += 1);
        let saved = match (&self.inner.dir, stored) {
            (Some(dir), Some(stored)) => file::write(dir, &stored).map_err(TrustError::State),
            _ => Ok(()),
        };
        Ok((outcome, saved))
    }
}
