//! What waits on disk: messages of ours for nodes that are away, and the ids of those we have taken.
//!
//! One database in the state folder. Every change is synced before it is told to anybody: a message
//! that was acknowledged survives a crash of either node, and one that was taken is not taken twice.

use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, backends::FileBackend};
use serde::{Deserialize, Serialize};

use crate::{
    ids::{NodeId, RequestId},
    state::StateDir,
    wire::limits::{MESSAGES_BYTES, MESSAGES_STORED, MESSAGES_TAKEN},
};

/// The file in the state folder.
const FILE: &str = "messages.redb";
/// Messages of ours, by id.
const OUTBOX: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("outbox");
/// Messages of others, by their key and id.
const INBOX: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("inbox");

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed: disk full, damaged file.
    #[error("the store of messages failed")]
    Database(#[from] redb::Error),
    /// The file cannot be opened.
    #[error("`messages.redb` in the state folder cannot be opened")]
    Open(#[source] std::io::Error),
    /// As many messages wait as may.
    #[error("{MESSAGES_STORED} messages or {} MiB wait already", MESSAGES_BYTES >> 20)]
    Full,
}

macro_rules! from_redb {
    ($($kind:ident),*) => {
        $(impl From<redb::$kind> for StoreError {
            fn from(error: redb::$kind) -> Self {
                Self::Database(error.into())
            }
        })*
    };
}
from_redb!(
    DatabaseError,
    TransactionError,
    TableError,
    StorageError,
    CommitError
);

/// A message of ours that waits for its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Its name at both ends.
    pub id: RequestId,
    /// For which node.
    pub node: NodeId,
    /// For which agent; none = the first one.
    pub agent: Option<String>,
    /// The text.
    pub text: String,
    /// Whether the agent is to look at it at once.
    pub wake: bool,
    /// Nodes it has passed before it came to us.
    pub hops: Vec<NodeId>,
    /// Whether an agent sent it, not a person.
    pub actor_agent: bool,
    /// When it was written; microseconds since 1970. Gives the order.
    pub since: u64,
    /// When it is given up; seconds since 1970.
    pub until: u64,
}

/// A message of another node that we have taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Who sent it.
    pub from: NodeId,
    /// For which agent.
    pub agent: String,
    /// The text; none once it is in the agent's session.
    pub text: Option<String>,
    /// Whether the agent is to look at it at once.
    pub wake: bool,
    /// When it was taken; microseconds since 1970. Gives the order.
    pub since: u64,
    /// Its id is remembered until then; seconds since 1970.
    pub until: u64,
}

/// The store; cheap to clone. Every call blocks on the disk.
#[derive(Debug, Clone)]
pub struct Store(Arc<Database>);

/// The same in microseconds.
#[must_use]
pub fn now_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or(Duration::ZERO).as_micros()).unwrap_or(u64::MAX)
}

/// The wall clock in seconds: what is stored outlives the process, whose own clock starts anew.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

