//! What all links of this node share: who is linked, what is known, what we say of ourselves.
//!
//! The accept loop and the dialers bring authenticated connections to [`Hub::admit`]; the links tell
//! it what arrives and when they end; readers outside hold a snapshot by watch.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::{BufMut, Bytes};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    MeshSettings,
    carriage::Carriage,
    clock,
    descriptor::{self, RecordError, Signed, Version},
    drops::{Drops, Reason},
    handshake::{Established, Role},
    hops::{Hop, Hops},
    link::{Arrived, BadFrame, Ending, Link, LinkOwner, Setup},
    links::{Links, Step},
    membership::{Membership, Outcome},
    session::{SessionHandler, SessionRef},
    sessions::Sessions,
    transport::{MessageSink, MessageStream},
    view::{Descriptor, View},
};
use crate::{
    crypto::identity::PublicKey,
    drain::Tasks,
    ids::{LinkId, NodeId},
    wire::{
        close::CloseCode,
        code::{Code, Failure},
        frame::RoutedHeader,
        limits::{CLOSE_LINGER, DUPLICATE_SILENCE, PAUSE, REKEY_RECORDS},
    },
};

/// How often latencies are shown anew.
const REFRESH: Duration = Duration::from_secs(10);
/// How often the clock is looked at for a pause of this machine.
const PAUSE_CHECK: Duration = Duration::from_secs(2);
/// When to come back to a node that is not reached now.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Messages of a refused connection that are read away, so that it hears why.
const LINGER_MESSAGES: usize = 64;

#[derive(Debug)]
struct Own {
    descriptor: Descriptor,
    version: Version,
    record: Signed,
}

#[derive(Debug)]
struct State {
    links: Links,
    members: Membership,
    own: Own,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) settings: MeshSettings,
    pub(super) tasks: Tasks,
    /// Ends the accept loops and the dialers.
    pub(super) stop: CancellationToken,
    pub(super) drops: Arc<Drops>,
    pub(super) sessions: Sessions,
    hops: Arc<Hops>,
    /// Counts up when a link came or went.
    pub(super) links_changed: watch::Sender<u64>,
    /// Counts up when this process was stopped for a while.
    pub(super) resumed: watch::Sender<u64>,
    pub(super) view: watch::Sender<Arc<View>>,
    key: PublicKey,
    // A std mutex: held for a look or a change, never across an await, never while a handler runs.
    state: Mutex<State>,
    next_link: AtomicU64,
}

impl Hub {
    pub(super) fn new(
        settings: MeshSettings,
        handler: Arc<dyn SessionHandler>,
        tasks: Tasks,
    ) -> Arc<Self> {
        let identity = &settings.us.identity;
        let descriptor = Descriptor {
            software: settings.us.params.sw.clone(),
            ..Descriptor::default()
        };
        let version = (settings.incarnation, 1);
        let record = descriptor::sign(identity, &settings.us.node_id, version, &descriptor);
        let own = Own {
            descriptor,
            version,
            record,
        };
        let (drops, hops) = (Arc::<Drops>::default(), Arc::<Hops>::default());
        let stop = CancellationToken::new();
        let sessions = Sessions::new(
            settings.us.clone(),
            hops.clone(),
            handler,
            drops.clone(),
            tasks.clone(),
            stop.clone(),
        );
        let hub = Arc::new(Self {
            key: identity.public(),
            settings,
            stop,
            drops,
            sessions,
            hops,
            links_changed: watch::Sender::new(0),
            resumed: watch::Sender::new(0),
            view: watch::Sender::default(),
            state: Mutex::new(State {
                links: Links::default(),
                members: Membership::default(),
                own,
            }),
            next_link: AtomicU64::new(1),
            tasks: tasks.clone(),
        });
        tasks.spawn(run_refresh(hub.clone()));
        tasks.spawn(run_trust(hub.clone()));
        tasks.spawn(run_pause(hub.clone()));
        hub
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // State is changed by whole assignments; a panic leaves none of them half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, state: &State) {
        let carriage = |link: Arc<Link>| (link.neighbour().node.clone(), link.carriage().clone());
        let mut view = state.members.view();
        view.links = state.links.open().into_iter().map(carriage).collect();
        self.view.send_replace(Arc::new(view));
    }

