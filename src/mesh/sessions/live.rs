//! One end-to-end session: its keys, what it has sent and seen (protocol 4.2-4.4).

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use tokio::{sync::Notify, time::Instant};

use super::window::Window;
use crate::{
    crypto::{seal::TAG_BYTES, secret::Secret, stretch::SecretId, transcript::PREFIX},
    ids::{NodeId, SessionId},
    mesh::{
        clock,
        hops::{Hop, Hops},
        link::{Flow, Link},
        session::{Class, Peer, SendError, Session},
        standing::Standing,
    },
    trust::Level,
    wire::{
        frame::{Ulid, put_routed},
        inner,
        limits::{HEADER_BYTES, RTO_MIN, SESSION_AGE, SESSION_FRAMES},
        record::{self, FIXED_BYTES, Kind, LENGTH_BYTES},
    },
};

/// `P||"e2e\0" || u8 class || lp(header)` at its longest.
const AAD_BYTES: usize = PREFIX.len() + 4 + 1 + 2 + HEADER_BYTES;

/// What a new session is made of.
pub(super) struct Keys {
    pub(super) sid: SessionId,
    pub(super) send: Secret<[u8; 32]>,
    pub(super) receive: Secret<[u8; 32]>,
    /// Whether we began the handshake.
    pub(super) ours: bool,
    /// When the session began, on the clock that counts suspend: the first M3 sent, or accepted.
    pub(super) began: Duration,
    /// The secret that it was proved with.
    pub(super) secret: SecretId,
}

/// Why a frame was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unopened {
    /// Its tag does not verify.
    Tag,
    /// It was here before, or is too old to tell.
    Replay,
}

/// What a route lookup gave, and for which table it holds.
#[derive(Debug, Default)]
struct Way {
    generation: u64,
    hop: Option<Hop>,
}

/// What a look at the routes says about the way a session used last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WayNow {
    /// It is the same.
    Same,
    /// Another is better; the old one may have broken farther off.
    Moved,
    /// It is gone and there is another: what was on it may be lost.
    Lost,
    /// None is left.
    None,
}

/// When a session was last of use.
#[derive(Debug, Clone, Copy)]
struct Used {
    last: Instant,
    /// When a frame of the other side was last opened.
    heard: Option<Instant>,
    /// When a hint that a frame was dropped was last followed.
    dropped: Option<Instant>,
}

/// A session at work. See the module's text.
pub(super) struct Live {
    id: SessionId,
    us: NodeId,
    standing: Standing,
    began: Duration,
    pub(super) secret: SecretId,
    pub(super) up_since: Instant,
    flow: Flow,
    hops: Arc<Hops>,
    seal: LessSafeKey,
    open: LessSafeKey,
    next: AtomicU64,
    first_ulid: Ulid,
    // Std mutexes: held for a few instructions, never across an await.
    seen: Mutex<[Window; 3]>,
    way: Mutex<Way>,
    used: Mutex<Used>,
    /// Whether we may send: the other side has both keys for certain.
    confirmed: AtomicBool,
    ended: AtomicBool,
    ending: Notify,
    fault: Mutex<Option<&'static str>>,
    /// Wakes the task that ends sessions with a fault.
    faults: Arc<Notify>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys are in it.
        write!(f, "session with {}", self.standing.peer().node)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these mutexes guard has no half-made state that a panic could leave behind.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(secret: &Secret<[u8; 32]>) -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, secret.reveal()).expect("a key of 32 bytes fits");
    LessSafeKey::new(key)
}