impl Store {
    /// Opens the store in `state`, making it when missing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(state: &StateDir) -> Result<Self, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(state.path(FILE))
            .map_err(StoreError::Open)?;
        let database = Database::builder().create_with_backend(FileBackend::new(file)?)?;
        let write = database.begin_write()?;
        write.open_table(OUTBOX)?;
        write.open_table(INBOX)?;
        write.commit()?;
        Ok(Self(Arc::new(database)))
    }

    /// Stores a message of ours.
    ///
    /// # Errors
    /// [`StoreError::Full`], or the disk's.
    pub fn put(&self, message: &Waiting) -> Result<(), StoreError> {
        let write = self.0.begin_write()?;
        {
            let mut table = write.open_table(OUTBOX)?;
            let (mut count, mut bytes) = (0_usize, message.text.len());
            for entry in table.iter()? {
                let (_, value) = entry?;
                count += 1;
                bytes += value.value().len();
            }
            if count >= MESSAGES_STORED || bytes > MESSAGES_BYTES {
                return Err(StoreError::Full);
            }
            let value = serde_json::to_vec(message).unwrap_or_default();
            table.insert(message.id.0.as_slice(), value.as_slice())?;
        }
        write.commit()?;
        Ok(())
    }

    /// Forgets messages of ours: they are delivered, refused or too old.
    ///
    /// # Errors
    /// The disk's.
    pub fn remove(&self, ids: &[RequestId]) -> Result<(), StoreError> {
        let write = self.0.begin_write()?;
        {
            let mut table = write.open_table(OUTBOX)?;
            for id in ids {
                table.remove(id.0.as_slice())?;
            }
        }
        write.commit()?;
        Ok(())
    }

    /// Every message of ours that waits, the oldest first.
    ///
    /// # Errors
    /// The disk's.
    pub fn waiting(&self) -> Result<Vec<Waiting>, StoreError> {
        let read = self.0.begin_read()?;
        let table = read.open_table(OUTBOX)?;
        let mut all = Vec::new();
        for entry in table.iter()? {
            let (_, value) = entry?;
            // What an older version wrote otherwise is nothing we can send.
            if let Ok(message) = serde_json::from_slice::<Waiting>(value.value()) {
                all.push(message);
            }
        }
        all.sort_by_key(|message| message.since);
        Ok(all)
    }

    /// Takes a message of another node. False when it was taken before.
    ///
    /// # Errors
    /// [`StoreError::Full`], or the disk's.
    pub fn take(&self, key: &[u8], message: &Taken) -> Result<bool, StoreError> {
        let write = self.0.begin_write()?;
        let new = {
            let mut table = write.open_table(INBOX)?;
            if table.get(key)?.is_some() {
                false
            } else {
                let now = now();
                let mut old = Vec::new();
                let mut count = 0_usize;
                for entry in table.iter()? {
                    let (key, value) = entry?;
                    count += 1;
                    let known = serde_json::from_slice::<Taken>(value.value());
                    if known.map_or(true, |taken| taken.until <= now) {
                        old.push(key.value().to_vec());
                    }
                }
                if count - old.len() >= MESSAGES_TAKEN {
                    return Err(StoreError::Full);
                }
                for key in old {
                    table.remove(key.as_slice())?;
                }
                let value = serde_json::to_vec(message).unwrap_or_default();
                table.insert(key, value.as_slice())?;
                true
            }
        };
        write.commit()?;
        Ok(new)
    }

    /// The message is in the agent's session: only its id is kept.
    ///
    /// # Errors
    /// The disk's.
    pub fn delivered(&self, key: &[u8]) -> Result<(), StoreError> {
        let write = self.0.begin_write()?;
        {
            let mut table = write.open_table(INBOX)?;
            let taken = table
                .get(key)?
                .and_then(|value| serde_json::from_slice::<Taken>(value.value()).ok());
            if let Some(taken) = taken {
                let taken = Taken {
                    text: None,
                    ..taken
                };
                let value = serde_json::to_vec(&taken).unwrap_or_default();
                table.insert(key, value.as_slice())?;
            }
        }
        write.commit()?;
        Ok(())
    }

    /// Messages of others that are not in their agent's session yet.
    ///
    /// # Errors
    /// The disk's.
    pub fn undelivered(&self) -> Result<Vec<(Vec<u8>, Taken)>, StoreError> {
        let read = self.0.begin_read()?;
        let table = read.open_table(INBOX)?;
        let mut all = Vec::new();
        let now = now();
        for entry in table.iter()? {
            let (key, value) = entry?;
            if let Ok(taken) = serde_json::from_slice::<Taken>(value.value())
                && taken.text.is_some()
                && taken.until > now
            {
                all.push((key.value().to_vec(), taken));
            }
        }
        all.sort_by_key(|(_, taken)| taken.since);
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::open_to_others;

    fn waiting(text: &str, since: u64) -> Waiting {
        Waiting {
            id: RequestId::random(),
            node: "office-01".parse().unwrap(),
            agent: None,
            text: text.into(),
            wake: true,
            hops: vec![],
            actor_agent: false,
            since,
            until: now() + 60,
        }
    }

    fn taken(until: u64) -> Taken {
        Taken {
            from: "home-01".parse().unwrap(),
            agent: "main".into(),
            text: Some("hi".into()),
            wake: true,
            since: now_micros(),
            until,
        }
    }

    #[test]
    fn what_waits_survives_a_restart_in_order() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(temp.path()).unwrap();
        let (second, first) = (waiting("b", 2), waiting("a", 1));
        {
            let store = Store::open(&state).unwrap();
            store.put(&second).unwrap();
            store.put(&first).unwrap();
        }
        assert!(!open_to_others(&state.path(FILE)).unwrap());
        let store = Store::open(&state).unwrap();
        assert_eq!(store.waiting().unwrap(), [first.clone(), second.clone()]);
        store.remove(&[first.id]).unwrap();
        assert_eq!(store.waiting().unwrap(), [second]);
    }

    #[test]
    fn a_message_is_taken_once_also_after_a_restart() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(temp.path()).unwrap();
        let message = taken(now() + 60);
        {
            let store = Store::open(&state).unwrap();
            assert!(store.take(b"k", &message).unwrap());
            assert!(!store.take(b"k", &message).unwrap());
        }
        let store = Store::open(&state).unwrap();
        assert_eq!(store.undelivered().unwrap().len(), 1);
        store.delivered(b"k").unwrap();
        assert!(store.undelivered().unwrap().is_empty());
        assert!(!store.take(b"k", &message).unwrap());
        // One whose time is up makes room.
        assert!(store.take(b"old", &taken(1)).unwrap());
        assert!(store.take(b"new", &message).unwrap());
        assert!(store.take(b"old", &taken(1)).unwrap());
    }

    #[test]
    fn the_outbox_is_bounded_by_bytes() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(temp.path()).unwrap();
        let store = Store::open(&state).unwrap();
        let large = "x".repeat(MESSAGES_BYTES / 2);
        store.put(&waiting(&large, 1)).unwrap();
        assert!(matches!(
            store.put(&waiting(&large, 2)),
            Err(StoreError::Full)
        ));
        store.put(&waiting("small", 3)).unwrap();
    }
}
