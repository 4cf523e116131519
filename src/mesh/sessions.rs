//! End-to-end sessions: keys shared with other nodes however many hops away (protocol 4.2-4.5).
//!
//! ```text
//! session(node) -- opening: our handshake -----.
//!                                               +-- live: frames sealed and opened -- handler
//! hello of another node -- answering: theirs --'
//! ```
//!
//! [`Sessions`] is the table of all of them. A frame is told by its session's name and believed by
//! its tag; the names in its header are never more than a claim. One mutex guards the table; it is
//! never held across an await nor while the handler runs.

mod answering;
mod hellos;
mod live;
mod notices;
mod opening;
#[cfg(test)]
mod tests;
mod upkeep;
mod window;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use serde::Deserialize;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub(super) use self::live::flow;
use self::{
    answering::{Answer, Name},
    hellos::Hellos,
    live::{Live, Unopened},
};
use super::{
    bucket::Bucket,
    drops::{Drops, Reason},
    handshake::Ourselves,
    hops::Hops,
    link::{Arrived, BadFrame, Link},
    session::{Class, Session, SessionHandler, SessionRef},
};
use crate::{
    drain::Tasks,
    ids::{Boot, LinkId, NodeId, SessionId},
    wire::{
        code::{Code, Failure},
        frame::{RoutedHeader, Ulid, put_routed},
        limits::{
            HANDSHAKE_MESSAGE_BYTES, HELLO_TIMEOUT, OPENING_SESSIONS, RESET_EVERY,
            SESSIONS_PER_PEER,
        },
        record::{self, Kind, LENGTH_BYTES},
    },
};

/// Hints in vain are followed at least this often.
const RESET_AT_MOST: Duration = Duration::from_secs(64);
/// Handshakes under way above which none is begun ahead of need.
const WARMING: usize = 8;
/// Messages of one handshake of ours that wait to be looked at.
const SAID: usize = 8;
/// Origins that hints are told to between two tidyings.
const NOTICED: usize = 1024;
pub(super) const MINUTE: Duration = Duration::from_secs(60);
/// What begins a session we opened, so that the other side may send in it (protocol 4.2).
const NOOP: &[u8] = b"{\"type\":\"noop\"}";

/// A message of a handshake we began.
#[derive(Debug)]
struct Said {
    /// Its `type`.
    kind: &'static str,
    text: String,
}

/// A handshake of ours under way.
#[derive(Debug)]
struct Opening {
    node: NodeId,
    said: mpsc::Sender<Said>,
    outcome: watch::Receiver<Option<Result<(), Failure>>>,
}

/// How hints that a session is unknown are followed: each that led to no other process of the node
/// makes the next one wait twice as long, for it was a lie or a mistake.
#[derive(Debug, Default)]
struct Resets {
    last: Option<Instant>,
    in_vain: u32,
}

impl Resets {
    /// Whether one may be followed now; notes it then.
    fn due(&mut self, now: Instant) -> bool {
        let pause = (RESET_EVERY * 2_u32.pow(self.in_vain)).min(RESET_AT_MOST);
        let since = self.last.map(|last| now.saturating_duration_since(last));
        if since.is_some_and(|since| since < pause) {
            return false;
        }
        self.in_vain = match since {
            Some(since) if since < 2 * RESET_AT_MOST => (self.in_vain + 1).min(16),
            _ => 0,
        };
        self.last = Some(now);
        true
    }
}

/// What we have with one node.
#[derive(Debug, Default)]
struct Peers {
    /// Newest last.
    live: Vec<Arc<Live>>,
    /// The tie of our handshake under way.
    opening: Option<SessionId>,
    /// What hints made us do.
    resets: Resets,
    /// Finished handshakes of theirs in the minute that began then.
    finished: Option<(Instant, u32)>,
}

impl Peers {
    /// Whether nothing is lost by forgetting it.
    fn is_over(&self) -> bool {
        let recent = self
            .finished
            .is_some_and(|(since, _)| since.elapsed() < MINUTE);
        self.live.is_empty() && self.opening.is_none() && !recent
    }
}

/// A hello that waits for its turn.
#[derive(Debug)]
struct Hello {
    origin: NodeId,
    tie: SessionId,
    text: String,
    link: Arc<Link>,
}