fn nonce(n: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&n.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Shortest time between two reactions to frames dropped on the way.
const DROP_PAUSE: Duration = Duration::from_millis(20);
/// A node does not forget a session and is back to say so within this time.
const JUST_NOW: Duration = Duration::from_secs(1);

/// The associated data of a frame, and how long it is.
fn associated(class: Class, header: &[u8]) -> ([u8; AAD_BYTES], usize) {
    let mut aad = [0; AAD_BYTES];
    let mut rest = &mut aad[..];
    rest.put_slice(PREFIX);
    rest.put_slice(b"e2e\0");
    rest.put_u8(class as u8);
    // Headers have at most 512 bytes.
    rest.put_u16(header.len() as u16);
    rest.put_slice(header);
    let unused = rest.len();
    (aad, AAD_BYTES - unused)
}

/// Names the flow from `f` to `t` in the queues of links.
pub(in crate::mesh) fn flow(f: &str, t: &str) -> Flow {
    // Not keyed: who finds two names that share a lane shares it with them, nothing more.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in f.bytes().chain([0]).chain(t.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    Flow(hash)
}

impl Live {
    pub(super) fn new(
        us: NodeId,
        peer: Peer,
        keys: &Keys,
        hops: Arc<Hops>,
        faults: Arc<Notify>,
    ) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            id: keys.sid,
            flow: flow(us.as_str(), peer.node.as_str()),
            us,
            standing: Standing::new(peer),
            began: keys.began,
            secret: keys.secret,
            up_since: now,
            hops,
            seal: key(&keys.send),
            open: key(&keys.receive),
            next: AtomicU64::new(0),
            first_ulid: Ulid::random(),
            seen: Mutex::default(),
            way: Mutex::default(),
            used: Mutex::new(Used {
                last: now,
                heard: None,
                dropped: None,
            }),
            confirmed: AtomicBool::new(keys.ours),
            ended: AtomicBool::new(false),
            ending: Notify::new(),
            fault: Mutex::new(None),
            faults,
        })
    }

    pub(super) fn node(&self) -> &NodeId {
        &self.standing.peer().node
    }

    /// Puts other rights in force for what arrives from now on.
    pub(super) fn change_rights(&self, level: Level, labels: Arc<[String]>) {
        let peer = self.standing.peer().clone();
        self.standing.change(Peer {
            level,
            labels,
            ..peer
        });
    }

    /// Whether it takes frames and is not due to be replaced.
    pub(super) fn fit(&self) -> bool {
        self.usable()
            && self.up_since.elapsed() < SESSION_AGE
            && self.next.load(Ordering::Relaxed) < SESSION_FRAMES / 2
    }

    pub(super) fn usable(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed) && !self.ended.load(Ordering::Relaxed)
    }

    pub(super) fn idle(&self) -> Duration {
        lock(&self.used).last.elapsed()
    }

    /// Notes that a frame of the other side was opened; true for the first one of a session that
    /// it began.
    pub(super) fn confirm(&self) -> bool {
        let now = Instant::now();
        {
            let mut used = lock(&self.used);
            used.last = now;
            used.heard = Some(now);
        }
        !self.confirmed.load(Ordering::Relaxed) && !self.confirmed.swap(true, Ordering::Relaxed)
    }

    /// Whether the other side certainly knew this session a moment ago.
    pub(super) fn just_heard(&self) -> bool {
        let heard = lock(&self.used).heard;
        heard.is_some_and(|heard| heard.elapsed() < JUST_NOW)
    }

    /// Ends it; true for whoever does so first.
    pub(super) fn end(&self) -> bool {
        let first = !self.ended.swap(true, Ordering::Relaxed);
        self.ending.notify_waiters();
        first
    }

    /// Why the exchange gave it up, if it did.
    pub(super) fn fault(&self) -> Option<&'static str> {
        *lock(&self.fault)
    }

    /// Opens the body of a frame where it lies; the inner frame stays.
    pub(super) fn open(
        &self,
        class: Class,
        header: &[u8],
        n: u64,
        body: &mut BytesMut,
    ) -> Result<(), Unopened> {
        let (aad, aad_bytes) = associated(class, header);
        let opened = self
            .open
            .open_in_place(nonce(n), Aad::from(&aad[..aad_bytes]), body)
            .map_err(|_| Unopened::Tag)?
            .len();
        if !lock(&self.seen)[class as usize].take(n) {
            return Err(Unopened::Replay);
        }
        body.truncate(opened);
        Ok(())
    }

    /// The way to the other node, looked up once per table of routes.
    fn hop(&self) -> Option<Arc<Link>> {
        let generation = self.hops.generation();
        let mut way = lock(&self.way);
        let stale =
            way.generation != generation || way.hop.as_ref().is_none_or(|hop| !hop.link.is_open());
        if stale {
            way.hop = self.hops.get(self.node().as_str());
            way.generation = generation;
        }
        way.hop.as_ref().map(|hop| hop.link.clone())
    }

    /// Whether this session has sent the frame with this name.
    pub(super) fn has_sent(&self, frame: Ulid) -> bool {
        let n = frame.0.wrapping_sub(self.first_ulid.0);
        n < u128::from(self.next.load(Ordering::Relaxed))
    }

    /// Whether a hint that a frame was dropped may be followed now: one in a round trip, for many
    /// frames are dropped together and a hint may be a lie (T122).
    pub(super) fn may_follow_drop(&self, now: Instant) -> bool {
        let pause = self.rtt().unwrap_or(RTO_MIN).max(DROP_PAUSE);
        let mut used = lock(&self.used);
        let due = used
            .dropped
            .is_none_or(|last| now.saturating_duration_since(last) >= pause);
        if due {
            used.dropped = Some(now);
        }
        due
    }

    /// What has become of the way since the last frame.
    pub(super) fn way_now(&self) -> WayNow {
        let now = self.hops.get(self.node().as_str());
        let way = lock(&self.way);
        match (&way.hop, now) {
            (_, None) => WayNow::None,
            (None, Some(_)) => WayNow::Lost,
            (Some(before), Some(_)) if !before.link.is_open() => WayNow::Lost,
            (Some(before), Some(now)) if before.link.id() != now.link.id() => WayNow::Moved,
            _ => WayNow::Same,
        }
    }

    pub(super) fn write(
        &self,
        class: Class,
        json: &[u8],
        data: &[u8],
    ) -> Result<BytesMut, SendError> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        if n >= SESSION_FRAMES {
            return Err(SendError::Gone);
        }
        let inner_bytes = inner::padded_bytes(json.len(), data.len());
        // Longest names and numbers take 256 bytes of header.
        let mut buffer = BytesMut::with_capacity(
            LENGTH_BYTES + FIXED_BYTES + 256 + TAG_BYTES + inner_bytes + TAG_BYTES,
        );
        record::begin(&mut buffer, Kind::Routed, class);
        let i = self.first_ulid.plus(n);
        put_routed(&mut buffer, i, &self.us, self.node(), &self.id, n);
        record::end_header(&mut buffer);
        let header = LENGTH_BYTES + FIXED_BYTES..buffer.len();
        let (aad, aad_bytes) = associated(class, &buffer[header]);
        // Room for the link's tag.
        buffer.put_bytes(0, TAG_BYTES);
        let body = buffer.len();
        inner::put(&mut buffer, json, data).map_err(|_| SendError::TooLarge)?;
        let tag = self
            .seal
            .seal_in_place_separate_tag(nonce(n), Aad::from(&aad[..aad_bytes]), &mut buffer[body..])
            .map_err(|_| SendError::TooLarge)?;
        buffer.put_slice(tag.as_ref());
        Ok(buffer)
    }
}

