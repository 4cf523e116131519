//! One other process: the requests between it and us, over whichever session reaches it.
//!
//! Its table belongs to the peer's key and boot, not to a session (protocol 4.5): while one of its
//! sessions is up, streams go on in it. One mutex guards the table; frames leave after it is
//! released, so that a session may call back at will.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    Shared,
    budget::PeerBudget,
    congestion::Flight,
    inbound::Inbound,
    message::{self, Ack, Dir, Phase},
    outbound::Outbound,
    rids::Tombs,
    sender::{Sender, Time},
};
use crate::{
    ids::{RequestId, SessionId},
    mesh::session::{Class, SendError, Session, SessionRef},
    wire::limits::{ACK_ENTRIES, CREDIT_VIOLATIONS, NOOP_AFTER, SESSION_LOST_AFTER},
};

/// Acks of ended streams that are sent at once, by number and by the bytes they ack.
const LATE_ACKS: usize = 64;
const LATE_BYTES: u64 = 1024 * 1024;

/// Silence of the other process after which the way to it is looked at while requests wait: half of
/// what both sides keep to.
const DOUBTED_AFTER: Duration = Duration::from_secs(5);

/// Cancels sent between two ticks: a quarter of a link's control queue.
const CANCELS: u32 = 256;

/// One frame that waits for the mutex to be released.
#[derive(Debug)]
pub(super) struct Frame {
    class: Class,
    json: Bytes,
    data: Bytes,
    /// The item in it: taken back when the link has no room.
    item: Option<(RequestId, Dir, u64, bool)>,
}

/// Frames to be sent once the mutex is released.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: Vec<Frame>,
    /// Streams for whose items the way has no room now.
    congested: Vec<(RequestId, Dir)>,
    cancels_left: u32,
    /// The session they will be sent in.
    session: Option<SessionId>,
}

impl Outbox {
    /// A `cancel`, unless too many have just been sent: thousands of callers may go away at once,
    /// and a control queue that overflows ends the link. False when it must wait for the clock.
    pub(super) fn cancel(&mut self, json: impl FnOnce() -> Bytes) -> bool {
        let allowed = self.cancels_left > 0;
        if allowed {
            self.cancels_left -= 1;
            self.control(json());
        }
        allowed
    }

    /// A frame without a number that the other side asks for again if it is lost. It waits its
    /// turn, and is dropped when the link is full: a flood of requests must not end the link.
    pub(super) fn soft(&mut self, json: Bytes) {
        self.frames.push(Frame {
            class: Class::Interactive,
            json,
            data: Bytes::new(),
            item: None,
        });
    }

    /// A frame without a number, in the class that is always taken.
    pub(super) fn control(&mut self, json: Bytes) {
        self.frames.push(Frame {
            class: Class::Control,
            json,
            data: Bytes::new(),
            item: None,
        });
    }

    /// Everything of `sender` that may go.
    pub(super) fn pump(&mut self, rid: RequestId, dir: Dir, sender: &mut Sender, at: &Moment<'_>) {
        while self.pump_one(rid, dir, sender, at) {}
        if sender.congested() && !std::mem::replace(&mut sender.queued, true) {
            self.congested.push((rid, dir));
        }
    }

    /// One item of `sender`, if one may go.
    fn pump_one(&mut self, rid: RequestId, dir: Dir, sender: &mut Sender, at: &Moment<'_>) -> bool {
        if sender.strands_without(self.session) {
            return false;
        }
        let Some((seq, again, item)) = sender.take(at.now) else {
            return false;
        };
        if again {
            at.shared.counters.resent.fetch_add(1, Relaxed);
        }
        self.frames.push(Frame {
            class: item.class,
            json: item.json,
            data: item.data,
            item: Some((rid, dir, seq, again)),
        });
        true
    }
}

/// What every transition needs to know of the world.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment<'a> {
    pub(super) now: Time,
    pub(super) rtt: Option<Duration>,
    pub(super) flight: &'a Arc<Flight>,
    pub(super) shared: &'a Shared,
}

/// How sending went.
#[derive(Debug)]
pub(super) enum Flow {
    /// Everything was taken.
    Clear,
    /// This class has no room; the item waits in its stream.
    Blocked(SessionRef, Class),
    /// There is no session; word of it follows.
    Gone,
}

