//! What all links of this node share: who is linked, what is known, which way leads where.
//!
//! The accept loop and the dialers bring authenticated connections to [`Hub::admit`]; the links tell
//! it what arrives and when they end; readers outside hold a snapshot by watch. What is decided is
//! decided elsewhere and purely: by [`super::links`], [`super::gossip`], [`super::routing`]. `spread`
//! drives gossip, `routes` keeps the table of next hops, `forward` passes frames of others on, `secrets`
//! and `trust` follow changes of the mesh's secret and of whom we believe.

mod forward;
mod routes;
mod secrets;
mod spread;
mod trust;
mod watch;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use bytes::Bytes;
use tokio::{
    sync::{self, Notify},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use self::routes::Routes;
use super::{
    MeshSettings,
    alerts::{AlertKind, Alerts},
    carriage::Carriage,
    drops::{Drops, Reason},
    gossip::{self, Comparison, Gossip},
    handshake::{Established, Role},
    hops::Hops,
    link::{Arrived, BadFrame, Ending, Link, LinkOwner, Setup},
    links::{Links, Step},
    linkstate::Load,
    relay::Relay,
    rotation,
    session::{SessionHandler, SessionRef},
    sessions::Sessions,
    traffic::Traffic,
    transport::{MessageSink, MessageStream},
    view::{Descriptor, View},
};
use crate::{
    crypto::identity::PublicKey,
    drain::Tasks,
    ids::{LinkId, NodeId},
    wire::{
        close::CloseCode,
        code::Failure,
        limits::{CLOSE_LINGER, DUPLICATE_SILENCE, REKEY_RECORDS},
    },
};

/// Messages of a refused connection that are read away, so that it hears why.
const LINGER_MESSAGES: usize = 64;

#[derive(Debug)]
struct State {
    links: Links,
    gossip: Gossip,
    routes: Routes,
    alerts: Alerts,
    /// Nodes with which something is still proved with another secret than the present one.
    outdated: BTreeSet<NodeId>,
    /// Since when readers see an old view.
    stale: bool,
    published: Instant,
    /// An incarnation of ours that others have seen and that is greater than ours.
    raise: Option<u64>,
}

impl State {
    /// Notes that `node` did what no honest node does.
    fn alert(&mut self, kind: AlertKind, node: &NodeId) {
        if self.alerts.raise(kind, node, 1, Instant::now()) {
            tell(kind, node);
            self.stale = true;
        }
    }

    /// Looks at what was dropped of a link for signs of a liar.
    fn look(&mut self, link: &Link) {
        let node = &link.neighbour().node;
        for kind in self
            .alerts
            .look((link.id(), node), &link.drops, Instant::now())
        {
            tell(kind, node);
            self.stale = true;
        }
    }
}

fn tell(kind: AlertKind, node: &NodeId) {
    tracing::warn!(%node, kind = kind.as_str(), hint = kind.way_out(), "node breaks the rules of the mesh");
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) settings: MeshSettings,
    pub(super) tasks: Tasks,
    /// Ends the accept loops and the dialers.
    pub(super) stop: CancellationToken,
    pub(super) drops: Arc<Drops>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) sessions: Sessions,
    hops: Arc<Hops>,
    /// Counts up when a link came, went or came into doubt.
    pub(super) links_changed: sync::watch::Sender<u64>,
    /// Counts up when this process was stopped for a while.
    pub(super) resumed: sync::watch::Sender<u64>,
    pub(super) view: sync::watch::Sender<Arc<View>>,
    key: PublicKey,
    /// Our changes of key, as doors show them.
    pub(super) shown: Option<http::HeaderValue>,
    relay: Relay,
    /// Wakes what spreads and routes.
    wake: Notify,
    /// Bytes that wait on all links.
    queued: Arc<AtomicUsize>,
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
        let us = &settings.us;
        let now = Instant::now();
        let mut gossip = Gossip::new(
            &us.node_id,
            us.identity.clone(),
            us.trust.clone(),
            settings.incarnation,
            us.params.relay,
            now,
        );
        gossip.set_rotations(&settings.rotations);
        gossip.set_offer(Descriptor {
            software: us.params.sw.clone(),
            ..Descriptor::default()
        });
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
            key: us.identity.public(),
            shown: rotation::shown(&settings.rotations),
            relay: Relay::default(),
            wake: Notify::new(),
            queued: Arc::default(),
            settings,
            stop,
            drops,
            traffic: Arc::default(),
            sessions,
            hops,
            links_changed: sync::watch::Sender::new(0),
            resumed: sync::watch::Sender::new(0),
            view: sync::watch::Sender::default(),
            state: Mutex::new(State {
                links: Links::default(),
                gossip,
                routes: Routes::default(),
                alerts: Alerts::default(),
                outdated: BTreeSet::new(),
                stale: false,
                published: now,
                raise: None,
            }),
            next_link: AtomicU64::new(1),
            tasks: tasks.clone(),
        });
        tasks.spawn(watch::run_refresh(hub.clone()));
        tasks.spawn(spread::run(hub.clone()));
        tasks.spawn(trust::run(hub.clone()));
        tasks.spawn(secrets::run(hub.clone()));
        tasks.spawn(watch::run_pause(hub.clone()));
        hub
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // State is changed by whole assignments; a panic leaves none of them half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what is known now.
    fn publish(&self, state: &mut State) {
        let mut view = state.gossip.members.view(|node| state.routes.passage(node));
        let carriage = |link: Arc<Link>| (link.neighbour().node.clone(), link.carriage().clone());
        view.links = state.links.open().into_iter().map(carriage).collect();
        view.alerts = state.alerts.warnings(Instant::now());
        view.outdated = state.outdated.iter().cloned().collect();
        self.view.send_replace(Arc::new(view));
        state.stale = false;
        state.published = Instant::now();
    }

    /// How often nodes broke the rules, by what they did.
    pub(super) fn alerts(&self) -> Vec<(&'static str, u64)> {
        self.state().alerts.totals()
    }

    /// Counts what was dropped of a link. The first of its kind is looked at at once, the others from
    /// time to time.
    fn dropped(&self, link: &Link, reason: Reason) {
        link.drops.count(reason);
        if link.drops.get(reason) == 1 {
            self.state().look(link);
            self.wake.notify_one();
        }
    }

    /// Shows a node of the configuration.
    pub(super) fn configured(&self, node: &NodeId) {
        let mut state = self.state();
        state.gossip.members.configured(node);
        self.publish(&mut state);
    }

    /// Notes why a configured node is not reached. True when that is new.
    pub(super) fn problem(&self, node: &NodeId, problem: &str) -> bool {
        let mut state = self.state();
        let new = state.gossip.members.problem(node, problem);
        if new {
            self.publish(&mut state);
        }
        new
    }

    /// Whether a link to `node` is up that is not in doubt.
    pub(super) fn linked(&self, node: &NodeId) -> bool {
        let state = self.state();
        state
            .links
            .get(node.as_str())
            .is_some_and(|link| !link.suspect())
    }

    pub(super) fn open_links(&self) -> Vec<Arc<Link>> {
        self.state().links.open()
    }

    /// The session to `node`, opened when there is none yet.
    pub(super) async fn session(&self, node: &NodeId) -> Result<SessionRef, Failure> {
        self.way(node).await?;
        self.sessions.session(node).await
    }

    /// Changes what we say of ourselves, and says it on every link.
    pub(super) fn set_offer(&self, descriptor: Descriptor) {
        self.state().gossip.set_offer(descriptor);
        self.wake.notify_one();
    }

    /// Says how busy we are.
    pub(super) fn set_load(&self, load: Option<Load>) {
        self.state().gossip.set_load(load, Instant::now());
        self.wake.notify_one();
    }

    /// Says that we go away for good.
    pub(super) fn leave(&self) {
        self.state().gossip.leave();
        // Now: the links may close before the task that spreads gets its turn.
        self.spread();
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
        match code {
            CloseCode::RateLimited => {
                self.drops.count(Reason::HoldOff);
                self.state().alert(AlertKind::HoldOff, peer);
                self.wake.notify_one();
            }
            CloseCode::AuthFailed => {
                self.drops.count(Reason::AuthFailed);
                tracing::info!(%peer, why, "new link closed");
            }
            _ => {
                self.drops.count(Reason::DuplicateLink);
                tracing::debug!(%peer, why, "new link closed");
            }
        }
        refuse(&mut sink, &mut stream, code).await;
        None
    }

    /// Shows a link that has been entered and works.
    fn show_up(&self, link: &Link) {
        self.publish(&mut self.state());
        self.wake.notify_one();
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
        // Looked at with the table in hand: who takes secrets away ends the links in it afterwards.
        if !self.accepts(link.secret()) {
            let why = "its secret is not accepted any more";
            return Err(Step::Refuse(CloseCode::AuthFailed, why));
        }
        let old = match state.links.offer(&self.key, link, answered, Instant::now()) {
            Step::Enter(old) => old,
            other => return Err(other),
        };
        if let Some(old) = old {
            self.tasks.spawn(watch::run_replacement(old, link.clone()));
        }
        let peer = link.neighbour();
        let members = &mut state.gossip.members;
        members.up(peer, software, SystemTime::now());
        let about = gossip::Neighbour {
            node: peer.node.clone(),
            level: peer.level,
            relay: self.believes(link),
            dialed: link.dialed(),
        };
        state.gossip.link_up(link.id(), about, Instant::now());
        self.route(&mut state);
        Ok(())
    }

    /// Whether the neighbour relays, as far as we care.
    fn believes(&self, link: &Link) -> bool {
        link.relays() && self.settings.believes(&link.neighbour().node)
    }

    fn setup(&self, established: Established, carriage: Carriage) -> Setup {
        Setup {
            id: LinkId(self.next_link.fetch_add(1, Ordering::Relaxed)),
            peer: established.peer,
            sid: established.sid,
            dialed: established.role == Role::Dialer,
            secret: established.secret,
            relay: established.params.relay,
            carriage,
            send_key: established.send_key,
            recv_key: established.recv_key,
            heartbeat: self.settings.heartbeat,
            rekey_after: REKEY_RECORDS,
            queued: self.queued.clone(),
            traffic: self.traffic.clone(),
        }
    }
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
        self.arrived(link, frame)
    }

    fn gossip(&self, link: &Arc<Link>, header: Bytes, body: Bytes) -> Result<(), &'static str> {
        self.heard(link, (&header, &body))
    }

    fn compared(&self, link: &Arc<Link>, message: Comparison<'_>) -> Result<(), &'static str> {
        let now = Instant::now();
        let answered = self.state().gossip.message(link.id(), message, now);
        self.wake.notify_one();
        answered
    }

    fn goaway(&self, link: &Arc<Link>) {
        tracing::info!(peer = %link.neighbour().node, "node goes away");
        // What leads through it looks for another way while it still works.
        self.reroute();
    }

    fn measured(&self, link: &Arc<Link>) {
        let mut state = self.state();
        watch::show_alive(&mut state.gossip.members, link);
        // Links that have just been measured count from now on.
        state.routes.wanted(Instant::now());
        self.publish(&mut state);
        drop(state);
        self.wake.notify_one();
    }

    fn doubted(&self, link: &Arc<Link>) {
        tracing::debug!(
            suspect = link.suspect(),
            "a neighbour's silence is looked at"
        );
        self.state().routes.wanted(Instant::now());
        self.wake.notify_one();
        // Whoever can dial the node tries to reach it anew.
        self.links_changed.send_modify(|n| *n += 1);
    }

    fn ended(&self, link: &Arc<Link>, ending: &Ending) {
        for reason in Reason::ALL {
            self.drops.add(*reason, link.drops.get(*reason));
        }
        let peer = &link.neighbour().node;
        let mut state = self.state();
        let counted = state.links.remove(link);
        state.look(link);
        state.alerts.forget(link.id());
        state.gossip.link_down(link.id());
        if counted {
            let members = &mut state.gossip.members;
            members.down(peer, ending.to_string(), SystemTime::now());
        }
        self.route(&mut state);
        self.publish(&mut state);
        drop(state);
        self.relay.forget(link.id());
        self.wake.notify_one();
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
