//! A handshake that another node begins (protocol 4.2): the listener's half over routed frames.
//!
//! A hello proves nothing and costs us a signature, so hellos are paced by ingress link and the
//! unfinished ones are bounded. A message that comes again gets the reply it got before.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use super::{
    Hello, Hellos, MINUTE, Sessions,
    live::{Keys, Live},
};
use crate::{
    crypto::{
        handshake::{Abort, Responder},
        transcript::Carrier,
    },
    ids::{NodeId, SessionId},
    mesh::{
        clock,
        drops::Reason,
        handshake::{HandshakeError, Params, blocking},
        link::Link,
        session::Peer,
    },
    trust::Via,
    wire::limits::{HELLO_TIMEOUT, HELLOS_PER_PEER_MINUTE, PENDING_HELLOS},
};

type Hash = [u8; 32];

fn hash(text: &str) -> Hash {
    Sha256::digest(text).into()
}

/// A reply, once it is made.
#[derive(Debug)]
struct Reply {
    to: Hash,
    text: Option<String>,
}

/// A handshake we answer.
#[derive(Debug)]
pub(super) struct Pending {
    since: Instant,
    hello: Reply,
    responder: Option<Arc<Responder>>,
    proof: Option<Reply>,
}

impl Pending {
    pub(super) fn is_over(&self) -> bool {
        self.since.elapsed() >= HELLO_TIMEOUT
    }
}

/// What to do with a message that may have come before.
enum Step {
    /// Say this again.
    Repeat(String),
    /// Look at it with this.
    Answer(Option<Arc<Responder>>),
    /// Nothing: the answer is being made, or there is no place for it.
    Ignore(Option<Reason>),
}

impl Sessions {
    /// M1: answered now or when its turn comes.
    pub(super) fn hello(&self, hello: Hello) {
        let link = hello.link.clone();
        let mut table = self.table();
        let hellos = table
            .hellos
            .entry(link.id())
            .or_insert_with(|| Hellos::new(Instant::now()));
        let origin = hello.origin.as_str().to_owned();
        if !hellos.push(&origin, hello) {
            link.drops.count(Reason::HelloLimited);
        }
        let start = !std::mem::replace(&mut table.serving, true);
        drop(table);
        let left = self.serve_hellos();
        if start {
            if left {
                self.0.tasks.spawn(run_hellos(self.clone()));
            } else {
                self.table().serving = false;
            }
        }
    }

    /// Answers what may be answered now; whether more waits.
    fn serve_hellos(&self) -> bool {
        loop {
            let next = {
                let mut table = self.table();
                let now = Instant::now();
                let mut queues = table.hellos.values_mut();
                queues.find_map(|hellos| hellos.pop(now))
            };
            match next {
                Some(hello) => self.answer(hello),
                None => {
                    let table = self.table();
                    return table.hellos.values().any(|hellos| hellos.due().is_some());
                }
            }
        }
    }

    fn answer(&self, hello: Hello) {
        let key = (hello.origin, hello.tie);
        let to = hash(&hello.text);
        let step = {
            let mut table = self.table();
            let full = table.pending.len() >= PENDING_HELLOS;
            match table.pending.get(&key) {
                Some(pending) if pending.hello.to == to => match &pending.hello.text {
                    Some(text) => Step::Repeat(text.clone()),
                    None => Step::Ignore(None),
                },
                Some(_) => Step::Ignore(Some(Reason::BadHello)),
                None if full => {
                    table.pending.retain(|_, pending| !pending.is_over());
                    Step::Ignore(Some(Reason::HelloLimited))
                }
                None => {
                    let pending = Pending {
                        since: Instant::now(),
                        hello: Reply { to, text: None },
                        responder: None,
                        proof: None,
                    };
                    table.pending.insert(key.clone(), pending);
                    Step::Answer(None)
                }
            }
        };
        match step {
            Step::Repeat(text) => self.say(&key.0, &key.1, &text, Some(&hello.link)),
            Step::Ignore(None) => {}
            Step::Ignore(Some(reason)) => hello.link.drops.count(reason),
            Step::Answer(_) => {
                let answering = self.clone().challenge(key, hello.text, hello.link);
                self.0.tasks.spawn(answering);
            }
        }
    }

    /// Makes and sends M2.
    async fn challenge(self, key: (NodeId, SessionId), m1: String, link: Arc<Link>) {
        let local = self.0.us.local(Carrier::EndToEnd);
        match blocking(move || Ok(Responder::answer(local, &m1)?)).await {
            Ok((responder, m2)) => {
                if let Some(pending) = self.table().pending.get_mut(&key) {
                    pending.hello.text = Some(m2.clone());
                    pending.responder = Some(Arc::new(responder));
                }
                self.say(&key.0, &key.1, &m2, Some(&link));
            }
            Err(_) => {
                self.table().pending.remove(&key);
                link.drops.count(Reason::BadHello);
            }
        }
    }