/// The table of one other process.
#[derive(Debug)]
pub(super) struct State {
    /// Live sessions, newest last.
    sessions: Vec<SessionRef>,
    pub(super) outbound: HashMap<RequestId, Outbound>,
    pub(super) inbound: HashMap<RequestId, Inbound>,
    pub(super) asked: Tombs,
    pub(super) served: Tombs,
    /// Acks of streams that are gone.
    pub(super) late_acks: Vec<Ack>,
    /// Bytes they ack.
    late_bytes: u64,
    /// Cancels that may still be sent before the clock ticks.
    cancels_left: u32,
    pub(super) queries: HashMap<RequestId, oneshot::Sender<Phase>>,
    pub(super) violations: u32,
    /// Streams that wait for room on the way, each once, in turn.
    congested: VecDeque<(RequestId, Dir)>,
    /// The other side repeats what it was told had arrived.
    pub(super) unheard: bool,
    /// When something authenticated last came, and something of ours last left.
    heard: Time,
    sent: Time,
}

impl State {
    /// The session to send in.
    pub(super) fn session(&self) -> Option<&SessionRef> {
        self.sessions.last()
    }

    /// Keeps the sessions that `keep` says; frames go out in the newest of them.
    fn retain_sessions(&mut self, keep: impl FnMut(&SessionRef) -> bool, out: &mut Outbox) {
        self.sessions.retain(keep);
        out.session = self.session().map(|session| session.id());
    }

    fn sender(&mut self, rid: RequestId, dir: Dir) -> Option<&mut Sender> {
        match dir {
            Dir::Up => self.outbound.get_mut(&rid).map(|entry| &mut entry.up),
            Dir::Down => self.inbound.get_mut(&rid).map(|entry| &mut entry.down),
        }
    }

    fn put_back(&mut self, (rid, dir, seq, again): (RequestId, Dir, u64, bool)) {
        if let Some(sender) = self.sender(rid, dir) {
            sender.put_back(seq, again);
        }
    }

    /// Gives room on the way to the streams that wait for it, an item each in turn.
    fn share_way(&mut self, out: &mut Outbox, at: &Moment<'_>) {
        self.congested.extend(out.congested.drain(..));
        let mut idle = 0;
        while idle < self.congested.len()
            && let Some((rid, dir)) = self.congested.pop_front()
        {
            let Some(sender) = self.sender(rid, dir) else {
                continue;
            };
            let sent = out.pump_one(rid, dir, sender, at);
            idle = if sent { 0 } else { idle + 1 };
            if sent || sender.congested() {
                self.congested.push_back((rid, dir));
            } else {
                sender.queued = false;
            }
        }
    }

    /// Whether what we send gets lost: a stream has waited in vain for its second ack in a row, or
    /// the other side for ours.
    fn take_stalled(&mut self) -> bool {
        let mut stalled = std::mem::take(&mut self.unheard);
        for entry in self.outbound.values_mut() {
            stalled |= entry.up.take_stalled();
        }
        for entry in self.inbound.values_mut() {
            stalled |= entry.down.take_stalled();
        }
        stalled
    }

    /// Looks in every stream what may be missing on the other side.
    pub(super) fn suspect_all(&mut self, out: &mut Outbox, at: &Moment<'_>) {
        for (rid, entry) in &mut self.outbound {
            entry.up.suspect(at.now, at.rtt);
            out.pump(*rid, Dir::Up, &mut entry.up, at);
        }
        for (rid, entry) in &mut self.inbound {
            entry.down.suspect(at.now, at.rtt);
            out.pump(*rid, Dir::Down, &mut entry.down, at);
        }
    }

    /// The same when the way has moved; acks may be missing there as well.
    pub(super) fn moved(&mut self, out: &mut Outbox, at: &Moment<'_>) {
        for entry in self.outbound.values_mut() {
            entry.down.remind();
            entry.up.forget_waits();
        }
        for entry in self.inbound.values_mut() {
            entry.up.remind();
            entry.down.forget_waits();
        }
        self.suspect_all(out, at);
    }

