//! One answer to a model request, whoever gives it: a provider here, or another node.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::{Instant, timeout_at};

use super::{
    idempotency::Recorded,
    lent::Place,
    provider::{Piece, ProviderBody},
};
use crate::{
    exchange::{Call, End, Item},
    wire::code::{Code, Failure},
};

/// Head and body of an answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status of the provider.
    pub status: u16,
    /// Headers that pass, `content-type` among them.
    pub headers: HeaderMap,
    /// Body length, when known.
    pub length: Option<u64>,
    /// The body.
    pub body: AnswerBody,
}

/// Body of an answer. Dropping it before its end stops whoever is giving it.
#[derive(Debug)]
pub enum AnswerBody {
    /// All there is.
    Whole(Option<Bytes>),
    /// From a provider of ours.
    Provider(ServedBody),
    /// From another node.
    Mesh(Call),
    /// One that is written down for a repeated request.
    Recorded(Recorded),
    /// Pieces already taken from the rest.
    Held(std::collections::VecDeque<Piece>, Box<AnswerBody>),
}

impl AnswerBody {
    /// The next bytes; none after the piece marked `last`.
    ///
    /// # Errors
    /// [`Failure`]: the answer ends here, incomplete.
    pub async fn next(&mut self) -> Result<Option<Piece>, Failure> {
        match self {
            Self::Whole(data) => Ok(data.take().map(|data| Piece { data, last: true })),
            Self::Provider(body) => body.next().await,
            Self::Mesh(call) => mesh_piece(call).await,
            Self::Recorded(recorded) => recorded.next().await,
            Self::Held(pieces, rest) => match pieces.pop_front() {
                Some(piece) => Ok(Some(piece)),
                None => Box::pin(rest.next()).await,
            },
        }
    }
}

async fn mesh_piece(call: &mut Call) -> Result<Option<Piece>, Failure> {
    loop {
        return match call.next().await? {
            None => Ok(None),
            Some(Item::Accept | Item::Waits(_)) => continue,
            Some(Item::Chunk { data, fin }) => {
                check(fin.as_ref())?;
                Ok(Some(Piece {
                    data,
                    last: fin.is_some(),
                }))
            }
            Some(Item::End(end)) => {
                check(Some(&end))?;
                Ok(Some(Piece {
                    data: Bytes::new(),
                    last: true,
                }))
            }
            Some(Item::Head { .. }) => Err(Failure::started(
                Code::ProtocolError,
                "the node sent a second head",
            )),
        };
    }
}

/// An answer that ends with `ok: false` is incomplete.
pub(super) fn check(end: Option<&End>) -> Result<(), Failure> {
    match end {
        Some(end) if !end.ok => Err(Failure::started(
            Code::UpstreamError,
            "the node ended the answer as failed",
        )),
        _ => Ok(()),
    }
}

/// Silence and time a provider's answer may take (protocol 7).
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Longest silence of a streamed answer; none when it is not streamed.
    pub idle: Option<Duration>,
    /// End of all patience; ends to apply at the first streamed byte.
    pub deadline: Instant,
}

impl Clock {
    /// The moment until which the next bytes must come.
    #[must_use]
    pub fn next_limit(&self, streaming: bool) -> Instant {
        match self.idle {
            None => self.deadline,
            Some(idle) if streaming => Instant::now() + idle,
            Some(idle) => self.deadline.min(Instant::now() + idle),
        }
    }
}

/// Body of a provider's answer, with its place at the model and its time limits.
#[derive(Debug)]
pub struct ServedBody {
    pub(super) body: ProviderBody,
    pub(super) clock: Option<Clock>,
    pub(super) bytes: u64,
    pub(super) limit: u64,
    pub(super) place: Place,
    /// When the provider was asked, until a streamed answer begins. One that is made whole before it
    /// comes says nothing of how fast the provider begins.
    pub(super) asked: Option<Instant>,
}

impl ServedBody {
    /// The next bytes.
    ///
    /// # Errors
    /// `timeout` and `deadline_exceeded` when it keeps a clock, `upstream_error` when it broke off or
    /// passed every size.
    pub async fn next(&mut self) -> Result<Option<Piece>, Failure> {
        let next = self.body.next();
        let piece = match self.clock {
            None => next.await,
            Some(clock) => timeout_at(clock.next_limit(self.bytes > 0), next)
                .await
                .map_err(|_| late(clock))?,
        };
        let piece = piece.map_err(|error| {
            tracing::debug!(%error, "provider broke off");
            Failure::started(Code::UpstreamError, "the provider broke off its answer")
        })?;
        if let Some(piece) = &piece {
            self.bytes += piece.data.len() as u64;
            if let Some(asked) = self.asked.take_if(|_| self.bytes > 0) {
                self.place.began(asked.elapsed());
            }
            if self.bytes > self.limit {
                return Err(Failure::started(
                    Code::UpstreamError,
                    "the provider's answer is larger than an answer may be",
                ));
            }
        }
        Ok(piece)
    }
}

/// Which limit was passed.
pub(super) fn late(clock: Clock) -> Failure {
    if clock.deadline <= Instant::now() {
        Failure::started(
            Code::DeadlineExceeded,
            "the provider did not finish within the time of the request",
        )
    } else {
        Failure::started(Code::Timeout, "the provider fell silent")
    }
}
