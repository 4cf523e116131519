//! `Idempotency-Key` (protocol 7.2): the node that serves a model gives a repeated request the answer of
//! the first one, so that a client may repeat what it is unsure about. Another body under the same key
//! is refused.
//!
//! Only finished answers are kept, in memory, for ten minutes, up to a size. What is larger, failed or
//! was given up is simply run again.

use std::fmt;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use super::{
    answer::{Answer, AnswerBody},
    provider::Piece,
};
use crate::{
    once::{self, Full, Key, Once},
    wire::{
        code::Failure,
        limits::{IDEMPOTENT_ANSWER_BYTES, IDEMPOTENT_ANSWERS},
    },
};

/// An answer that is over.
#[derive(Debug, Clone)]
struct Kept {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

/// The answers of the last ten minutes; cheap to clone.
#[derive(Debug, Clone)]
pub struct Idempotency(Once<Kept>);

/// What to do with a request.
#[derive(Debug)]
pub enum Turn {
    /// Run it, and give its answer to the ticket.
    Run(Ticket),
    /// It was answered before.
    Answered(Box<Answer>),
}

/// The right to run a request. Dropped without a finished answer, it lets the next one run.
#[derive(Debug)]
pub struct Ticket(once::Ticket<Kept>);

impl Default for Idempotency {
    fn default() -> Self {
        Self(Once::new(IDEMPOTENT_ANSWERS, Full::Forget))
    }
}

impl Idempotency {
    /// Whether the request under `key` is to be run. Waits while an earlier one with the same key is
    /// under way.
    ///
    /// # Errors
    /// As [`Once::turn`].
    pub async fn turn(&self, key: Key, parts: &[&[u8]]) -> Result<Turn, Failure> {
        Ok(match self.0.turn(key, parts, |_| true).await? {
            once::Turn::Run(ticket) => Turn::Run(Ticket(ticket)),
            once::Turn::Done(kept) => Turn::Answered(Box::new(kept.answer())),
        })
    }
}

impl Kept {
    fn answer(self) -> Answer {
        Answer {
            status: self.status,
            headers: self.headers,
            length: Some(self.body.len() as u64),
            body: AnswerBody::Whole(Some(self.body)),
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
        if last && let Some(record) = self.record.take() {
            record.ticket.0.done(Kept {
                status: record.status,
                headers: record.headers,
                body: record.body.freeze(),
            });
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

    #[tokio::test]
    async fn a_repeated_request_gets_the_first_answer() {
        let table = Idempotency::default();
        let answer = run(&table, "b").await.record(whole("one"));
        assert_eq!(read(answer).await, "one");
        for _ in 0..2 {
            let Turn::Answered(again) = table.turn(key(), &[b"b"]).await.unwrap() else {
                panic!("it would run again");
            };
            assert_eq!(read(*again).await, "one");
        }
    }

    #[tokio::test]
    async fn what_was_given_up_or_is_too_large_runs_again() {
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
}
