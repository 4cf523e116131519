//! Idle connections to providers. A connection comes here only after the last byte of an answer, so
//! that dropping an unfinished answer closes it and thereby stops the provider.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::client::conn::http1::SendRequest;
use tokio::time::Instant;

use super::provider::Pieces;

/// Idle connections kept for one provider: above any load one node sees, below its descriptors.
const PER_ORIGIN: usize = 256;

/// Older ones are dropped: most servers close after 60 to 75 s, and racing them costs a retry.
const MAX_IDLE: Duration = Duration::from_secs(55);

struct Idle {
    sender: SendRequest<Pieces>,
    since: Instant,
}

/// The pool; cheap to clone. One std mutex, held for a push or a pop.
#[derive(Clone, Default)]
pub struct Pool {
    idle: Arc<Mutex<HashMap<Arc<str>, Vec<Idle>>>>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}

impl Pool {
    /// The connection to `origin` used last, if one is still good.
    pub(super) fn take(&self, origin: &str) -> Option<SendRequest<Pieces>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let list = idle.get_mut(origin)?;
        while let Some(entry) = list.pop() {
            // The newest comes first: when it is too old, so are the rest.
            if entry.since.elapsed() > MAX_IDLE {
                list.clear();
                return None;
            }
            if !entry.sender.is_closed() {
                return Some(entry.sender);
            }
        }
        None
    }

    /// Keeps a connection whose answer has been read to its end.
    pub(super) fn put(&self, origin: Arc<str>, sender: SendRequest<Pieces>) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let list = idle.entry(origin).or_default();
        if list.len() >= PER_ORIGIN {
            list.retain(|entry| !entry.sender.is_closed() && entry.since.elapsed() < MAX_IDLE);
        }
        if list.len() < PER_ORIGIN {
            list.push(Idle {
                sender,
                since: Instant::now(),
            });
        }
    }
}
