//! Who asks the control API for work, and how often: what handoffs, messages and tools need of a request
//! beside what it wants.

use http::{HeaderMap, header::ACCEPT};
use sha2::{Digest, Sha256};

use crate::{
    exchange::{Chain, Lineage, SESSION_HEADER},
    ids::{RequestId, hex},
    once::{self, Key, Once, Ticket},
    proxy::{error::Asked, model::idempotency_key, tokens::Grant},
    wire::code::Failure,
};

/// One request for work.
#[derive(Debug)]
pub struct Client<'a> {
    headers: &'a HeaderMap,
    lineage: &'a Lineage,
    /// Names the request.
    pub asked: Asked,
    path: &'a str,
    body: &'a [u8],
    /// Its `Idempotency-Key`, if it has one, among those of the same token.
    key: Option<Key>,
}

/// What is to be done for a request.
#[derive(Debug)]
pub enum Turn<T> {
    /// The work; its result goes to the ticket, if the request had a key.
    Run(Option<Ticket<T>>),
    /// Nothing: it was done under the same key.
    Done(T),
}

impl<'a> Client<'a> {
    /// The client of a request to `path` with `body`.
    ///
    /// # Errors
    /// `invalid_request` for a key that is none.
    pub fn new(
        grant: &Grant,
        headers: &'a HeaderMap,
        lineage: &'a Lineage,
        asked: Asked,
        path: &'a str,
        body: &'a [u8],
    ) -> Result<Self, Failure> {
        let key = idempotency_key(headers)?.map(|key| Key {
            from: hex(&grant.owner),
            key,
        });
        Ok(Self {
            headers,
            lineage,
            asked,
            path,
            body,
            key,
        })
    }

    /// The chain of the session a tool was called in, and whether one was named at all: then an agent
    /// asks.
    #[must_use]
    pub fn chain(&self) -> (Chain, bool) {
        let session = self.headers.get(SESSION_HEADER);
        let session = session.and_then(|value| value.to_str().ok());
        (self.lineage.of(session), session.is_some())
    }

    /// Whether events are wanted as they come.
    #[must_use]
    pub fn wants_events(&self) -> bool {
        let accepted = self.headers.get_all(ACCEPT).iter();
        accepted
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.contains("text/event-stream"))
    }

    /// Whether this is done now, or was done before. Waits while the same is under way; what `stands`
    /// denies is done again.
    ///
    /// # Errors
    /// As [`Once::turn`].
    pub async fn turn<T: Clone>(
        &self,
        once: &Once<T>,
        stands: impl Fn(&T) -> bool,
    ) -> Result<Turn<T>, Failure> {
        let Some(key) = self.key.clone() else {
            return Ok(Turn::Run(None));
        };
        let parts = [self.path.as_bytes(), self.body];
        Ok(match once.turn(key, &parts, stands).await? {
            once::Turn::Run(ticket) => Turn::Run(Some(ticket)),
            once::Turn::Done(result) => Turn::Done(result),
        })
    }

    /// A name for what is asked that every repeat has again, after a restart too; none without a key.
    #[must_use]
    pub fn name(&self) -> Option<RequestId> {
        let Key { from, key } = self.key.as_ref()?;
        let mut hash = Sha256::new();
        for part in [
            from.as_bytes(),
            key.as_bytes(),
            self.path.as_bytes(),
            self.body,
        ] {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        let hash: [u8; 32] = hash.finalize().into();
        let (name, _) = hash.split_first_chunk()?;
        Some(RequestId(*name))
    }
}
