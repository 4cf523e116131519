//! `Idempotency-Key` (protocol 7.2): the node that serves a model gives a repeated request the answer of
//! the first one, so that a client may repeat what it is unsure about. Another body under the same key
//! is refused.
//!
//! Only finished answers are kept, in memory, for ten minutes, up to a size. What is larger, failed or
//! was given up is simply run again.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use sha2::{Digest, Sha256};
use tokio::{sync::watch, time::Instant};

use super::{
    answer::{Answer, AnswerBody},
    provider::Piece,
};
use crate::wire::{
    code::{Code, Failure},
    limits::{IDEMPOTENT_ANSWER_BYTES, IDEMPOTENT_ANSWERS, IDEMPOTENT_MEMORY},
};

/// Who asks under which key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The asking node.
    pub from: String,
    /// Its `Idempotency-Key`.
    pub key: String,
}

#[derive(Clone)]
struct Kept {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

enum State {
    /// Under way; the sender is dropped when it ends, however it ends.
    Running(watch::Receiver<()>),
    Done(Kept),
}

struct Entry {
    body: [u8; 32],
    since: Instant,
    state: State,
}

/// The answers of the last ten minutes; cheap to clone.
#[derive(Clone, Default)]
pub struct Idempotency(Arc<Mutex<HashMap<Key, Entry>>>);

impl fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Idempotency")
    }
}

/// What to do with a request.
#[derive(Debug)]
pub enum Turn {
    /// Run it, and give its answer to the ticket.
    Run(Ticket),
    /// It was answered before.
    Answered(Box<Answer>),
}

/// The right to run a request. Dropped without a finished answer, it lets the next one run.
pub struct Ticket {
    table: Idempotency,
    key: Key,
    /// Wakes those who wait for this answer.
    _running: watch::Sender<()>,
    done: bool,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket")
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.done {
            self.table.lock().remove(&self.key);
        }
    }
}

impl Idempotency {
    /// Whether the request under `key` is to be run. Waits while an earlier one with the same key is
    /// under way.
    ///
    /// # Errors
    /// `idempotency_mismatch` when the key was used with another `body`; `overloaded` when too many keys
    /// are remembered.
    pub async fn turn(&self, key: Key, parts: &[&[u8]]) -> Result<Turn, Failure> {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        let body: [u8; 32] = hash.finalize().into();
        loop {
            let mut running = match self.look(&key, body)? {
                Look::Turn(turn) => return Ok(turn),
                Look::Wait(running) => running,
            };
            // Ends with an error when the other request ends; nothing is ever sent.
            let _ = running.changed().await;
        }
    }

