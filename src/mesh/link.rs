//! One authenticated connection to a neighbour (protocol 4.1, 5.1, 5.5, 6.5).
//!
//! A [`Link`] is a handle onto three tasks: one reads and opens records, one seals and writes them,
//! one pings. They share a queue and a few facts; the first of them that fails ends all three.
//! Routed frames pass through it whoever they are from and for; what is in them is the business of
//! its owner.
//!
//! A link is *open*, then perhaps *draining* (nothing new is taken, what waits is still sent, what
//! arrives is still delivered), then *ended*.

mod pace;
mod read;
#[cfg(test)]
mod tests;
mod watch;
mod write;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::read::Lost;
use super::{
    carriage::Carriage,
    drops::Drops,
    gossip::Comparison,
    liveness::Liveness,
    schedule::{Refused, Schedule},
    session::{Class, Peer, SendError},
    standing::Standing,
    traffic::Traffic,
    transport::{MessageSink, MessageStream},
};
use crate::{
    crypto::{
        seal::{Opened, TAG_BYTES},
        secret::Secret,
        stretch::SecretId,
    },
    drain::Tasks,
    ids::{LinkId, SessionId},
    trust::Level,
    wire::{
        close::CloseCode,
        frame::LinkHeader,
        limits::HEADER_BYTES,
        record::{self, FIXED_BYTES, Fixed, Kind, LENGTH_BYTES},
    },
};

/// How often a wait for a sign of life looks; rare enough to need no wake-up of its own.
const ANSWER_POLL: Duration = Duration::from_millis(20);

/// What a verified handshake and our settings say about a new link.
pub struct Setup {
    /// Number of this link in this process.
    pub id: LinkId,
    /// The neighbour.
    pub peer: Peer,
    /// Names the link alike at both ends.
    pub sid: SessionId,
    /// Whether we dialed.
    pub dialed: bool,
    /// The secret that it was proved with.
    pub secret: SecretId,
    /// Whether the neighbour says that it relays for others.
    pub relay: bool,
    /// What it runs over.
    pub carriage: Carriage,
    /// Data key of what we send.
    pub send_key: Secret<[u8; 32]>,
    /// Data key of what we receive.
    pub recv_key: Secret<[u8; 32]>,
    /// Our heartbeat.
    pub heartbeat: Duration,
    /// Records under one key.
    pub rekey_after: u64,
    /// Counts the bytes that wait on all links.
    pub queued: Arc<AtomicUsize>,
    /// Counts the bytes that all links carry.
    pub traffic: Arc<Traffic>,
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The data keys are in it.
        f.debug_struct("Setup")
            .field("id", &self.id)
            .field("peer", &self.peer.node)
            .finish_non_exhaustive()
    }
}

/// Why a link has ended or is about to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// We close it.
    Ours {
        /// What the neighbour is told.
        code: CloseCode,
        /// What our log is told.
        why: String,
    },
    /// The neighbour closed it.
    Theirs {
        /// Its close code.
        code: u16,
    },
    /// The connection broke.
    Broken(String),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours { code, why } => write!(f, "closed with {code}: {why}"),
            Self::Theirs { code } => match CloseCode::from_number(*code) {
                Some(code) => write!(f, "closed by the other side with {code}"),
                None => write!(f, "closed by the other side with {code}"),
            },
            Self::Broken(why) => f.write_str(why),
        }
    }
}

/// A routed record as it came over a link: kind 1, 3 or 4.
#[derive(Debug)]
pub struct Arrived {
    /// What the record begins with.
    pub fixed: Fixed,
    /// The record, opened by the link: its header as received, and a body that is sealed end to end
    /// for kind 1.
    pub record: Opened,
}

impl Arrived {
    /// Header JSON exactly as received.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.record.plain()[FIXED_BYTES..FIXED_BYTES + self.fixed.header_bytes]
    }

    /// Body of a record that is not sealed end to end: kinds 3 and 4.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.record.plain()[FIXED_BYTES + self.fixed.header_bytes..]
    }
}

/// What is wrong with a routed frame, when the neighbour is to blame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadFrame {
    /// It breaks the protocol of the neighbour's own layer; the link ends.
    Protocol(String),
    /// Its body does not open, so somebody altered it on its way here. Too many end the link
    /// (protocol 4.1).
    Body,
}