    /// Shows a node of the configuration.
    pub(super) fn configured(&self, node: &NodeId) {
        let mut state = self.state();
        state.members.configured(node);
        self.publish(&state);
    }

    /// Notes why a configured node is not reached. True when that is new.
    pub(super) fn problem(&self, node: &NodeId, problem: &str) -> bool {
        let mut state = self.state();
        let new = state.members.problem(node, problem);
        if new {
            self.publish(&state);
        }
        new
    }

    /// Whether a link to `node` is up.
    pub(super) fn linked(&self, node: &NodeId) -> bool {
        self.state().links.get(node.as_str()).is_some()
    }

    pub(super) fn open_links(&self) -> Vec<Arc<Link>> {
        self.state().links.open()
    }

    /// The session to `node`, opened when there is none yet.
    pub(super) async fn session(&self, node: &NodeId) -> Result<SessionRef, Failure> {
        self.way(node)?;
        self.sessions.session(node).await
    }

    /// Whether a way leads to `node` that new requests may take.
    fn way(&self, node: &NodeId) -> Result<(), Failure> {
        let state = self.state();
        let not_now = |code, message: String| Failure {
            retry_after: Some(RETRY_AFTER),
            ..Failure::not_started(code, message)
        };
        match state.links.get(node.as_str()) {
            Some(link) if link.going_away() => Err(not_now(
                Code::ShuttingDown,
                format!("node `{node}` is shutting down"),
            )),
            Some(_) => Ok(()),
            None if state.members.knows(node) => Err(not_now(
                Code::NoRoute,
                match state.members.why_not(node) {
                    Some(why) => format!("node `{node}` is not reachable: {why}"),
                    None => format!("node `{node}` is not reachable yet"),
                },
            )),
            None => Err(Failure::not_started(
                Code::NodeNotFound,
                format!("no node `{node}` is known"),
            )),
        }
    }

    /// Changes what we say of ourselves, and says it on every link.
    pub(super) fn set_offer(&self, descriptor: Descriptor) {
        let mut state = self.state();
        if state.own.descriptor == descriptor {
            return;
        }
        let version = (state.own.version.0, state.own.version.1 + 1);
        let us = &self.settings.us;
        state.own = Own {
            record: descriptor::sign(&us.identity, &us.node_id, version, &descriptor),
            descriptor,
            version,
        };
        for link in state.links.open() {
            send_record(&link, &state.own.record);
        }
    }

    /// Takes an authenticated connection in, unless another link to the same node is better; none
    /// when it was closed instead.
    pub(super) async fn admit<S: MessageSink, R: MessageStream>(
        self: &Arc<Self>,
        established: Established,
        carriage: Carriage,
        (mut sink, mut stream): (S, R),
    ) -> Option<Arc<Link>> {
        let software = established.params.sw.clone();
        let setup = self.setup(established, carriage);
        let link = Link::new(&setup);
        let mut answered = None;
        let (code, why) = loop {
            if self.stop.is_cancelled() {
                break (CloseCode::ShuttingDown, "shutting down");
            }
            match self.offer(&link, answered, &software) {
                Ok(()) => {
                    let owner: Arc<dyn LinkOwner> = self.clone();
                    link.run(&setup, (sink, stream), owner, &self.tasks);
                    self.show_up(&link);
                    return Some(link);
                }
                Err(Step::Ask(old)) => {
                    answered = Some((old.id(), old.answers_within(DUPLICATE_SILENCE).await));
                }
                Err(Step::Refuse(code, why)) => break (code, why),
                Err(Step::Enter(_)) => {}
            }
        };
        let peer = &setup.peer.node;
        if code == CloseCode::RateLimited {
            self.drops.count(Reason::HoldOff);
            tracing::warn!(%peer, "node replaces its links too often: held off for a minute");
        } else {
            self.drops.count(Reason::DuplicateLink);
            tracing::debug!(%peer, why, "new link closed");
        }
        refuse(&mut sink, &mut stream, code).await;
        None
    }

