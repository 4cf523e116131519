//! How much may be on its way to a node that is reached through others (protocol 5.4). Pure.
//!
//! Credit says what the other side can take; what the relays between can carry nobody says. Bytes sent
//! and not acked are held under one window for all streams to the node: it doubles until something is
//! lost, then grows slowly, and halves with each loss. A direct neighbour's link queue waits for its
//! socket instead, so nothing is lost there and no window is needed.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::sender::Time;
use crate::{
    mesh::session::Class,
    wire::limits::{
        CONGESTION_STEP, CONGESTION_WINDOW, CONGESTION_WINDOW_MIN, PEER_BUDGET_BYTES, RTO_MIN,
    },
};

#[derive(Debug)]
struct Window {
    bytes: u64,
    /// Nothing was lost yet.
    opening: bool,
    halved: Option<Time>,
}

/// What is on its way to one node. Shared by all its streams.
#[derive(Debug)]
pub(super) struct Flight {
    /// Whether the window binds: the node is no direct neighbour.
    bound: AtomicBool,
    flying: AtomicU64,
    // Std mutex: held for a few instructions.
    window: Mutex<Window>,
}

impl Default for Flight {
    fn default() -> Self {
        Self {
            bound: AtomicBool::new(false),
            flying: AtomicU64::new(0),
            window: Mutex::new(Window {
                bytes: CONGESTION_WINDOW,
                opening: true,
                halved: None,
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

    /// Whether `bytes` more may leave. One item always may; a token stream has a little more than a
    /// bulk one, so that it need not wait behind that.
    fn room(&self, bytes: u64, class: Class) -> bool {
        if !self.bound.load(Relaxed) {
            return true;
        }
        let flying = self.flying.load(Relaxed);
        let window = self.window().bytes;
        let window = match class {
            Class::Control | Class::Interactive => window + window / 4,
            Class::Bulk => window,
        };
        flying == 0 || flying + bytes <= window
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
    pub(super) fn lost(&self, now: Time, rtt: Option<Duration>) {
        let pause = rtt.unwrap_or(RTO_MIN);
        let mut window = self.window();
        if window.halved.is_some_and(|at| now < at + pause) {
            return;
        }
        window.halved = Some(now);
        window.opening = false;
        window.bytes = (window.bytes / 2).max(CONGESTION_WINDOW_MIN);
    }

    fn acked(&self, bytes: u64) {
        // What is not used need not grow.
        let used = self.flying.load(Relaxed) + bytes;
        let mut window = self.window();
        if used * 2 < window.bytes {
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
    bytes: u64,
}

impl Flying {
    pub(super) fn new(flight: Arc<Flight>) -> Self {
        Self { flight, bytes: 0 }
    }

    pub(super) fn flight(&self) -> &Flight {
        &self.flight
    }

    /// Whether `bytes` more may leave.
    pub(super) fn room(&self, bytes: u64, class: Class) -> bool {
        self.flight.room(bytes, class)
    }

    /// `bytes` have left.
    pub(super) fn left(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.flight.flying.fetch_add(bytes, Relaxed);
    }

    /// `bytes` are not on their way any more.
    pub(super) fn back(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.flight.flying.fetch_sub(bytes, Relaxed);
    }

    /// `bytes` have arrived.
    pub(super) fn acked(&mut self, bytes: u64) {
        self.back(bytes);
        self.flight.acked(bytes);
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        self.back(self.bytes);
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
        flying.left(100 * 1024 * KIB);
        assert!(flying.room(1, Class::Bulk));
    }

    #[test]
    fn the_window_opens_until_something_is_lost() {
        let flight = bound();
        let mut flying = Flying::new(flight.clone());
        assert!(flying.room(1024 * KIB, Class::Bulk), "one item always");
        flying.left(256 * KIB);
        assert!(!flying.room(1, Class::Bulk));
        assert!(flying.room(32 * KIB, Class::Interactive));
        flying.acked(256 * KIB);
        flying.left(480 * KIB);
        assert!(flying.room(32 * KIB, Class::Bulk));
        assert!(!flying.room(33 * KIB, Class::Bulk));
        flight.lost(Duration::from_secs(1), Some(RTT));
        flight.lost(Duration::from_secs(1), Some(RTT));
        assert_eq!(flight.window().bytes, 256 * KIB, "once in a round trip");
        // A whole window acked is one step.
        flying.acked(256 * KIB);
        assert_eq!(flight.window().bytes, 288 * KIB);
    }

    #[test]
    fn the_window_never_closes_and_an_idle_one_does_not_grow() {
        let flight = bound();
        for second in 0..20 {
            flight.lost(Duration::from_secs(second), Some(RTT));
        }
        assert_eq!(flight.window().bytes, CONGESTION_WINDOW_MIN);
        let mut flying = Flying::new(flight.clone());
        flying.left(KIB);
        flying.acked(KIB);
        assert_eq!(flight.window().bytes, CONGESTION_WINDOW_MIN);
    }

    #[test]
    fn a_dropped_stream_gives_back_what_it_had() {
        let flight = bound();
        let mut flying = Flying::new(flight.clone());
        flying.left(200 * KIB);
        drop(flying);
        assert_eq!(flight.flying.load(Relaxed), 0);
    }
}
