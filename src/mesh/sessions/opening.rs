//! A handshake that we begin (protocol 4.2): the dialer's half over routed frames.
//!
//! Messages may be lost, altered, repeated or invented on the way. What does not verify is dropped
//! and counted; ours are sent again after 1, 2 and 4 s, the same bytes; the whole ends at 10 s.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    Said, Sessions,
    live::{Keys, Live},
    notices::NO_ROUTE,
};
use crate::{
    crypto::{handshake::Initiator, transcript::Carrier},
    ids::{LinkId, NodeId, SessionId},
    mesh::{
        clock,
        drops::Reason,
        handshake::{HandshakeError, Ourselves, Params, blocking},
        session::Peer,
    },
    trust::Via,
    wire::{
        code::{Code, Failure},
        limits::{HELLO_AGAIN, HELLO_TIMEOUT},
    },
};

/// Makes M1.
pub(super) fn begin(us: &Ourselves, node: &NodeId) -> (Initiator, String) {
    Initiator::hello(us.local(Carrier::EndToEnd), node.clone())
}

/// Runs the handshake to its end and tells whoever waits.
pub(super) async fn run(
    sessions: Sessions,
    node: NodeId,
    initiator: Initiator,
    m1: String,
    heard: mpsc::Receiver<Said>,
    done: watch::Sender<Option<Result<(), Failure>>>,
) {
    let tie = initiator.tie();
    // However this task ends, nobody may wait for it for ever.
    let _entry = Entry {
        sessions: &sessions,
        tie,
    };
    let mut attempt = Attempt {
        sessions: &sessions,
        node: &node,
        tie,
        heard,
        deadline: Instant::now() + HELLO_TIMEOUT,
        refused: None,
        astray: 0,
        sent: 0,
        over: None,
        moves: 0,
    };
    let outcome = attempt.run(initiator, m1).await;
    let outcome = outcome.ok_or_else(|| {
        let why = attempt
            .refused
            .as_ref()
            .map_or_else(|| "no answer".to_owned(), ToString::to_string);
        tracing::info!(peer = %node, why, "no end-to-end session");
        if attempt.astray >= ASTRAY {
            return Failure::not_started(
                Code::NoRoute,
                format!("node `{node}` is not reachable: no relay knows a way to it"),
            );
        }
        Failure::not_started(
            Code::PeerUnreachable,
            format!("node `{node}` opened no session: {why}"),
        )
    });
    done.send_replace(Some(outcome));
}

/// Hints that no way leads to a node that end an attempt.
const ASTRAY: u32 = 2;
/// Messages without an answer after which another way is tried first.
const BLAMED_AFTER: u32 = 2;
/// Times a message is said again in one attempt because another link leads to the node now.
const MOVES: u32 = 8;

struct Entry<'a> {
    sessions: &'a Sessions,
    tie: SessionId,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.sessions.opened(&self.tie);
    }
}

struct Attempt<'a> {
    sessions: &'a Sessions,
    node: &'a NodeId,
    tie: SessionId,
    heard: mpsc::Receiver<Said>,
    deadline: Instant,
    /// Why the last message was not accepted, for the operator.
    refused: Option<HandshakeError>,
    /// Hints that no way leads to the node.
    astray: u32,
    /// Messages sent so far.
    sent: u32,
    /// The link over which the last one went.
    over: Option<LinkId>,
    /// Messages sent again because of another link.
    moves: u32,
}

impl Attempt<'_> {
    /// None when there is no session at the deadline.
    async fn run(&mut self, initiator: Initiator, m1: String) -> Option<()> {
        let us = &self.sessions.0.us;
        let initiator = Arc::new(initiator);
        let introduced = self
            .exchange(&m1, "auth_challenge", |m2| {
                let (initiator, trust) = (initiator.clone(), us.trust.clone());
                blocking(move || {
                    let introduced = initiator.open(&m2)?;
                    // Only the key pinned for the name is told anything that depends on the secret.
                    trust.check(introduced.node(), introduced.key())?;
                    Ok(introduced)
                })
            })
            .await?;
        let key = us.keys.own().await;
        let secret = key.id;
        let proved = blocking(move || Ok(introduced.prove(&key.key))).await;
        let (proving, m3) = proved.ok()?;
        let proving = Arc::new(proving);
        let began = clock::since_boot();
        let (verified, params, admission) = self
            .exchange(&m3, "auth_ok", |m4| {
                let (proving, trust) = (proving.clone(), us.trust.clone());
                blocking(move || {
                    let verified = proving.confirm(&m4)?;
                    let params = Params::read(&verified.params)
                        .ok_or(crate::crypto::handshake::Abort::Malformed("params"))?;
                    let admission = trust.pin(&verified.node, &verified.key, Via::EndToEnd)?;
                    Ok((verified, params, admission))
                })
            })
            .await?;
        let peer = Peer {
            node: verified.node,
            key: verified.key,
            boot: params.boot,
            level: admission.level,
            labels: admission.labels,
        };
        let keys = Keys {
            sid: verified.sid,
            send: verified.send_key,
            receive: verified.recv_key,
            ours: true,
            began,
            secret,
        };
        let shared = &self.sessions.0;
        let live = Live::new(
            us.node_id.clone(),
            peer,
            &keys,
            shared.hops.clone(),
            shared.faults.clone(),
        );
        self.sessions.install(&live, params.boot, true);
        Some(())
    }

    /// The link that leads to the node now.
    fn way(&self) -> Option<LinkId> {
        let hop = self.sessions.0.hops.get(self.node.as_str());
        hop.map(|hop| hop.link.id())
    }

    /// Sends `message` until an answer of type `kind` is accepted.
    async fn exchange<T, F>(
        &mut self,
        message: &str,
        kind: &str,
        accept: impl Fn(String) -> F,
    ) -> Option<T>
    where
        F: Future<Output = Result<T, HandshakeError>>,
    {
        let mut pauses = HELLO_AGAIN.iter();
        let mut again = Instant::now();
        let hops = self.sessions.0.hops.clone();
        loop {
            let rerouted = hops.changed();
            tokio::pin!(rerouted);
            // Registered before the look, so that no change between the two is missed.
            rerouted.as_mut().enable();
            let over = self.way();
            if self.sent > 0 && over.is_some() && over != self.over && self.moves < MOVES {
                // What went over the link before may be lost with it.
                self.moves += 1;
                self.over = over;
                self.sessions.say(self.node, &self.tie, message, None);
            }
            tokio::select! {
                said = timeout_at(self.deadline, self.heard.recv()) => {
                    let said = said.ok()??;
                    if said.kind == NO_ROUTE {
                        // Once may be a moment too early: routes follow a new link within a second.
                        self.astray += 1;
                        if self.astray >= ASTRAY {
                            return None;
                        }
                        continue;
                    }
                    if said.kind != kind {
                        // An answer to the message before, which was said more than once.
                        continue;
                    }
                    match accept(said.text).await {
                        Ok(accepted) => return Some(accepted),
                        Err(error) => {
                            self.sessions.0.drops.count(Reason::BadHello);
                            self.refused = Some(error);
                        }
                    }
                }
                () = sleep_until(again) => {
                    if self.sent == BLAMED_AFTER {
                        self.sessions.blame_hop(self.node);
                    }
                    self.sent += 1;
                    self.over = self.way();
                    self.sessions.say(self.node, &self.tie, message, None);
                    // After the last time only the deadline ends it.
                    again = pauses.next().map_or(self.deadline + HELLO_TIMEOUT, |pause| again + *pause);
                }
                () = &mut rerouted => {}
            }
        }
    }
}
