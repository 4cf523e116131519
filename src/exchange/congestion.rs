//! How much may be on its way to a node that is reached through others (protocol 5.4). Pure.
//!
//! Credit says what the other side can take; what the relays between can carry nobody says. Bytes sent
//! and not acked are held under one window for all streams to the node: it doubles until something is
//! lost or waits in a queue, then grows slowly. It halves with each loss, and shrinks while items wait
//! too long on the way: a queue of seconds carries no more than a short one, but what is sent behind it
//! comes seconds late, and what is taken for lost in it is sent twice. A direct neighbour's link queue
//! waits for its socket instead, so nothing is lost there and no window is needed.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{sender::Time, trip::Trip};
use crate::{
    mesh::session::Class,
    wire::limits::{
        ACK_DELAY, CHUNK_BYTES, CONGESTION_QUEUE, CONGESTION_STEP, CONGESTION_WINDOW,
        CONGESTION_WINDOW_MIN, PEER_BUDGET_BYTES, RTO_MIN, SMALL_CHUNK_BYTES,
    },
};

/// What pings say of the way is believed up to here: over a slow link they wait themselves.
const WAY_MAX: Duration = Duration::from_secs(1);

/// Where the items of a class wait: classes have queues of their own on the way.
fn lane(class: Class) -> usize {
    match class {
        Class::Control | Class::Interactive => 0,
        Class::Bulk => 1,
    }
}

/// What was learnt of the queues of one class.
#[derive(Debug, Default)]
struct Lane {
    trip: Option<Trip>,
    /// The last item waited so long that more on the way would only wait longer.
    full: bool,
}

#[derive(Debug)]
struct Window {
    bytes: u64,
    /// Nothing was lost and nothing had to wait yet.
    opening: bool,
    /// When it last became smaller.
    narrowed: Option<Time>,
    lanes: [Lane; 2],
}

impl Window {
    fn lane(&mut self, class: Class) -> &mut Lane {
        &mut self.lanes[lane(class)]
    }

    /// Makes it so much smaller, unless what was done about it before is not yet felt.
    fn narrow(&mut self, now: Time, felt: Duration, to: u64) {
        if self.narrowed.is_some_and(|at| now < at + felt) {
            return;
        }
        self.narrowed = Some(now);
        self.opening = false;
        self.bytes = to.max(self.bytes / 2).max(CONGESTION_WINDOW_MIN);
    }
}

/// What is on its way to one node. Shared by all its streams.
#[derive(Debug)]
pub(super) struct Flight {
    /// Whether the window binds: the node is no direct neighbour.
    bound: AtomicBool,
    flying: [AtomicU64; 2],
    // Std mutex: held for a few instructions.
    window: Mutex<Window>,
}

impl Default for Flight {
    fn default() -> Self {
        Self {
            bound: AtomicBool::new(false),
            flying: Default::default(),
            window: Mutex::new(Window {
                bytes: CONGESTION_WINDOW,
                opening: true,
                narrowed: None,
                lanes: Default::default(),
            }),
        }
    }
}

impl Flight {
    fn window(&self) -> MutexGuard<'_, Window> {
        // Numbers only; a panic leaves none half made.
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the window binds from now on.
    pub(super) fn bind(&self, bound: bool) {
        self.bound.store(bound, Relaxed);
    }

    /// Whether `bytes` more may leave. One item always may. A token stream need not wait for what is
    /// on its way of a large body: the two do not share a queue.
    fn room(&self, bytes: u64, class: Class) -> bool {
        if !self.bound.load(Relaxed) {
            return true;
        }
        let flying = self.flying[lane(class)].load(Relaxed);
        flying == 0 || flying + bytes <= self.window().bytes
    }

    /// Most bytes that are sent again at once.
    pub(super) fn most_again(&self) -> u64 {
        if self.bound.load(Relaxed) {
            self.window().bytes
        } else {
            u64::MAX
        }
    }