    /// M3.
    pub(super) fn proof(&self, link: &Arc<Link>, origin: NodeId, tie: SessionId, m3: String) {
        let key = (origin, tie);
        let to = hash(&m3);
        let step = {
            let mut table = self.table();
            match table.pending.get_mut(&key) {
                None => Step::Ignore(Some(Reason::BadHello)),
                Some(pending) => match (&pending.proof, &pending.responder) {
                    (Some(Reply { to: before, text }), _) if *before == to => match text {
                        Some(text) => Step::Repeat(text.clone()),
                        None => Step::Ignore(None),
                    },
                    // Answered already, or another one is being looked at: it is sent again.
                    (Some(_), _) | (None, None) => Step::Ignore(Some(Reason::BadHello)),
                    (None, Some(responder)) => {
                        let responder = responder.clone();
                        pending.proof = Some(Reply { to, text: None });
                        Step::Answer(Some(responder))
                    }
                },
            }
        };
        match step {
            Step::Repeat(text) => self.say(&key.0, &key.1, &text, Some(link)),
            Step::Ignore(Some(reason)) => link.drops.count(reason),
            Step::Ignore(None) | Step::Answer(None) => {}
            Step::Answer(Some(responder)) => {
                let judging = self.clone().judge(key, m3, responder, link.clone());
                self.0.tasks.spawn(judging);
            }
        }
    }

    /// Looks at M3; sends M4 and enters the session when it holds.
    async fn judge(
        self,
        key: (NodeId, SessionId),
        m3: String,
        responder: Arc<Responder>,
        link: Arc<Link>,
    ) {
        let us = &self.0.us;
        let keys = us.keys.accepted(std::time::SystemTime::now()).await;
        let trust = us.trust.clone();
        let (origin, this) = (key.0.clone(), self.clone());
        let judged = blocking(move || {
            let proved = responder.open(&m3, &keys)?;
            let params = Params::read(proved.params()).ok_or(Abort::Malformed("params"))?;
            // The name in the header is what routes go by; it must be the proved one.
            if *proved.node() != origin {
                return Err(Abort::OtherNode {
                    expected: origin,
                    found: proved.node().clone(),
                }
                .into());
            }
            trust.check(proved.node(), proved.key())?;
            if !this.may_finish(proved.node()) {
                return Err(HandshakeError::Interrupted);
            }
            let admission = trust.pin(proved.node(), proved.key(), Via::EndToEnd)?;
            let (verified, m4) = proved.accept();
            Ok((verified, params, admission, m4))
        })
        .await;
        let (verified, params, admission, m4) = match judged {
            Ok(judged) => judged,
            Err(error) => {
                tracing::debug!(peer = %key.0, %error, "end-to-end handshake refused");
                link.drops.count(Reason::BadHello);
                // An injected message must not end the attempt: the true one may follow.
                if let Some(pending) = self.table().pending.get_mut(&key) {
                    pending.proof = None;
                }
                return;
            }
        };
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
            ours: false,
            began: clock::since_boot(),
        };
        let live = Live::new(
            us.node_id.clone(),
            peer,
            &keys,
            self.0.hops.clone(),
            self.0.faults.clone(),
        );
        self.install(&live, params.boot, false);
        if let Some(pending) = self.table().pending.get_mut(&key)
            && let Some(proof) = &mut pending.proof
        {
            proof.text = Some(m4.clone());
        }
        self.say(&key.0, &key.1, &m4, Some(&link));
    }

    /// Counts a valid proof of `node`; false above its limit.
    fn may_finish(&self, node: &NodeId) -> bool {
        let mut table = self.table();
        let now = Instant::now();
        let peers = table.peers.entry(node.clone()).or_default();
        let (since, count) = peers
            .finished
            .filter(|(since, _)| now.saturating_duration_since(*since) < MINUTE)
            .unwrap_or((now, 0));
        peers.finished = Some((since, count + 1));
        count < HELLOS_PER_PEER_MINUTE
    }
}

/// Serves the hellos that wait, as their turns come.
async fn run_hellos(sessions: Sessions) {
    loop {
        let due = {
            let mut table = sessions.table();
            let due = table.hellos.values().filter_map(Hellos::due).min();
            if due.is_none() {
                table.serving = false;
            }
            due
        };
        match due {
            None => return,
            Some(due) => sleep(due).await,
        }
        sessions.serve_hellos();
    }
}