    /// Shows a link that has been entered and works.
    fn show_up(&self, link: &Link) {
        self.publish(&self.state());
        self.links_changed.send_modify(|n| *n += 1);
        let peer = link.neighbour();
        self.sessions.restarted(&peer.node, peer.boot);
        self.sessions.rerouted();
        if link.dialed() {
            // Now, so that the first request need not wait for a handshake.
            self.sessions.warm(&peer.node);
        }
        tracing::info!(peer = %peer.node, key = %peer.key.id(), link = link.id().0,
            dialed = link.dialed(), "link up");
    }

    /// One step of [`Hub::admit`]: enters the link, or says what is in its way.
    fn offer(
        &self,
        link: &Arc<Link>,
        answered: Option<(LinkId, bool)>,
        software: &str,
    ) -> Result<(), Step> {
        let mut state = self.state();
        let old = match state.links.offer(&self.key, link, answered, Instant::now()) {
            Step::Enter(old) => old,
            other => return Err(other),
        };
        if let Some(old) = old {
            self.tasks.spawn(run_replacement(old, link.clone()));
        }
        send_record(link, &state.own.record);
        state
            .members
            .up(link.neighbour(), software, SystemTime::now());
        self.route(&state);
        Ok(())
    }

    /// Works out which link leads where.
    fn route(&self, state: &State) {
        let direct = state.links.open().into_iter().map(|link| {
            let hop = Hop {
                rtt: None,
                direct: true,
                link: link.clone(),
            };
            (link.neighbour().node.clone(), hop)
        });
        self.hops.replace(direct.collect());
    }

    fn setup(&self, established: Established, carriage: Carriage) -> Setup {
        Setup {
            id: LinkId(self.next_link.fetch_add(1, Ordering::Relaxed)),
            peer: established.peer,
            sid: established.sid,
            dialed: established.role == Role::Dialer,
            relay: established.params.relay,
            carriage,
            send_key: established.send_key,
            recv_key: established.recv_key,
            heartbeat: self.settings.heartbeat,
            rekey_after: REKEY_RECORDS,
        }
    }
}

fn send_record(link: &Link, record: &Signed) {
    link.send_gossip(|buffer| buffer.put_slice(&record.header), &record.body);
}

/// Closes a connection that will not be a link, so that the other side hears the code: a socket
/// closed with unread bytes would be reset, and the reset can overtake the code.
pub(super) async fn refuse<S: MessageSink, R: MessageStream>(
    sink: &mut S,
    stream: &mut R,
    code: CloseCode,
) {
    let _ = timeout(CLOSE_LINGER, sink.close(code as u16, code.text())).await;
    linger(stream).await;
}

/// Reads a closed connection away for a moment.
pub(super) async fn linger<R: MessageStream>(stream: &mut R) {
    let _ = timeout(CLOSE_LINGER, async {
        for _ in 0..LINGER_MESSAGES {
            if !matches!(stream.next().await, Ok(Some(_))) {
                break;
            }
        }
    })
    .await;
}

impl LinkOwner for Hub {
    fn routed(&self, link: &Arc<Link>, frame: Arrived) -> Result<(), BadFrame> {
        let header = RoutedHeader::decode(frame.header())
            .map_err(|error| BadFrame::Protocol(error.to_string()))?;
        // Only a relay may bring frames of others (protocol 5.6).
        let dropped = if header.f != link.neighbour().node.as_str() && !link.relays() {
            Reason::ForeignOrigin
        } else if header.t != self.settings.us.node_id.as_str() {
            Reason::NotForUs
        } else {
            return self.sessions.arrived(link, frame);
        };
        link.drops.count(dropped);
        Ok(())
    }

