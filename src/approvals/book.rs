//! The life of a request that waits, as rules without clock, locks or tasks.
//!
//! ```text
//! ask -> pending -> approved -> used
//!                -> denied
//!                -> expired           (its time is up, decided or not)
//! withdraw: the caller went away; nothing is kept
//! ```
//!
//! What was decided or is late is remembered without its content for a while, so that a second decision is
//! told apart from one about a request that never was.

use std::collections::BTreeMap;

use super::{ApprovalId, Request};
use crate::{
    crypto::identity::{KeyId, PublicKey},
    wire::{
        code::{Code, Failure},
        limits::{APPROVALS, APPROVALS_PER_PEER, APPROVALS_REMEMBERED},
    },
};

/// What a person said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It may happen, once; who said so.
    Approved(KeyId),
    /// It may not.
    Denied,
}

/// Why a request cannot wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The caller has as many as one may have.
    #[error("{APPROVALS_PER_PEER} of its requests wait for a person already")]
    Peer,
    /// Too many of all callers.
    #[error("{APPROVALS} requests wait for a person already")]
    Node,
}

/// Why a decision does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such request.
    #[error("no such request waits here")]
    Unknown,
    /// It was decided, or used.
    #[error("that request was decided before; an approval counts once")]
    Decided,
    /// Too late.
    #[error("the time of that request is up")]
    Expired,
    /// Made by another key, or for another request.
    #[error("this is no signature of an operator of this node over this request")]
    Signature,
    /// Level 3, and the challenge was not typed.
    #[error("the challenge was not repeated")]
    Challenge,
    /// Level 3, and not at the node itself.
    #[error(
        "a request of level 3 is approved on its own node alone: `clawmatrix approvals approve` there"
    )]
    Console,
}

impl Refused {
    /// As clients and other nodes are told it.
    #[must_use]
    pub fn failure(self) -> Failure {
        let code = match self {
            Self::Unknown => Code::NotFound,
            Self::Expired => Code::ApprovalExpired,
            Self::Decided | Self::Signature | Self::Challenge | Self::Console => Code::Forbidden,
        };
        Failure::not_started(code, self.to_string())
    }
}

#[derive(Debug)]
enum State {
    Pending(Box<Request>),
    Approved(KeyId),
    /// Used, denied, or late.
    Over,
}

#[derive(Debug)]
struct Entry {
    state: State,
    from: PublicKey,
    exp: u64,
    /// What a person types for level 3.
    challenge: String,
}

/// Every request that waits, and those that were decided lately. Times are ms since 1970.
#[derive(Debug, Default)]
pub struct Book(BTreeMap<ApprovalId, Entry>);

impl Book {
    /// Parks a request under `id`, which must be new; `challenge` is what level 3 wants typed.
    ///
    /// # Errors
    /// [`Full`]; nothing is kept.
    pub fn ask(
        &mut self,
        id: ApprovalId,
        request: Request,
        challenge: String,
        now: u64,
    ) -> Result<(), Full> {
        self.sweep(now);
        let pending = || self.0.values().filter(|entry| entry.pending().is_some());
        if pending().count() >= APPROVALS {
            return Err(Full::Node);
        }
        let theirs = pending().filter(|entry| entry.from == request.from_key);
        if theirs.count() >= APPROVALS_PER_PEER {
            return Err(Full::Peer);
        }
        let entry = Entry {
            from: request.from_key,
            exp: request.exp,
            challenge,
            state: State::Pending(Box::new(request)),
        };
        self.0.insert(id, entry);
        Ok(())
    }

    /// Whether this name was given to a request that is still remembered.
    #[must_use]
    pub fn knows(&self, id: ApprovalId) -> bool {
        self.0.contains_key(&id)
    }

    /// What waits, the oldest first.
    pub fn pending(&mut self, now: u64) -> Vec<(ApprovalId, &Request)> {
        self.sweep(now);
        let mut all: Vec<_> = self
            .0
            .iter()
            .filter_map(|(id, entry)| Some((*id, entry.pending()?)))
            .collect();
        all.sort_by_key(|(_, request)| request.asked);
        all
    }