/// What a link tells the registry that holds it. Called on the runtime's thread; must not block.
pub trait LinkOwner: Send + Sync + fmt::Debug {
    /// A routed frame has arrived, for whomever.
    ///
    /// # Errors
    /// [`BadFrame`].
    fn routed(&self, link: &Arc<Link>, frame: Arrived) -> Result<(), BadFrame>;
    /// A signed record has arrived.
    ///
    /// # Errors
    /// Why the neighbour broke the protocol; the link ends then.
    fn gossip(&self, link: &Arc<Link>, header: Bytes, body: Bytes) -> Result<(), &'static str>;
    /// The neighbour says what it knows or lacks (protocol 6.4).
    ///
    /// # Errors
    /// Why the neighbour broke the protocol; the link ends then.
    fn compared(&self, link: &Arc<Link>, message: Comparison<'_>) -> Result<(), &'static str>;
    /// The neighbour goes away soon.
    fn goaway(&self, link: &Arc<Link>);
    /// The round trip was measured for the first time.
    fn measured(&self, link: &Arc<Link>);
    /// Doubt whether the neighbour is still there has begun or ended; [`Link::suspect`] tells which.
    fn doubted(&self, link: &Arc<Link>) {
        let _ = link;
    }
    /// The link has ended; none of the calls above follows.
    fn ended(&self, link: &Arc<Link>, ending: &Ending);
}

/// A handle to one link. See the module's text.
pub struct Link {
    id: LinkId,
    standing: Standing,
    sid: SessionId,
    dialed: bool,
    secret: SecretId,
    relay: bool,
    carriage: Carriage,
    up_since: Instant,
    // Std mutexes: held for a few instructions, never across an await.
    queue: Mutex<Schedule<Flow>>,
    live: Mutex<Liveness>,
    /// What this link dropped.
    pub drops: Drops,
    traffic: Arc<Traffic>,
    // Wakes the writer, those that wait for room, and the task that pings.
    queued: Notify,
    freed: Notify,
    ticked: Notify,
    draining: AtomicBool,
    going_away: AtomicBool,
    ending: OnceLock<Ending>,
    stop: CancellationToken,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({} to {})", self.id.0, self.neighbour().node)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these mutexes guard has no half-made state that a panic could leave behind.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// A link over an authenticated connection; [`Link::run`] brings it to life.
    #[must_use]
    pub fn new(setup: &Setup) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            id: setup.id,
            standing: Standing::new(setup.peer.clone()),
            sid: setup.sid,
            dialed: setup.dialed,
            secret: setup.secret,
            relay: setup.relay,
            carriage: setup.carriage.clone(),
            up_since: now,
            queue: Mutex::new(Schedule::counted(setup.queued.clone())),
            live: Mutex::new(Liveness::new(setup.heartbeat, now)),
            drops: Drops::default(),
            traffic: setup.traffic.clone(),
            queued: Notify::new(),
            freed: Notify::new(),
            ticked: Notify::new(),
            draining: AtomicBool::new(false),
            going_away: AtomicBool::new(false),
            ending: OnceLock::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Starts the tasks. `owner` gets what arrives, and `ended` last of all.
    pub fn run<S: MessageSink, R: MessageStream>(
        self: &Arc<Self>,
        setup: &Setup,
        (sink, stream): (S, R),
        owner: Arc<dyn LinkOwner>,
        tasks: &Tasks,
    ) {
        let span = tracing::info_span!("link", peer = %self.neighbour().node, link = self.id.0,
            sid = %self.sid);
        let writer = write::run(
            self.clone(),
            sink,
            crate::crypto::seal::Sealer::with_rekey(setup.send_key.reveal(), setup.rekey_after),
        );
        let opener =
            crate::crypto::seal::Opener::with_rekey(setup.recv_key.reveal(), setup.rekey_after);
        let watcher = watch::run(self.clone(), owner.clone());
        let lost = Lost::new(self.clone(), owner);
        let reader = read::run(lost, stream, opener);
        tasks.spawn(writer.instrument(span.clone()));
        tasks.spawn(watcher.instrument(span.clone()));
        tasks.spawn(reader.instrument(span));
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> LinkId {
        self.id
    }

    /// The neighbour.
    #[must_use]
    pub fn neighbour(&self) -> &Peer {
        self.standing.peer()
    }

    /// The secret that it was proved with.
    #[must_use]
    pub fn secret(&self) -> SecretId {
        self.secret
    }

    /// Puts other rights in force for what arrives from now on.
    pub fn change_rights(&self, level: Level, labels: Arc<[String]>) {
        self.standing.change(Peer {
            level,
            labels,
            ..self.neighbour().clone()
        });
    }

    /// Its name, the same at both ends.
    #[must_use]
    pub fn sid(&self) -> SessionId {
        self.sid
    }

    /// Whether the neighbour says that it relays for others.
    #[must_use]
    pub fn relays(&self) -> bool {
        self.relay
    }

    /// Smoothed round-trip time, once measured.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        lock(&self.live).rtt()
    }