    /// Acks for a stream that is over here, after `bytes` not acked yet. Many quick answers do not
    /// wait for the clock: they fill the other side's budget until they are acked.
    pub(super) fn late_ack(&mut self, ack: Ack, bytes: u64, out: &mut Outbox) {
        self.late_acks.push(ack);
        self.late_bytes += bytes;
        if self.late_acks.len() >= LATE_ACKS || self.late_bytes >= LATE_BYTES {
            self.late_bytes = 0;
            out.control(message::ack(&std::mem::take(&mut self.late_acks)));
        }
    }

    /// Notes a sign of life.
    pub(super) fn heard(&mut self, now: Time) {
        self.heard = now;
    }

    /// Nothing of ours is under way here: the first request starts the clocks of silence.
    pub(super) fn wake_clocks(&mut self, now: Time) {
        if self.outbound.is_empty() && self.inbound.is_empty() {
            self.heard = now;
            self.sent = now;
        }
    }
}

/// One other process.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) shared: Arc<Shared>,
    pub(super) budget: PeerBudget,
    pub(super) flight: Arc<Flight>,
    state: Mutex<State>,
}

impl Remote {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let now = shared.now();
        Self {
            budget: PeerBudget::new(shared.limits.peer_budget_bytes, shared.budget.clone()),
            state: Mutex::new(State {
                sessions: Vec::new(),
                outbound: HashMap::new(),
                inbound: HashMap::new(),
                asked: Tombs::default(),
                served: Tombs::default(),
                late_acks: Vec::new(),
                late_bytes: 0,
                cancels_left: CANCELS,
                queries: HashMap::new(),
                violations: 0,
                congested: VecDeque::new(),
                unheard: false,
                heard: now,
                sent: now,
            }),
            flight: Arc::default(),
            shared,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a bug elsewhere; the table itself is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the table, then sends what the change brought up.
    pub(super) fn with<R>(
        &self,
        change: impl FnOnce(&mut State, &mut Outbox, &Moment<'_>) -> R,
    ) -> (R, Flow) {
        let mut out = Outbox::default();
        let now = self.shared.now();
        let (result, session) = {
            let mut state = self.lock();
            let rtt = state.session().and_then(|session| session.rtt());
            let direct = state.session().is_none_or(|session| session.direct());
            self.flight.bind(!direct);
            let at = Moment {
                now,
                rtt,
                flight: &self.flight,
                shared: &self.shared,
            };
            out.cancels_left = state.cancels_left;
            out.session = state.session().map(|session| session.id());
            let result = change(&mut state, &mut out, &at);
            state.share_way(&mut out, &at);
            state.cancels_left = out.cancels_left;
            if out.frames.is_empty() {
                return (result, Flow::Clear);
            }
            state.sent = now;
            (result, state.session().cloned())
        };
        (result, self.send(session, out))
    }

    fn send(&self, session: Option<SessionRef>, out: Outbox) -> Flow {
        let mut full: Option<Class> = None;
        let mut gone = session.is_none();
        let mut back = Vec::new();
        let mut oversize = Vec::new();
        for frame in out.frames {
            // After a refusal no further item goes, of whatever class: those of one stream stay in
            // order, and the others come with the next tick.
            if !gone && (full.is_none() || frame.item.is_none()) {
                let sent = session.as_ref().map_or(Err(SendError::Gone), |session| {
                    session.send(frame.class, &frame.json, &frame.data)
                });
                match sent {
                    Ok(()) => continue,
                    Err(SendError::Full) => full = Some(frame.class),
                    Err(SendError::Gone) => gone = true,
                    Err(SendError::TooLarge) => {
                        oversize.extend(frame.item);
                        continue;
                    }
                }
            }
            back.extend(frame.item);
        }
        if !back.is_empty() {
            let mut state = self.lock();
            // The latest first, as they were taken.
            for item in back.into_iter().rev() {
                state.put_back(item);
            }
        }
        for (rid, dir, ..) in oversize {
            tracing::error!(request = ?rid, "an item is larger than a frame");
            self.with(|state, out, at| state.break_off(rid, dir, out, at));
        }
        match (gone, full, session) {
            (false, Some(class), Some(session)) => Flow::Blocked(session, class),
            (false, None, _) => Flow::Clear,
            _ => Flow::Gone,
        }
    }

    /// A further session to this process is up.
    pub(super) fn add_session(&self, session: &SessionRef) {
        let now = self.shared.now();
        let mut state = self.lock();
        state.sessions.push(Arc::clone(session));
        state.heard = now;
    }

    /// One session has ended. Streams go on in another, if there is one.
    pub(super) fn remove_session(&self, session: &SessionRef) {
        self.with(|state, out, at| {
            state.retain_sessions(|s| s.id() != session.id(), out);
            if state.sessions.is_empty() {
                state.lose_all(out, at);
            } else {
                // Also when it was not the newest: what it carried may be lost with it.
                state.rewind_all(out, at);
            }
        });
    }

    /// The way to this process has broken and another one is there: what is not acked goes again.
    pub(super) fn rewind(&self) {
        self.with(|state, out, at| state.rewind_all(out, at));
    }

    /// A relay says that it dropped something, or the way has moved.
    pub(super) fn suspect(&self) {
        self.with(|state, out, at| state.suspect_all(out, at));
    }

    /// The way to it has moved.
    pub(super) fn moved(&self) {
        self.with(|state, out, at| state.moved(out, at));
    }

    /// Ended requests still remembered.
    pub(super) fn remembered(&self) -> usize {
        let state = self.lock();
        state.asked.len() + state.served.len()
    }

    /// The process is gone: another boot has taken its place.
    pub(super) fn end(&self) {
        self.with(|state, out, at| {
            state.retain_sessions(|_| false, out);
            state.lose_all(out, at);
        });
    }

    /// Counts a stream that ignored its credit; the third ends the session (protocol 5.4).
    pub(super) fn credit_violation(&self, session: &dyn Session) {
        let third = {
            let mut state = self.lock();
            state.violations += 1;
            state.violations.is_multiple_of(CREDIT_VIOLATIONS)
        };
        if third {
            session.fail("credit ignored three times");
        }
    }

    /// Timers, acks and signs of life. Returns whether more is to be looked at soon, and
    /// otherwise when the next ended request may be forgotten.
    /// After a pause of the whole process silence proves nothing.
    pub(super) fn tick(&self, paused: bool) -> Next {
        let (silent, next) = self
            .with(|state, out, at| {
                if paused {
                    state.heard = at.now;
                }
                let mut acks = std::mem::take(&mut state.late_acks);
                state.late_bytes = 0;
                out.cancels_left = CANCELS;
                let waiting = state.tick_outbound(&mut acks, out, at)
                    + state.tick_inbound(&mut acks, out, at);
                for batch in acks.chunks(ACK_ENTRIES) {
                    out.control(message::ack(batch));
                }
                let mut silent = None;
                if state.take_stalled()
                    && let Some(session) = state.session()
                {
                    // What carries it may be to blame.
                    session.stalled();
                }
                if waiting > 0 {
                    // Whoever only receives sends nothing that asks for it.
                    if at.now.saturating_sub(state.heard) >= DOUBTED_AFTER
                        && let Some(session) = state.session()
                    {
                        session.waits();
                    }
                    if at.now.saturating_sub(state.heard) >= SESSION_LOST_AFTER {
                        silent = state.session().cloned();
                    } else if out.frames.is_empty()
                        && at.now.saturating_sub(state.sent) >= NOOP_AFTER
                    {
                        at.shared.counters.noops.fetch_add(1, Relaxed);
                        out.control(message::noop());
                    }
                }
                let asked = state.asked.expire(at.now);
                let served = state.served.expire(at.now);
                state.queries.retain(|_, asker| !asker.is_closed());
                let live = state.outbound.len() + state.inbound.len();
                let next = Next {
                    soon: live > 0 || !state.late_acks.is_empty(),
                    live,
                    remembered: state.asked.len() + state.served.len(),
                    expiry: match (asked, served) {
                        (Some(a), Some(b)) => Some(a.min(b)),
                        (a, b) => a.or(b),
                    },
                    unreachable: state.sessions.is_empty(),
                };
                (silent, next)
            })
            .0;
        if let Some(session) = silent {
            session.fail("no frame for 30 s while requests were open");
            self.remove_session(&session);
        }
        next
    }
}

/// What one tick of a [`Remote`] left behind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Next {
    /// Streams are open.
    pub(super) soon: bool,
    pub(super) live: usize,
    pub(super) remembered: usize,
    pub(super) expiry: Option<Time>,
    pub(super) unreachable: bool,
}