    /// One that waits, and its challenge.
    ///
    /// # Errors
    /// [`Refused::Unknown`], [`Refused::Decided`], [`Refused::Expired`].
    pub fn find(&self, id: ApprovalId, now: u64) -> Result<(&Request, &str), Refused> {
        let entry = self.0.get(&id).ok_or(Refused::Unknown)?;
        if now >= entry.exp {
            return Err(Refused::Expired);
        }
        let request = entry.pending().ok_or(Refused::Decided)?;
        Ok((request, &entry.challenge))
    }

    /// An operator agrees. Nothing changes unless the signature is one of `operators` over this very
    /// request.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn approve(
        &mut self,
        id: ApprovalId,
        signature: &[u8; 64],
        typed: &str,
        operators: &[PublicKey],
        now: u64,
    ) -> Result<KeyId, Refused> {
        let (request, challenge) = self.find(id, now)?;
        let signed = request.signed();
        let by = operators
            .iter()
            .find(|key| signed.is_by(key, signature))
            .ok_or(Refused::Signature)?
            .id();
        if request.level >= CONSOLE_LEVEL && typed != challenge {
            return Err(Refused::Challenge);
        }
        self.settle(id, State::Approved(by));
        Ok(by)
    }

    /// Somebody says no.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn deny(&mut self, id: ApprovalId, now: u64) -> Result<(), Refused> {
        self.find(id, now)?;
        self.settle(id, State::Over);
        Ok(())
    }

    /// Takes the approval of a request, which counts once and in time.
    ///
    /// # Errors
    /// [`Refused`]; it does not run.
    pub fn take(&mut self, id: ApprovalId, now: u64) -> Result<KeyId, Refused> {
        let entry = self.0.get_mut(&id).ok_or(Refused::Unknown)?;
        let State::Approved(by) = entry.state else {
            return Err(Refused::Decided);
        };
        entry.state = State::Over;
        if now >= entry.exp {
            return Err(Refused::Expired);
        }
        Ok(by)
    }

    /// The caller went away: what waits is dropped, and an approval that was not used yet counts no
    /// more. What is late is remembered as such.
    pub fn withdraw(&mut self, id: ApprovalId, now: u64) {
        self.sweep(now);
        let over = |entry: &Entry| matches!(entry.state, State::Over);
        if self.0.get(&id).is_some_and(|entry| !over(entry)) {
            self.0.remove(&id);
        }
    }

    fn settle(&mut self, id: ApprovalId, state: State) {
        if let Some(entry) = self.0.get_mut(&id) {
            entry.state = state;
        }
    }

    /// Ends what is late, drops its content, and forgets what ended long ago.
    fn sweep(&mut self, now: u64) {
        self.0.retain(|_, entry| now < entry.exp + REMEMBERED_MS);
        for entry in self.0.values_mut().filter(|entry| now >= entry.exp) {
            entry.state = State::Over;
        }
        let over = |entry: &Entry| matches!(entry.state, State::Over);
        let mut spare = self.0.values().filter(|entry| over(entry)).count();
        while spare > APPROVALS_REMEMBERED {
            let ended = self.0.iter().filter(|(_, entry)| over(entry));
            let Some(id) = ended.min_by_key(|(_, entry)| entry.exp).map(|(id, _)| *id) else {
                return;
            };
            self.0.remove(&id);
            spare -= 1;
        }
    }
}

/// How long past its time a request is known to have been there.
const REMEMBERED_MS: u64 = 10 * 60 * 1000;
/// The level at which a challenge is typed.
pub const CONSOLE_LEVEL: u8 = 3;

impl Entry {
    fn pending(&self) -> Option<&Request> {
        match &self.state {
            State::Pending(request) => Some(request),
            State::Approved(_) | State::Over => None,
        }
    }
}