    /// What it runs over.
    #[must_use]
    pub fn carriage(&self) -> &Carriage {
        &self.carriage
    }

    /// Whether we dialed it.
    #[must_use]
    pub fn dialed(&self) -> bool {
        self.dialed
    }

    /// How long it has been up.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.up_since.elapsed()
    }

    /// Time since something last arrived on it.
    #[must_use]
    pub fn silence(&self) -> Duration {
        lock(&self.live).silence(Instant::now())
    }

    /// Whether the neighbour may be gone.
    #[must_use]
    pub fn suspect(&self) -> bool {
        lock(&self.live).suspect(Instant::now())
    }

    /// Whether the neighbour has said that it goes away.
    #[must_use]
    pub fn going_away(&self) -> bool {
        self.going_away.load(Ordering::Relaxed)
    }

    /// Whether it takes frames.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.draining.load(Ordering::Relaxed) && self.ending.get().is_none()
    }

    /// Why it ended, or is about to.
    #[must_use]
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.get()
    }

    /// Resolves when the link has stopped reading and writing.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Asks the neighbour for a sign of life within 3 s and forgets its silence so far, which was
    /// ours (protocol 6.5).
    pub fn probe(&self) {
        lock(&self.live).restart(Instant::now());
        self.ticked.notify_one();
    }

    /// Asks the neighbour for a sign of life; whether one came within `patience`. It counts as an
    /// urgent ping, so a dead link ends soon after.
    pub async fn answers_within(&self, patience: Duration) -> bool {
        let asked = Instant::now();
        let records = lock(&self.live).records();
        self.ask();
        self.hears_beyond(records, asked, patience).await
    }

    /// Whether anything has arrived, or does within `patience`.
    pub async fn hears_within(&self, patience: Duration) -> bool {
        self.hears_beyond(0, Instant::now(), patience).await
    }

    async fn hears_beyond(&self, records: u64, asked: Instant, patience: Duration) -> bool {
        loop {
            if lock(&self.live).records() > records {
                return true;
            }
            let left = patience.saturating_sub(asked.elapsed());
            if left.is_zero() || !self.is_open() {
                return false;
            }
            tokio::time::sleep(left.min(ANSWER_POLL)).await;
        }
    }

    /// Something is waited for that this link may have to bring: sends an urgent ping if it is quiet.
    pub fn waits(&self) {
        if lock(&self.live).request_waits(Instant::now()) {
            self.ticked.notify_one();
        }
    }

    /// Sends an urgent ping.
    pub fn ask(&self) {
        lock(&self.live).request_waits_now();
        self.ticked.notify_one();
    }

    /// Tells the neighbour that we go away within `after`.
    pub fn send_goaway(&self, why: &str, after: Duration) {
        let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        self.send_link(&LinkHeader::Goaway {
            why: why.into(),
            ms,
        });
    }

    /// Sends what waits, then `bye`, then closes with `code`. Delivers what still arrives.
    pub fn drain(&self, code: CloseCode, why: &str) {
        let ending = Ending::Ours {
            code,
            why: why.to_owned(),
        };
        if self.ending.set(ending).is_ok() {
            self.draining.store(true, Ordering::Relaxed);
            self.queued.notify_one();
            self.freed.notify_waiters();
        }
    }

    /// Ends the link at once, with nothing but the close code.
    pub fn end(&self, code: CloseCode, why: impl Into<String>) {
        self.finish(Ending::Ours {
            code,
            why: why.into(),
        });
    }

    /// Queues a signed record for the neighbour.
    pub fn send_gossip(&self, put_header: impl FnOnce(&mut BytesMut), body: &[u8]) {
        let mut buffer = BytesMut::with_capacity(
            LENGTH_BYTES + FIXED_BYTES + HEADER_BYTES + body.len() + TAG_BYTES,
        );
        record::begin(&mut buffer, Kind::Gossip, Class::Control);
        put_header(&mut buffer);
        record::end_header(&mut buffer);
        buffer.extend_from_slice(body);
        self.push_control(buffer);
    }

    /// Queues a message for the neighbour itself.
    pub fn send_said(&self, header: &LinkHeader<'_>, body: &[u8]) {
        let mut buffer = BytesMut::with_capacity(256 + body.len());
        record::begin(&mut buffer, Kind::Link, Class::Control);
        header.put(&mut buffer);
        record::end_header(&mut buffer);
        buffer.extend_from_slice(body);
        self.push_control(buffer);
    }

    fn send_link(&self, header: &LinkHeader<'_>) {
        self.send_said(header, b"");
    }

    /// How many more messages and records for the neighbour itself can wait.
    #[must_use]
    pub fn control_room(&self) -> usize {
        lock(&self.queue).control_room()
    }

    fn push_control(&self, frame: BytesMut) {
        let pushed = lock(&self.queue).push(Flow::default(), Class::Control, frame);
        match pushed {
            Ok(()) => self.queued.notify_one(),
            Err(_) => self.end(CloseCode::Timeout, "control queue overflow"),
        }
    }

    /// Notes why the link ends, unless that is known, and stops its tasks.
    fn finish(&self, ending: Ending) {
        let _ = self.ending.set(ending);
        self.stop.cancel();
        self.freed.notify_waiters();
    }
}

