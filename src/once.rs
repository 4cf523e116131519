//! `Idempotency-Key` (protocol 7.2): a repeated request gets what the first one came to, so that a client
//! may repeat what it is unsure about. Another request under the same key is refused.
//!
//! In memory, for ten minutes, up to a number of keys. What ended without a result to keep frees its
//! key.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest, Sha256};
use tokio::{sync::watch, time::Instant};

use crate::wire::{
    code::{Code, Failure},
    limits::IDEMPOTENT_MEMORY,
};

/// Who asks under which key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The asking node, or the digest of a client's token.
    pub from: String,
    /// Its `Idempotency-Key`.
    pub key: String,
}

/// What happens to a new key when as many are remembered as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The oldest result makes room: a repeat of it only costs.
    Forget,
    /// The new key is refused: a repeat of what has effects must never run.
    Refuse,
}

enum State<T> {
    /// Under way; the sender is dropped when it ends, however it ends.
    Running(watch::Receiver<()>),
    Done(T),
}

struct Entry<T> {
    request: [u8; 32],
    since: Instant,
    state: State<T>,
}

type Table<T> = HashMap<Key, Entry<T>>;

/// The keys of the last ten minutes, and what came of them; cheap to clone.
pub struct Once<T> {
    table: Arc<Mutex<Table<T>>>,
    most: usize,
    full: Full,
}

impl<T> Clone for Once<T> {
    fn clone(&self) -> Self {
        Self {
            table: Arc::clone(&self.table),
            most: self.most,
            full: self.full,
        }
    }
}

impl<T> fmt::Debug for Once<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Once")
    }
}

/// What to do with a request.
#[derive(Debug)]
pub enum Turn<T> {
    /// Do it, and tell the ticket what came of it.
    Run(Ticket<T>),
    /// It was done before.
    Done(T),
}

/// The right to do a request. Dropped without a result, it lets the next one do it.
pub struct Ticket<T> {
    once: Once<T>,
    key: Key,
    /// Wakes those who wait.
    _running: watch::Sender<()>,
    done: bool,
}

impl<T> fmt::Debug for Ticket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket")
    }
}

impl<T> Ticket<T> {
    /// What a repeat gets from now on.
    pub fn done(mut self, result: T) {
        if let Some(entry) = self.once.lock().get_mut(&self.key) {
            entry.since = Instant::now();
            entry.state = State::Done(result);
        }
        self.done = true;
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        if !self.done {
            self.once.lock().remove(&self.key);
        }
    }
}

enum Look<T> {
    Turn(Turn<T>),
    Wait(watch::Receiver<()>),
}

