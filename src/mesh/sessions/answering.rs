//! A handshake that another node begins (protocol 4.2): the listener's half over routed frames.
//!
//! A hello proves nothing and costs us a signature, so hellos are paced by ingress link and the
//! unfinished ones are bounded. A message that comes again gets the reply it got before. Whoever
//! stands on the way may put messages of his own before the true ones: several of each kind are
//! looked at, and none of them takes another's place.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use super::{
    Hello, Hellos, MINUTE, Sessions, Table,
    live::{Keys, Live},
};
use crate::{
    crypto::{
        handshake::{Abort, Proved, Responder, Verified},
        stretch::SecretId,
        transcript::Carrier,
    },
    ids::{LinkId, NodeId, SessionId},
    mesh::{
        clock,
        drops::Reason,
        handshake::{HandshakeError, Params, blocking},
        link::Link,
        session::Peer,
    },
    trust::{Admission, Via},
    wire::limits::{HELLO_TIMEOUT, HELLOS_ALIKE, HELLOS_PER_PEER_MINUTE, PENDING_HELLOS},
};

type Hash = [u8; 32];

fn hash(text: &str) -> Hash {
    Sha256::digest(text).into()
}

/// Names a message of a handshake: whose and which handshake it claims to be, and all its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Name {
    origin: NodeId,
    tie: SessionId,
    text: Hash,
}

impl Name {
    fn of(origin: &NodeId, tie: SessionId, text: &str) -> Self {
        Self {
            origin: origin.clone(),
            tie,
            text: hash(text),
        }
    }

    fn same_handshake(&self, other: &Self) -> bool {
        self.tie == other.tie && self.origin == other.origin
    }
}

/// What a message of another node's handshake got for an answer.
#[derive(Debug)]
pub(super) struct Answer {
    since: Instant,
    link: LinkId,
    /// Once it is made.
    reply: Option<String>,
    /// To an M1: what opens the M3 that follows.
    responder: Option<Arc<Responder>>,
}

impl Answer {
    fn new(link: &Link) -> Self {
        Self {
            since: Instant::now(),
            link: link.id(),
            reply: None,
            responder: None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.since.elapsed() >= HELLO_TIMEOUT
    }
}

/// What to do with a message.
enum Step {
    /// Say this again.
    Repeat(String),
    /// Look at it.
    Look,
    /// Nothing: the answer is being made, or there is no place for it.
    Ignore(Option<Reason>),
}

impl Table {
    /// Whether a message comes again, or finds a place among those of its handshake.
    fn step<'a>(known: Option<&'a Answer>, mut alike: impl Iterator<Item = &'a Name>) -> Step {
        match known {
            Some(Answer {
                reply: Some(text), ..
            }) => Step::Repeat(text.clone()),
            Some(_) => Step::Ignore(None),
            None if alike.nth(HELLOS_ALIKE - 1).is_some() => Step::Ignore(Some(Reason::BadHello)),
            None => Step::Look,
        }
    }

    /// Makes room for one more unfinished handshake: the oldest goes of the link that brought most of
    /// them (an honest one needs two round trips).
    fn make_room(&mut self) {
        self.pending.retain(|_, answer| !answer.is_over());
        if self.pending.len() < PENDING_HELLOS {
            return;
        }
        let mut counts = std::collections::HashMap::new();
        for answer in self.pending.values() {
            *counts.entry(answer.link).or_insert(0_usize) += 1;
        }
        let busiest = counts.into_iter().max_by_key(|(_, count)| *count);
        let oldest = self
            .pending
            .iter()
            .filter(|(_, answer)| busiest.is_none_or(|(link, _)| answer.link == link))
            .min_by_key(|(_, answer)| answer.since)
            .map(|(name, _)| name.clone());
        if let Some(oldest) = oldest {
            self.pending.remove(&oldest);
        }
    }
}

/// What an M3 that holds leaves.
struct Judged {
    verified: Verified,
    params: Params,
    admission: Admission,
    m4: String,
    secret: SecretId,
}