/// Names a flow in a link's queues: frames of one origin for one destination (protocol 5.5). A hash;
/// two flows that share one merely share their turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flow(pub u64);

impl Link {
    /// Queues one routed frame as [`record::begin`] laid it out; one that is sealed end to end has
    /// [`TAG_BYTES`] of room between its header and its body. Never blocks.
    ///
    /// # Errors
    /// [`SendError::Full`], but never for [`Class::Control`], or [`SendError::Gone`].
    pub fn push(&self, flow: Flow, class: Class, frame: BytesMut) -> Result<(), SendError> {
        if !self.is_open() {
            return Err(SendError::Gone);
        }
        if class != Class::Control {
            self.waits();
        }
        let pushed = lock(&self.queue).push(flow, class, frame);
        match pushed {
            Ok(()) => {
                self.queued.notify_one();
                Ok(())
            }
            Err(Refused::Full) => Err(SendError::Full),
            Err(Refused::ControlOverflow) => {
                self.end(CloseCode::Timeout, "control queue overflow");
                Err(SendError::Gone)
            }
        }
    }

    /// Whether a frame of others would be taken.
    #[must_use]
    pub fn takes(&self, flow: Flow, class: Class) -> bool {
        lock(&self.queue).lane_room(flow, class)
    }

    /// Queues a frame of others as it came, with what its neighbour sealed opened. Never blocks and
    /// never waits: a relay that stopped reading for one slow flow would stop all others.
    ///
    /// # Errors
    /// [`SendError::Full`], [`SendError::Gone`].
    pub fn pass_on(&self, flow: Flow, class: Class, frame: BytesMut) -> Result<(), SendError> {
        if !self.is_open() {
            return Err(SendError::Gone);
        }
        self.waits();
        let pushed = lock(&self.queue).push_relayed(flow, class, frame);
        pushed.map_err(|_| SendError::Full)?;
        self.queued.notify_one();
        Ok(())
    }

    /// Whether a frame would be taken.
    #[must_use]
    pub fn has_room(&self, flow: Flow, class: Class) -> bool {
        lock(&self.queue).room(flow, class)
    }

    /// Resolves when a frame may be taken again, or the link takes none any more.
    pub async fn room(&self, flow: Flow, class: Class) {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Registered before the look, so that no wake between the two is missed.
            freed.as_mut().enable();
            if !self.is_open() || self.has_room(flow, class) {
                return;
            }
            freed.await;
        }
    }
}