    fn look(&self, key: &Key, body: [u8; 32]) -> Result<Look, Failure> {
        let mut table = self.lock();
        let now = Instant::now();
        table.retain(|_, entry| {
            matches!(entry.state, State::Running(_)) || now - entry.since < IDEMPOTENT_MEMORY
        });
        if let Some(entry) = table.get(key) {
            if entry.body != body {
                return Err(Failure::not_started(
                    Code::IdempotencyMismatch,
                    "this `Idempotency-Key` was used with another request",
                ));
            }
            return Ok(match &entry.state {
                State::Running(running) => Look::Wait(running.clone()),
                State::Done(kept) => Look::Turn(Turn::Answered(Box::new(kept.answer()))),
            });
        }
        if table.len() >= IDEMPOTENT_ANSWERS {
            let done = |entry: &Entry| matches!(entry.state, State::Done(_));
            let finished = table.iter().filter(|(_, entry)| done(entry));
            let oldest = finished.min_by_key(|(_, entry)| entry.since);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                return Err(Failure::not_started(
                    Code::Overloaded,
                    "too many requests with an `Idempotency-Key` are under way",
                ));
            };
            table.remove(&oldest);
        }
        let (sender, receiver) = watch::channel(());
        let entry = Entry {
            body,
            since: now,
            state: State::Running(receiver),
        };
        table.insert(key.clone(), entry);
        drop(table);
        Ok(Look::Turn(Turn::Run(Ticket {
            table: self.clone(),
            key: key.clone(),
            _running: sender,
            done: false,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Look {
    Turn(Turn),
    Wait(watch::Receiver<()>),
}

impl Kept {
    fn answer(&self) -> Answer {
        Answer {
            status: self.status,
            headers: self.headers.clone(),
            length: Some(self.body.len() as u64),
            body: AnswerBody::Whole(Some(self.body.clone())),
        }
    }
}

/// An answer that is written down while it goes by.
#[derive(Debug)]
pub struct Recorded {
    rest: Box<AnswerBody>,
    record: Option<Record>,
}

struct Record {
    ticket: Ticket,
    status: u16,
    headers: HeaderMap,
    body: BytesMut,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Record")
    }
}

impl Ticket {
    /// Writes `answer` down while it is read.
    #[must_use]
    pub fn record(self, answer: Answer) -> Answer {
        let record = Record {
            ticket: self,
            status: answer.status,
            headers: answer.headers.clone(),
            body: BytesMut::new(),
        };
        let body = AnswerBody::Recorded(Recorded {
            rest: Box::new(answer.body),
            record: Some(record),
        });
        Answer { body, ..answer }
    }
}

impl Recorded {
    /// The next bytes; the last ones finish the record.
    ///
    /// # Errors
    /// As the answer itself says; the record is thrown away then.
    pub async fn next(&mut self) -> Result<Option<Piece>, Failure> {
        let piece = match Box::pin(self.rest.next()).await {
            Ok(piece) => piece,
            Err(failure) => {
                self.record = None;
                return Err(failure);
            }
        };
        let last = piece.as_ref().is_none_or(|piece| piece.last);
        if let (Some(piece), Some(record)) = (&piece, &mut self.record) {
            record.body.extend_from_slice(&piece.data);
            if record.body.len() > IDEMPOTENT_ANSWER_BYTES {
                self.record = None;
            }
        }
        if last && let Some(mut record) = self.record.take() {
            let ticket = &mut record.ticket;
            if let Some(entry) = ticket.table.lock().get_mut(&ticket.key) {
                entry.since = Instant::now();
                entry.state = State::Done(Kept {
                    status: record.status,
                    headers: std::mem::take(&mut record.headers),
                    body: std::mem::take(&mut record.body).freeze(),
                });
            }
            ticket.done = true;
        }
        Ok(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key {
            from: "home".into(),
            key: "k".into(),
        }
    }

    fn whole(text: &'static str) -> Answer {
        Answer {
            status: 200,
            headers: HeaderMap::new(),
            length: None,
            body: AnswerBody::Whole(Some(Bytes::from_static(text.as_bytes()))),
        }
    }

    async fn run(table: &Idempotency, body: &str) -> Ticket {
        match table.turn(key(), &[body.as_bytes()]).await.unwrap() {
            Turn::Run(ticket) => ticket,
            Turn::Answered(_) => panic!("it was answered"),
        }
    }

    async fn read(mut answer: Answer) -> Bytes {
        answer.body.next().await.unwrap().unwrap().data
    }

    #[tokio::test(start_paused = true)]
    async fn a_repeated_request_gets_the_first_answer_for_ten_minutes() {
        let table = Idempotency::default();
        let answer = run(&table, "b").await.record(whole("one"));
        assert_eq!(read(answer).await, "one");
        for _ in 0..2 {
            let Turn::Answered(again) = table.turn(key(), &[b"b"]).await.unwrap() else {
                panic!("it would run again");
            };
            assert_eq!(read(*again).await, "one");
        }
        let other = table.turn(key(), &[b"c"]).await.unwrap_err();
        assert_eq!(other.code, Code::IdempotencyMismatch);
        tokio::time::advance(IDEMPOTENT_MEMORY).await;
        drop(run(&table, "c").await);
    }

    #[tokio::test]
    async fn a_second_request_waits_for_the_first() {
        let table = Idempotency::default();
        let first = run(&table, "b").await;
        let second = table.turn(key(), &[b"b"]);
        let finish = async {
            tokio::task::yield_now().await;
            read(first.record(whole("one"))).await
        };
        let (second, _) = tokio::join!(second, finish);
        assert!(matches!(second.unwrap(), Turn::Answered(_)));
    }

    #[tokio::test]
    async fn what_was_given_up_runs_again() {
        let table = Idempotency::default();
        let first = run(&table, "b").await;
        drop(first.record(whole("one")));
        // Not only once: nothing of it is left.
        drop(run(&table, "c").await);
        let large = vec![b'x'; IDEMPOTENT_ANSWER_BYTES + 1];
        let mut answer = whole("");
        answer.body = AnswerBody::Whole(Some(large.into()));
        read(run(&table, "d").await.record(answer)).await;
        drop(run(&table, "d").await);
    }

    #[tokio::test]
    async fn the_table_is_bounded() {
        let table = Idempotency::default();
        let numbered = |n: usize| Key {
            key: n.to_string(),
            ..key()
        };
        let mut held = Vec::new();
        for n in 0..IDEMPOTENT_ANSWERS {
            held.push(table.turn(numbered(n), &[]).await.unwrap());
        }
        let full = table.turn(numbered(IDEMPOTENT_ANSWERS), &[]).await;
        assert_eq!(full.unwrap_err().code, Code::Overloaded);
        let Some(Turn::Run(ticket)) = held.pop() else {
            panic!("no ticket");
        };
        read(ticket.record(whole("one"))).await;
        // The oldest answer makes room.
        let _next = table.turn(numbered(IDEMPOTENT_ANSWERS), &[]).await.unwrap();
        assert_eq!(table.lock().len(), IDEMPOTENT_ANSWERS);
    }
}
