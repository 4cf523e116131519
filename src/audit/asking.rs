//! The record of what this node asks of others (protocol 8.6).
//!
//! Lines of this side never hold anything up: the node that is asked has its own, synced before it
//! acts. A request that is given up without an end is one that was cancelled.

use super::{Audit, Decision, Direction, Entry};
use crate::{
    crypto::identity::KeyId,
    ids::{NodeId, RequestId},
    mesh::session::Peer,
    trust::Level,
    wire::code::{Code, Failure},
};

/// What lets a request out: the only rule an asking node has.
const RULE: &str = "outbound.minTrust";

/// The record, for the parts that ask other nodes; cheap to clone.
#[derive(Debug, Clone)]
pub struct Asking {
    pub(super) audit: Audit,
    pub(super) us: NodeId,
    pub(super) key: KeyId,
}

impl Asking {
    /// We are about to ask node `to` for `action`. Only the hash of `args` is kept. Dropped before its
    /// end is told, it counts as cancelled.
    #[must_use]
    pub fn ask(&self, to: &NodeId, rid: RequestId, action: &str, args: &[u8]) -> Question {
        let entry = Entry::made(self.us.clone(), self.key, rid, action, args).ruled(RULE, 0);
        Question {
            audit: self.audit.clone(),
            entry: Some(Box::new(Entry {
                direction: Direction::Out,
                to: Some(to.clone()),
                ..entry
            })),
        }
    }
}

/// One request to another node, until its end is told.
#[derive(Debug)]
pub struct Question {
    audit: Audit,
    entry: Option<Box<Entry>>,
}

impl Question {
    /// It is on its way, and may take long: a line of its own.
    pub fn begun(&self) {
        if let Some(entry) = &self.entry {
            self.audit.record(Entry::clone(entry));
        }
    }

    /// It is on its way, and soon over: only those who watch are told.
    pub fn announced(&self) {
        if let Some(entry) = &self.entry {
            self.audit.announce(entry);
        }
    }

    /// Goes on after a step on the way there that may fail.
    ///
    /// # Errors
    /// The step's own.
    pub fn after<T>(self, step: Result<T, Failure>) -> Result<(Self, T), Failure> {
        match step {
            Ok(done) => Ok((self, done)),
            Err(failure) => {
                self.failed(&failure);
                Err(failure)
            }
        }
    }

    /// Goes on if `peer`, who is about to be asked, is trusted enough.
    ///
    /// # Errors
    /// `forbidden`: nothing was sent.
    pub fn admit(self, peer: &Peer, least: Level) -> Result<Self, Failure> {
        if peer.level >= least {
            return Ok(self);
        }
        let failure = Failure::not_started(
            Code::Forbidden,
            format!(
                "node `{}` is trusted less than `outbound.minTrust` asks for",
                peer.node
            ),
        );
        self.refused(&failure);
        Err(failure)
    }

    /// How it ended: `completed`, a status, an outcome.
    pub fn ended(mut self, result: &str) {
        self.close(result, Decision::Allow);
    }

    /// What it failed with, here or there.
    pub fn failed(mut self, failure: &Failure) {
        self.close(failure.code.as_str(), Decision::Allow);
    }

    /// This node itself refused to ask.
    fn refused(mut self, failure: &Failure) {
        self.close(failure.code.as_str(), Decision::Deny);
    }

    /// It has not gone out, and will be asked again: no line.
    pub fn put_off(mut self) {
        self.entry = None;
    }

    fn close(&mut self, result: &str, decision: Decision) {
        if let Some(entry) = self.entry.take() {
            let entry = Entry { decision, ..*entry };
            self.audit.record(entry.ended(result));
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.close("cancelled", Decision::Allow);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        events::{Events, Happening},
        mesh::testkit::peer,
    };

    #[tokio::test]
    async fn each_end_is_told_once_and_a_refusal_of_ours_is_one() {
        let events = Events::default();
        let mut watcher = events.watch().unwrap();
        let asking = Audit::off()
            .telling(events)
            .asking("home".parse().unwrap(), KeyId([1; 16]));
        let office = peer("office", 1);
        let ask = || asking.ask(&office.node, RequestId::random(), "tool:exec", b"{}");
        let failure = ask().admit(&office, Level::Trusted).unwrap_err();
        assert_eq!(failure.code, Code::Forbidden);
        let verdict = watcher.next().await.unwrap();
        assert_eq!(verdict.what, Happening::Verdict);
        assert_eq!(
            (&verdict.data["decision"], &verdict.data["rule"]),
            (&"deny".into(), &RULE.into())
        );
        ask()
            .admit(&office, Level::Pinned)
            .unwrap()
            .ended("completed");
        drop(ask());
        let lost = Failure::not_started(Code::NoRoute, "gone");
        assert!(ask().after::<()>(Err(lost)).is_err());
        ask().put_off();
        ask().ended("last");
        for result in ["completed", "cancelled", "no_route", "last"] {
            let event = watcher.next().await.unwrap();
            assert_eq!(event.what, Happening::RequestEnded);
            assert_eq!(event.data["result"], result);
        }
    }
}