#[derive(Debug, Default)]
struct Table {
    live: HashMap<SessionId, Arc<Live>>,
    peers: HashMap<NodeId, Peers>,
    openings: HashMap<SessionId, Opening>,
    /// Hellos of others and what they got.
    pending: HashMap<Name, Answer>,
    /// Proofs of others and what they got.
    proofs: HashMap<Name, Answer>,
    hellos: HashMap<LinkId, Hellos<Hello>>,
    /// Whether somebody waits to serve the hellos that wait.
    serving: bool,
    /// Hints told to each origin since the last tidying.
    notices: HashMap<NodeId, Bucket>,
}

#[derive(Debug)]
struct Shared {
    us: Ourselves,
    hops: Arc<Hops>,
    handler: Arc<dyn SessionHandler>,
    drops: Arc<Drops>,
    tasks: Tasks,
    faults: Arc<Notify>,
    table: Mutex<Table>,
}

/// Every end-to-end session of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Sessions(Arc<Shared>);

/// The `type` of a handshake message.
#[derive(Deserialize)]
struct Typed<'a> {
    #[serde(borrow, rename = "type")]
    kind: std::borrow::Cow<'a, str>,
}

impl Sessions {
    /// An empty table; `handler` is told of sessions and gets their frames.
    pub(super) fn new(
        us: Ourselves,
        hops: Arc<Hops>,
        handler: Arc<dyn SessionHandler>,
        drops: Arc<Drops>,
        tasks: Tasks,
        stop: CancellationToken,
    ) -> Self {
        let sessions = Self(Arc::new(Shared {
            us,
            hops,
            handler,
            drops,
            tasks: tasks.clone(),
            faults: Arc::new(Notify::new()),
            table: Mutex::default(),
        }));
        tasks.spawn(upkeep::run(sessions.clone(), stop));
        sessions
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Entries are put in and taken out whole.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session to send to `node` in, if one is up, and whether a newer one is to take its place: it
    /// was proved with another secret than the present one.
    fn best(&self, node: &NodeId) -> Option<(Arc<Live>, bool)> {
        let own = self.0.us.keys.own_id();
        let table = self.table();
        let fit = table.peers.get(node)?.live.iter().rev();
        let fit = fit.filter(|live| live.fit());
        let present = fit.clone().find(|live| live.secret == own);
        let best = present.or_else(|| fit.clone().next())?;
        Some((best.clone(), best.secret != own))
    }

    /// The session to send to `node` in, if one is up.
    pub(super) fn ready(&self, node: &NodeId) -> Option<SessionRef> {
        let (live, _) = self.best(node)?;
        Some(live)
    }

    /// The session to send to `node` in; opened when there is none. A way must lead to it. Ends after
    /// one handshake, or two when the first had begun before.
    ///
    /// # Errors
    /// `peer_unreachable`, `overloaded`.
    pub(super) async fn session(&self, node: &NodeId) -> Result<SessionRef, Failure> {
        let mut again = true;
        loop {
            if let Some((session, outdated)) = self.best(node) {
                if outdated {
                    self.warm(node);
                }
                return Ok(session);
            }
            let joined = std::mem::take(&mut again) && self.is_opening(node);
            let mut outcome = self.open(node)?;
            let outcome = outcome.wait_for(Option::is_some).await;
            let outcome = outcome.map_or(None, |outcome| outcome.clone());
            match outcome {
                // One that began before there was a way says nothing about now.
                Some(Err(_)) if joined => {}
                Some(Err(failure)) => return Err(failure),
                _ => return self.ready(node).ok_or_else(|| unreachable(node)),
            }
        }
    }

    /// Whether a handshake of ours with `node` is under way.
    pub(super) fn is_opening(&self, node: &NodeId) -> bool {
        let table = self.table();
        let tie = table.peers.get(node).and_then(|peers| peers.opening);
        tie.is_some_and(|tie| table.openings.contains_key(&tie))
    }

    /// Begins a handshake with `node` in the background unless a session or a handshake is there;
    /// false when too many are under way, so that those somebody waits for find room.
    pub(super) fn warm(&self, node: &NodeId) -> bool {
        if self.best(node).is_some_and(|(_, outdated)| !outdated) {
            return true;
        }
        let room = self.table().openings.len() < WARMING;
        // Nobody waits for it: whoever needs the session will hear why there is none.
        room && self.open(node).is_ok()
    }

    fn open(&self, node: &NodeId) -> Result<watch::Receiver<Option<Result<(), Failure>>>, Failure> {
        let mut table = self.table();
        let tie = table.peers.get(node).and_then(|peers| peers.opening);
        if let Some(opening) = tie.and_then(|tie| table.openings.get(&tie)) {
            return Ok(opening.outcome.clone());
        }
        if table.openings.len() >= OPENING_SESSIONS {
            return Err(Failure {
                retry_after: Some(HELLO_TIMEOUT),
                ..Failure::not_started(Code::Overloaded, "too many sessions are being opened")
            });
        }
        let (attempt, m1) = opening::begin(&self.0.us, node);
        let tie = attempt.tie();
        let (said, heard) = mpsc::channel(SAID);
        let (done, outcome) = watch::channel(None);
        let opening = Opening {
            node: node.clone(),
            said,
            outcome: outcome.clone(),
        };
        table.openings.insert(tie, opening);
        table.peers.entry(node.clone()).or_default().opening = Some(tie);
        drop(table);
        let run = opening::run(self.clone(), node.clone(), attempt, m1, heard, done);
        self.0.tasks.spawn(run);
        Ok(outcome)
    }

    /// The handshake with this tie has ended.
    fn opened(&self, tie: &SessionId) {
        let mut table = self.table();
        if let Some(opening) = table.openings.remove(tie)
            && let Some(peers) = table.peers.get_mut(&opening.node)
        {
            peers.opening = None;
        }
    }

    /// A frame for this node has arrived over `link`.
    pub(super) fn arrived(&self, link: &Arc<Link>, frame: Arrived) -> Result<(), BadFrame> {
        match frame.fixed.kind {
            Kind::Routed => self.frame(link, frame),
            Kind::RoutedHandshake => {
                self.said(link, &frame);
                Ok(())
            }
            _ => {
                self.notice(link, &frame);
                Ok(())
            }
        }
    }

    fn frame(&self, link: &Arc<Link>, mut frame: Arrived) -> Result<(), BadFrame> {
        let header = read_header(&frame)?;
        let live = self.table().live.get(&header.s).cloned();
        let Some(live) = live else {
            link.drops.count(Reason::UnknownSession);
            self.say_reset(&header);
            return Ok(());
        };
        // Who really sent it is what the session's key proves; a header that says otherwise is a
        // lie of somebody on the way (T34).
        if header.f != live.node().as_str() {
            link.drops.count(Reason::ForeignOrigin);
            return Ok(());
        }
        let n = header.n;
        let neighbours = header.f == link.neighbour().node.as_str();
        let class = frame.fixed.class;
        let mut body = std::mem::take(&mut frame.record.rest);
        match live.open(class, frame.header(), n, &mut body) {
            Ok(()) => {}
            // What a neighbour sent in its own name it is to blame for. Of what it relayed it cannot
            // know whether it opens: a member could cut others off their relays.
            Err(Unopened::Tag) if neighbours => return Err(BadFrame::Body),
            Err(Unopened::Tag) => {
                link.drops.count(Reason::BadBody);
                return Ok(());
            }
            Err(Unopened::Replay) => {
                link.drops.count(Reason::Replayed);
                return Ok(());
            }
        }
        let session: SessionRef = live.clone();
        if live.confirm() {
            self.0.handler.up(&session);
        }
        if live.usable() {
            self.0.handler.frame(&session, class, body.freeze());
        }
        Ok(())
    }

    /// A message of a handshake: ours or another node's.
    fn said(&self, link: &Arc<Link>, frame: &Arrived) {
        let read = || {
            let header = RoutedHeader::decode(frame.header()).ok()?;
            let text = std::str::from_utf8(frame.body()).ok()?;
            let origin: NodeId = header.f.parse().ok()?;
            let typed: Typed<'_> = serde_json::from_str(text).ok()?;
            let small = text.len() <= HANDSHAKE_MESSAGE_BYTES;
            small.then_some((origin, header.s, typed.kind, text))
        };
        let Some((origin, tie, kind, text)) = read() else {
            link.drops.count(Reason::BadHello);
            return;
        };
        let text = text.to_owned();
        match &*kind {
            "auth_hello" => self.hello(Hello {
                origin,
                tie,
                text,
                link: link.clone(),
            }),
            "auth" => self.proof(link, &origin, tie, text),
            "auth_challenge" => self.reply(link, &origin, &tie, "auth_challenge", text),
            "auth_ok" => self.reply(link, &origin, &tie, "auth_ok", text),
            _ => link.drops.count(Reason::BadHello),
        }
    }

    /// M2 or M4: for the handshake of ours that it belongs to.
    fn reply(
        &self,
        link: &Arc<Link>,
        origin: &NodeId,
        tie: &SessionId,
        kind: &'static str,
        text: String,
    ) {
        let table = self.table();
        let opening = table.openings.get(tie);
        let taken = opening
            .filter(|opening| opening.node == *origin)
            .is_some_and(|opening| opening.said.try_send(Said { kind, text }).is_ok());
        if !taken {
            link.drops.count(Reason::BadHello);
        }
    }

    /// Messages to `node` remain without an answer.
    fn blame_hop(&self, node: &NodeId) {
        if let Some(hop) = self.0.hops.get(node.as_str()).filter(|hop| !hop.direct) {
            self.0.hops.blame(&hop.link.neighbour().node);
        }
    }

    /// Sends a message of a handshake to `node`: an answer over the `link` that brought the question,
    /// since the way that leads there may be what swallowed the answer before; else that way.
    fn say(&self, node: &NodeId, tie: &SessionId, text: &str, link: Option<&Arc<Link>>) {
        let (kind, body) = (Kind::RoutedHandshake, text.as_bytes());
        match link.filter(|link| link.is_open()) {
            Some(link) => self.put_plain(node, kind, tie, body, link),
            None => self.send_plain(node, kind, tie, body, None),
        }
    }

    fn send_plain(
        &self,
        node: &NodeId,
        kind: Kind,
        s: &SessionId,
        body: &[u8],
        link: Option<&Arc<Link>>,
    ) {
        let hop = self.0.hops.get(node.as_str()).map(|hop| hop.link);
        match hop.as_ref().or(link) {
            Some(link) => self.put_plain(node, kind, s, body, link),
            None => self.0.drops.count(Reason::NoRoute),
        }
    }

    fn put_plain(&self, node: &NodeId, kind: Kind, s: &SessionId, body: &[u8], link: &Arc<Link>) {
        let us = &self.0.us.node_id;
        let mut buffer = BytesMut::with_capacity(512 + body.len());
        record::begin(&mut buffer, kind, Class::Interactive);
        put_routed(&mut buffer, Ulid::random(), us, node, s, 0);
        record::end_header(&mut buffer);
        buffer.extend_from_slice(body);
        debug_assert!(buffer.len() > LENGTH_BYTES);
        // A message for which there is no room is sent again, or was a hint.
        let _ = link.push(flow(us.as_str(), node.as_str()), Class::Interactive, buffer);
    }

    /// Enters a session whose handshake has just ended. Those of an earlier process of that node
    /// end, and so does the oldest above the limit.
    fn install(&self, live: &Arc<Live>, boot: Boot, ours: bool) {
        let mut ended = Vec::new();
        {
            let mut table = self.table();
            if !self.0.us.keys.is_valid(live.secret, SystemTime::now()) {
                // It was taken out of the configuration during the handshake.
                return;
            }
            let peers = table.peers.entry(live.node().clone()).or_default();
            let other_boot = |old: &Arc<Live>| old.peer().boot != boot;
            if peers.live.iter().any(other_boot) {
                peers.resets = Resets::default();
            }
            ended.extend(peers.live.extract_if(.., |old| other_boot(old)));
            peers.live.push(live.clone());
            // While the secret is changed, those proved with the older one finish what runs in them.
            let own = self.0.us.keys.own_id();
            let older = peers.live.iter().filter(|old| old.secret != own).count();
            while peers.live.len() > SESSIONS_PER_PEER + older.min(SESSIONS_PER_PEER) {
                ended.push(peers.live.remove(0));
            }
            for old in &ended {
                table.live.remove(&old.id());
            }
            table.live.insert(live.id(), live.clone());
        }
        for old in ended {
            self.lost(&old);
        }
        if ours {
            let session: SessionRef = live.clone();
            self.0.handler.up(&session);
            // The other side may send once it has opened a frame of ours. When there is no room the
            // first request does the same.
            let _ = live.send(Class::Interactive, NOOP, b"");
        }
        tracing::debug!(peer = %live.node(), session = %live.id(), ours, "session up");
    }

    /// Ends a session that is out of the table already.
    fn lost(&self, live: &Arc<Live>) {
        let was_up = live.usable();
        if live.end() && was_up {
            let session: SessionRef = live.clone();
            self.0.handler.lost(&session);
        }
    }
}

fn read_header(frame: &Arrived) -> Result<RoutedHeader<'_>, BadFrame> {
    RoutedHeader::decode(frame.header()).map_err(|error| BadFrame::Protocol(error.to_string()))
}

fn unreachable(node: &NodeId) -> Failure {
    Failure {
        retry_after: Some(RESET_EVERY),
        ..Failure::not_started(
            Code::PeerUnreachable,
            format!("node `{node}` opened no session"),
        )
    }
}