impl Sessions {
    /// M1: answered now or when its turn comes.
    pub(super) fn hello(&self, hello: Hello) {
        let link = hello.link.clone();
        let known = self.0.us.trust.knows(&hello.origin);
        let mut table = self.table();
        let hellos = table
            .hellos
            .entry(link.id())
            .or_insert_with(|| Hellos::new(Instant::now()));
        let origin = hello.origin.as_str().to_owned();
        if !hellos.push(&origin, known, hello) {
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
        let name = Name::of(&hello.origin, hello.tie, &hello.text);
        let step = {
            let mut table = self.table();
            let alike = table.pending.keys().filter(|n| n.same_handshake(&name));
            let step = Table::step(table.pending.get(&name), alike);
            if matches!(step, Step::Look) {
                table.make_room();
                table.pending.insert(name.clone(), Answer::new(&hello.link));
            }
            step
        };
        match step {
            Step::Repeat(text) => self.say(&name.origin, &name.tie, &text, Some(&hello.link)),
            Step::Ignore(None) => {}
            Step::Ignore(Some(reason)) => hello.link.drops.count(reason),
            Step::Look => {
                let answering = self.clone().challenge(name, hello.text, hello.link);
                self.0.tasks.spawn(answering);
            }
        }
    }

    /// Makes and sends M2.
    async fn challenge(self, name: Name, m1: String, link: Arc<Link>) {
        let local = self.0.us.local(Carrier::EndToEnd);
        match blocking(move || Ok(Responder::answer(local, &m1)?)).await {
            Ok((responder, m2)) => {
                if let Some(answer) = self.table().pending.get_mut(&name) {
                    answer.reply = Some(m2.clone());
                    answer.responder = Some(Arc::new(responder));
                }
                self.say(&name.origin, &name.tie, &m2, Some(&link));
            }
            Err(_) => {
                self.table().pending.remove(&name);
                link.drops.count(Reason::BadHello);
            }
        }
    }

    /// M3.
    pub(super) fn proof(&self, link: &Arc<Link>, origin: &NodeId, tie: SessionId, m3: String) {
        let name = Name::of(origin, tie, &m3);
        let (step, responders) = {
            let mut table = self.table();
            let alike = table.proofs.keys().filter(|n| n.same_handshake(&name));
            let step = Table::step(table.proofs.get(&name), alike);
            let of_it = table
                .pending
                .iter()
                .filter(|(n, _)| n.same_handshake(&name));
            let responders: Vec<_> = of_it.filter_map(|(_, a)| a.responder.clone()).collect();
            match step {
                Step::Look if responders.is_empty() => {
                    (Step::Ignore(Some(Reason::BadHello)), responders)
                }
                Step::Look => {
                    table.proofs.insert(name.clone(), Answer::new(link));
                    (Step::Look, responders)
                }
                other => (other, responders),
            }
        };
        match step {
            Step::Repeat(text) => self.say(&name.origin, &name.tie, &text, Some(link)),
            Step::Ignore(None) => {}
            Step::Ignore(Some(reason)) => link.drops.count(reason),
            Step::Look => {
                let judging = self.clone().judge(name, m3, responders, link.clone());
                self.0.tasks.spawn(judging);
            }
        }
    }

    /// Looks at M3; sends M4 and enters the session when it holds.
    async fn judge(self, name: Name, m3: String, responders: Vec<Arc<Responder>>, link: Arc<Link>) {
        let us = &self.0.us;
        let keys = us.keys.accepted(std::time::SystemTime::now()).await;
        let (origin, this) = (name.origin.clone(), self.clone());
        let judged = blocking(move || {
            let mut opened = Err(Abort::Malformed("proof"));
            for responder in &responders {
                opened = responder.open(&m3, &keys);
                if opened.is_ok() {
                    break;
                }
            }
            this.admit(opened?, origin)
        })
        .await;
        let judged = match judged {
            Ok(judged) => judged,
            Err(error) => {
                tracing::debug!(peer = %name.origin, %error, "end-to-end handshake refused");
                link.drops.count(Reason::BadHello);
                // It leaves no trace: the true one may follow.
                self.table().proofs.remove(&name);
                return;
            }
        };
        let Judged {
            verified,
            params,
            admission,
            m4,
            secret,
        } = judged;
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
            secret,
        };
        let live = Live::new(
            us.node_id.clone(),
            peer,
            &keys,
            self.0.hops.clone(),
            self.0.faults.clone(),
        );
        self.install(&live, params.boot, false);
        if let Some(answer) = self.table().proofs.get_mut(&name) {
            answer.reply = Some(m4.clone());
        }
        self.say(&name.origin, &name.tie, &m4, Some(&link));
    }

    /// Judges a proof that holds: who is it, and may it have a session? Blocks on the disk.
    fn admit(&self, proved: Proved, origin: NodeId) -> Result<Judged, HandshakeError> {
        let trust = &self.0.us.trust;
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
        if !self.may_finish(proved.node()) {
            return Err(HandshakeError::Interrupted);
        }
        let admission = trust.pin(proved.node(), proved.key(), Via::EndToEnd)?;
        let secret = proved.secret();
        let (verified, m4) = proved.accept();
        Ok(Judged {
            verified,
            params,
            admission,
            m4,
            secret,
        })
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
