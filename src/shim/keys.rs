//! Asks the shim for a fresh provider key and waits for its answer.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::oneshot;

use super::{FromSidecar, stdio::Voice};
use crate::models::lent::KeyRefresher;

/// Questions under way; callers bound them (one per provider), so the map stays small.
#[derive(Debug, Default)]
struct Open {
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<()>>,
}

/// [`KeyRefresher`] over the conversation with the shim. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ShimKeys {
    voice: Voice,
    open: Arc<Mutex<Open>>,
}

impl ShimKeys {
    /// Asks through `voice`.
    #[must_use]
    pub fn new(voice: Voice) -> Self {
        Self {
            voice,
            open: Arc::default(),
        }
    }

    /// The shim has answered question `id`, and the new table is in force.
    pub fn answered(&self, id: u64) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = open.waiting.remove(&id) {
            // Nobody waits any more when the request was cancelled meanwhile.
            let _ = waiting.send(());
        }
    }

    fn ask(&self, provider: String) -> (u64, oneshot::Receiver<()>) {
        let (done, answer) = oneshot::channel();
        let id = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.next += 1;
            let id = open.next;
            open.waiting.retain(|_, waiting| !waiting.is_closed());
            open.waiting.insert(id, done);
            id
        };
        self.voice.say(&FromSidecar::RefreshKey { id, provider });
        (id, answer)
    }
}

impl KeyRefresher for ShimKeys {
    fn refresh(&self, provider: String) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (_, answer) = self.ask(provider);
        Box::pin(async move {
            // An error means the question was dropped: there is no answer to wait for.
            let _ = answer.await;
        })
    }
}