    /// Something is missing on the other side: it was lost on the way, as far as we can tell.
    pub(super) fn lost(&self, now: Time, class: Class, rtt: Option<Duration>) {
        let mut window = self.window();
        let trip = window.lane(class).trip.map(|trip| trip.smooth());
        let felt = trip.max(rtt).unwrap_or(RTO_MIN);
        window.narrow(now, felt, 0);
    }

    /// Most bytes of data that one item of this class should carry. What is sent next waits for a
    /// whole item on every link, so items are small until the way is known to be quick.
    pub(super) fn piece(&self, class: Class) -> usize {
        match self.window().lane(class).trip {
            Some(trip) if trip.smooth() < CONGESTION_QUEUE => CHUNK_BYTES,
            _ => SMALL_CHUNK_BYTES,
        }
    }

    /// How long items of this class take to their acks, once that is known.
    pub(super) fn trip(&self, class: Class) -> Option<Trip> {
        self.window().lane(class).trip
    }

    /// An item that was sent several times was acked, so long after the first and the last.
    pub(super) fn guessed(&self, class: Class, first: Duration, last: Duration) {
        let mut window = self.window();
        let trip = &mut window.lane(class).trip;
        trip.get_or_insert_with(|| Trip::guess(first, last));
    }

    /// An item that was sent once was acked after `sample`; pings take `rtt`.
    pub(super) fn measured(
        &self,
        class: Class,
        sample: Duration,
        rtt: Option<Duration>,
        now: Time,
    ) {
        let mut window = self.window();
        let lane = window.lane(class);
        match &mut lane.trip {
            Some(trip) => trip.add(sample),
            None => lane.trip = Some(Trip::first(sample)),
        }
        let way = rtt.unwrap_or_default().min(WAY_MAX) + ACK_DELAY;
        let waited = sample.saturating_sub(way);
        lane.full = waited >= CONGESTION_QUEUE / 2;
        if !self.bound.load(Relaxed) || !lane.full {
            return;
        }
        window.opening = false;
        if waited > CONGESTION_QUEUE {
            // As much as would have waited just long enough.
            let share = CONGESTION_QUEUE.as_secs_f64() / waited.as_secs_f64();
            let to = window.bytes as f64 * share;
            window.narrow(now, sample, to as u64);
        }
    }

    fn acked(&self, bytes: u64, class: Class) {
        // What is not used need not grow.
        let used = self.flying[lane(class)].load(Relaxed) + bytes;
        let mut window = self.window();
        if used * 2 < window.bytes || window.lane(class).full {
            return;
        }
        let more = if window.opening {
            bytes
        } else {
            CONGESTION_STEP * bytes / window.bytes.max(1)
        };
        window.bytes = (window.bytes + more).min(PEER_BUDGET_BYTES as u64);
    }
}

/// What one half-stream has on its way; given back on drop.
#[derive(Debug)]
pub(super) struct Flying {
    flight: Arc<Flight>,
    bytes: [u64; 2],
}

impl Flying {
    pub(super) fn new(flight: Arc<Flight>) -> Self {
        Self {
            flight,
            bytes: [0; 2],
        }
    }

    pub(super) fn flight(&self) -> &Flight {
        &self.flight
    }

    /// Whether `bytes` more may leave.
    pub(super) fn room(&self, bytes: u64, class: Class) -> bool {
        self.flight.room(bytes, class)
    }

    /// `bytes` have left.
    pub(super) fn left(&mut self, bytes: u64, class: Class) {
        self.bytes[lane(class)] += bytes;
        self.flight.flying[lane(class)].fetch_add(bytes, Relaxed);
    }

    /// `bytes` are not on their way any more.
    pub(super) fn back(&mut self, bytes: u64, class: Class) {
        let mine = &mut self.bytes[lane(class)];
        let bytes = bytes.min(*mine);
        *mine -= bytes;
        self.flight.flying[lane(class)].fetch_sub(bytes, Relaxed);
    }

    /// Nothing is on its way any more.
    pub(super) fn clear(&mut self) {
        for class in [Class::Interactive, Class::Bulk] {
            self.back(u64::MAX, class);
        }
    }