    fn gossip(&self, link: &Arc<Link>, header: Bytes, body: Bytes) -> Result<(), &'static str> {
        let peer = link.neighbour();
        let dropped = match descriptor::open(&header, &body, &peer.node, &peer.key) {
            Ok(statement) => {
                let mut state = self.state();
                match state.members.told(&peer.node, statement) {
                    Outcome::News => {
                        self.publish(&state);
                        return Ok(());
                    }
                    Outcome::Old => Reason::OldGossip,
                    Outcome::Equivocation => {
                        // Once per link: the neighbour decides how often it happens.
                        if link.drops.get(Reason::BadGossip) == 0 {
                            tracing::warn!(peer = %peer.node, "node contradicts its own record");
                        }
                        Reason::BadGossip
                    }
                }
            }
            Err(RecordError::Header) => return Err("malformed gossip header"),
            Err(RecordError::Kind | RecordError::Foreign) => Reason::UnhandledGossip,
            Err(RecordError::Malformed | RecordError::Forged) => Reason::BadGossip,
        };
        link.drops.count(dropped);
        Ok(())
    }

    fn goaway(&self, link: &Arc<Link>) {
        tracing::info!(peer = %link.neighbour().node, "node goes away");
    }

    fn measured(&self, link: &Arc<Link>) {
        let mut state = self.state();
        show_alive(&mut state.members, link);
        self.publish(&state);
    }

    fn ended(&self, link: &Arc<Link>, ending: &Ending) {
        for reason in Reason::ALL {
            self.drops.add(*reason, link.drops.get(*reason));
        }
        let peer = &link.neighbour().node;
        let mut state = self.state();
        let counted = state.links.remove(link);
        if counted {
            state
                .members
                .down(peer, ending.to_string(), SystemTime::now());
            self.publish(&state);
        }
        self.route(&state);
        drop(state);
        // What this link still held is lost, though another one may have taken its place before.
        self.sessions.rerouted();
        let goodbye = Ending::Theirs {
            code: CloseCode::ShuttingDown as u16,
        };
        if counted && *ending == goodbye {
            self.sessions.gone(peer, link.neighbour().boot);
        }
        self.links_changed.send_modify(|n| *n += 1);
        tracing::info!(peer = %peer, link = link.id().0, %ending, replaced = !counted, "link down");
    }
}

fn show_alive(members: &mut Membership, link: &Link) {
    let latency = link.rtt().map(|rtt| rtt.as_secs_f64() * 1000.0);
    members.alive(&link.neighbour().node, latency, SystemTime::now());
}

/// Shows latencies and last contacts from time to time.
async fn run_refresh(hub: Arc<Hub>) {
    while !stopped_within(&hub, REFRESH).await {
        let mut state = hub.state();
        let links = state.links.open();
        if links.is_empty() {
            continue;
        }
        for link in links {
            show_alive(&mut state.members, &link);
        }
        hub.publish(&state);
    }
}

/// Closes the links of keys that are not believed any more, and follows changes of rights.
async fn run_trust(hub: Arc<Hub>) {
    let trust = hub.settings.us.trust.clone();
    let mut changes = trust.subscribe();
    loop {
        tokio::select! {
            () = hub.stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        hub.sessions.follow(&trust);
        for link in hub.open_links() {
            let peer = link.neighbour();
            match trust.standing(&peer.node, &peer.key) {
                None => link.end(CloseCode::AuthFailed, "key not trusted any more"),
                Some(now) if now.level != peer.level || now.labels != peer.labels => {
                    link.change_rights(now.level, now.labels);
                    let mut state = hub.state();
                    state.members.level(&peer.node, now.level);
                    hub.publish(&state);
                }
                Some(_) => {}
            }
        }
    }
}

/// Ends a link that another one has replaced, once the other side uses the new one too: it may learn
/// of it a little later than we, and must never be without a link in between.
async fn run_replacement(old: Arc<Link>, new: Arc<Link>) {
    new.hears_within(DUPLICATE_SILENCE).await;
    old.drain(CloseCode::DuplicateLink, "replaced by a newer link");
}

/// Notices that this machine was suspended (protocol 6.5): tokio's clock stands still meanwhile, so
/// no timer of a link would.
async fn run_pause(hub: Arc<Hub>) {
    loop {
        let (began, expected) = (clock::since_boot(), Instant::now());
        if stopped_within(&hub, PAUSE_CHECK).await {
            return;
        }
        // Under a paused test clock the machine's clock hardly moves, which is no pause.
        let slept = clock::since_boot().saturating_sub(began);
        if slept > PAUSE_CHECK + PAUSE || expected.elapsed() > PAUSE_CHECK + PAUSE {
            tracing::info!(seconds = slept.as_secs(), "this process was paused");
            for link in hub.open_links() {
                link.probe();
            }
            hub.resumed.send_modify(|n| *n += 1);
        }
    }
}

async fn stopped_within(hub: &Hub, time: Duration) -> bool {
    tokio::select! {
        () = hub.stop.cancelled() => true,
        () = sleep(time) => false,
    }
}