impl Session for Live {
    fn id(&self) -> SessionId {
        self.id
    }

    fn peer(&self) -> &Peer {
        self.standing.peer()
    }

    fn elapsed(&self) -> Duration {
        clock::since_boot().saturating_sub(self.began)
    }

    fn rtt(&self) -> Option<Duration> {
        let way = lock(&self.way);
        let hop = way.hop.as_ref()?;
        if hop.direct { hop.link.rtt() } else { hop.rtt }
    }

    fn direct(&self) -> bool {
        lock(&self.way).hop.as_ref().is_none_or(|hop| hop.direct)
    }

    fn send(&self, class: Class, json: &[u8], data: &[u8]) -> Result<(), SendError> {
        if !self.usable() {
            return Err(SendError::Gone);
        }
        if !inner::fits(json.len(), data.len()) {
            return Err(SendError::TooLarge);
        }
        let Some(link) = self.hop() else {
            // Without a way a control frame is as good as lost: whoever sent it repeats what
            // matters. Items wait in their streams.
            return if class == Class::Control {
                Ok(())
            } else {
                Err(SendError::Full)
            };
        };
        if !link.has_room(self.flow, class) {
            return Err(SendError::Full);
        }
        let frame = self.write(class, json, data)?;
        lock(&self.used).last = Instant::now();
        match link.push(self.flow, class, frame) {
            // The link closed this moment; another may be up already.
            Err(SendError::Gone) if class == Class::Control => Ok(()),
            Err(SendError::Gone) => Err(SendError::Full),
            other => other,
        }
    }

    fn room(&self, class: Class) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            loop {
                let changed = self.hops.changed();
                let ending = self.ending.notified();
                tokio::pin!(changed, ending);
                // Registered before the look, so that no wake between the two is missed.
                changed.as_mut().enable();
                ending.as_mut().enable();
                if !self.usable() {
                    return;
                }
                let hop = self.hop();
                if hop
                    .as_ref()
                    .is_some_and(|link| link.has_room(self.flow, class))
                {
                    return;
                }
                let room = async {
                    match &hop {
                        Some(link) => link.room(self.flow, class).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = changed => {}
                    () = ending => {}
                    () = room => {}
                }
            }
        })
    }

    fn stalled(&self) {
        let way = lock(&self.way);
        if let Some(hop) = way.hop.as_ref().filter(|hop| !hop.direct) {
            self.hops.blame(&hop.link.neighbour().node);
        }
    }

    fn waits(&self) {
        if let Some(link) = self.hop() {
            link.waits();
        }
    }

    fn fail(&self, reason: &'static str) {
        lock(&self.fault).get_or_insert(reason);
        self.faults.notify_one();
    }
}