    /// `bytes` have arrived.
    pub(super) fn acked(&mut self, bytes: u64, class: Class) {
        self.back(bytes, class);
        self.flight.acked(bytes, class);
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;
    const RTT: Duration = Duration::from_millis(50);

    fn bound() -> Arc<Flight> {
        let flight = Arc::new(Flight::default());
        flight.bind(true);
        flight
    }

    #[test]
    fn a_neighbour_is_not_held_back() {
        let mut flying = Flying::new(Arc::default());
        flying.left(100 * 1024 * KIB, Class::Bulk);
        assert!(flying.room(1, Class::Bulk));
    }

    #[test]
    fn the_window_opens_until_something_is_lost() {
        let flight = bound();
        let mut flying = Flying::new(flight.clone());
        assert!(flying.room(1024 * KIB, Class::Bulk), "one item always");
        flying.left(256 * KIB, Class::Bulk);
        assert!(!flying.room(1, Class::Bulk));
        assert!(flying.room(256 * KIB, Class::Interactive), "another queue");
        flying.acked(256 * KIB, Class::Bulk);
        flying.left(480 * KIB, Class::Bulk);
        assert!(flying.room(32 * KIB, Class::Bulk));
        assert!(!flying.room(33 * KIB, Class::Bulk));
        flight.lost(Duration::from_secs(1), Class::Bulk, Some(RTT));
        flight.lost(Duration::from_secs(1), Class::Bulk, Some(RTT));
        assert_eq!(flight.window().bytes, 256 * KIB, "once in a round trip");
        // A whole window acked is one step.
        flying.acked(256 * KIB, Class::Bulk);
        assert_eq!(flight.window().bytes, 288 * KIB);
    }

    #[test]
    fn the_window_never_closes_and_an_idle_one_does_not_grow() {
        let flight = bound();
        for second in 0..20 {
            flight.lost(Duration::from_secs(second), Class::Bulk, Some(RTT));
        }
        assert_eq!(flight.window().bytes, CONGESTION_WINDOW_MIN);
        let mut flying = Flying::new(flight.clone());
        flying.left(KIB, Class::Bulk);
        flying.acked(KIB, Class::Bulk);
        assert_eq!(flight.window().bytes, CONGESTION_WINDOW_MIN);
    }

    #[test]
    fn a_dropped_stream_gives_back_what_it_had() {
        let flight = bound();
        let mut flying = Flying::new(flight.clone());
        flying.left(200 * KIB, Class::Bulk);
        drop(flying);
        assert_eq!(flight.flying[1].load(Relaxed), 0);
    }

    #[test]
    fn what_waits_on_the_way_narrows_the_window() {
        let flight = bound();
        let mut flying = Flying::new(flight.clone());
        let mut now = Duration::from_secs(1);
        let mut ack = |waited: u64| {
            let sample = RTT + ACK_DELAY + Duration::from_millis(waited);
            now += sample;
            flying.left(256 * KIB, Class::Bulk);
            flight.measured(Class::Bulk, sample, Some(RTT), now);
            flying.acked(256 * KIB, Class::Bulk);
            flight.window().bytes / KIB
        };
        assert_eq!(ack(50), 512, "it opens");
        assert_eq!(ack(300), 512, "enough");
        assert_eq!(ack(50), 528, "slowly from now on");
        assert_eq!(ack(600), 352, "as much less as is too much");
        assert_eq!(ack(5000), 176, "by half at most");
    }

    #[test]
    fn a_direct_neighbours_queue_narrows_nothing() {
        let flight = Flight::default();
        flight.measured(Class::Bulk, 5 * RTO_MIN, Some(RTT), RTO_MIN);
        assert_eq!(flight.window().bytes, CONGESTION_WINDOW);
        let trip = flight.trip(Class::Bulk).unwrap();
        assert_eq!(trip.smooth(), 5 * RTO_MIN);
        assert!(flight.trip(Class::Interactive).is_none());
    }
}