impl<T> Once<T> {
    /// No keys yet; at most `most`.
    #[must_use]
    pub fn new(most: usize, full: Full) -> Self {
        Self {
            table: Arc::default(),
            most,
            full,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table<T>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Once<T> {
    /// Whether the request of `parts` under `key` is to be done. Waits while an earlier one with the same
    /// key is under way; a result that `stands` denies is forgotten.
    ///
    /// # Errors
    /// `idempotency_mismatch` when the key was used with another request; `overloaded` when too many keys
    /// are remembered.
    pub async fn turn(
        &self,
        key: Key,
        parts: &[&[u8]],
        stands: impl Fn(&T) -> bool,
    ) -> Result<Turn<T>, Failure> {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        let request: [u8; 32] = hash.finalize().into();
        loop {
            let mut running = match self.look(&key, request, &stands)? {
                Look::Turn(turn) => return Ok(turn),
                Look::Wait(running) => running,
            };
            // Ends with an error when the other request ends; nothing is ever sent.
            let _ = running.changed().await;
        }
    }

    fn look(
        &self,
        key: &Key,
        request: [u8; 32],
        stands: &impl Fn(&T) -> bool,
    ) -> Result<Look<T>, Failure> {
        let mut table = self.lock();
        let now = Instant::now();
        table.retain(|_, entry| {
            matches!(entry.state, State::Running(_)) || now - entry.since < IDEMPOTENT_MEMORY
        });
        if let Some(entry) = table.get(key) {
            if entry.request != request {
                return Err(Failure::not_started(
                    Code::IdempotencyMismatch,
                    "this `Idempotency-Key` was used with another request",
                ));
            }
            match &entry.state {
                State::Running(running) => return Ok(Look::Wait(running.clone())),
                State::Done(result) if stands(result) => {
                    return Ok(Look::Turn(Turn::Done(result.clone())));
                }
                State::Done(_) => {
                    table.remove(key);
                }
            }
        }
        if table.len() >= self.most {
            let done = |entry: &Entry<T>| matches!(entry.state, State::Done(_));
            let finished = table.iter().filter(|(_, entry)| done(entry));
            let oldest = finished
                .filter(|_| self.full == Full::Forget)
                .min_by_key(|(_, entry)| entry.since);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                return Err(Failure::not_started(
                    Code::Overloaded,
                    "too many requests with an `Idempotency-Key` are remembered; try again in some minutes, or without one",
                ));
            };
            table.remove(&oldest);
        }
        let (sender, receiver) = watch::channel(());
        let entry = Entry {
            request,
            since: now,
            state: State::Running(receiver),
        };
        table.insert(key.clone(), entry);
        drop(table);
        Ok(Look::Turn(Turn::Run(Ticket {
            once: self.clone(),
            key: key.clone(),
            _running: sender,
            done: false,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: impl ToString) -> Key {
        Key {
            from: "home".into(),
            key: name.to_string(),
        }
    }

    async fn turn(once: &Once<u8>, name: impl ToString, body: &str) -> Result<Turn<u8>, Failure> {
        once.turn(key(name), &[body.as_bytes()], |result| *result != 0)
            .await
    }

    async fn run(once: &Once<u8>, name: impl ToString, body: &str) -> Ticket<u8> {
        match turn(once, name, body).await.unwrap() {
            Turn::Run(ticket) => ticket,
            Turn::Done(_) => panic!("it was done before"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_result_is_kept_for_ten_minutes_and_for_one_request() {
        let once = Once::new(8, Full::Refuse);
        run(&once, 1, "a").await.done(5);
        assert!(matches!(turn(&once, 1, "a").await, Ok(Turn::Done(5))));
        let other = turn(&once, 1, "b").await.unwrap_err();
        assert_eq!(other.code, Code::IdempotencyMismatch);
        tokio::time::advance(IDEMPOTENT_MEMORY).await;
        drop(run(&once, 1, "b").await);
    }

    #[tokio::test]
    async fn a_repeat_waits_and_what_came_to_nothing_is_done_again() {
        let once = Once::new(8, Full::Refuse);
        let first = run(&once, 1, "a").await;
        let finish = async {
            tokio::task::yield_now().await;
            first.done(7);
        };
        let (second, ()) = tokio::join!(turn(&once, 1, "a"), finish);
        assert!(matches!(second, Ok(Turn::Done(7))));
        drop(run(&once, 2, "a").await);
        run(&once, 2, "b").await.done(0);
        drop(run(&once, 2, "b").await);
    }

    #[tokio::test]
    async fn a_full_table_forgets_or_refuses() {
        for full in [Full::Forget, Full::Refuse] {
            let once = Once::new(2, full);
            run(&once, 1, "a").await.done(1);
            let _running = run(&once, 2, "a").await;
            let third = turn(&once, 3, "a").await;
            match full {
                Full::Forget => {
                    assert!(matches!(third, Ok(Turn::Run(_))));
                    drop(third);
                    // The oldest result made room, so its key is free.
                    drop(run(&once, 1, "b").await);
                }
                Full::Refuse => assert_eq!(third.unwrap_err().code, Code::Overloaded),
            }
        }
    }
}
