//! A token bucket that says when a neighbour has been too fast for too long (protocol 5.5). Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::wire::limits::{LINK_FRAMES_BURST, LINK_FRAMES_PER_SECOND};

/// How long a neighbour may be over its rate.
const PATIENCE: Duration = Duration::from_secs(1);

/// Counts events of one kind from one neighbour.
#[derive(Debug)]
pub struct Bucket {
    per_second: f64,
    burst: f64,
    // Negative while the neighbour is over its rate.
    tokens: f64,
    at: Instant,
    over_since: Option<Instant>,
}

impl Bucket {
    /// The bucket for link and gossip frames, and the like one for pings and fragments.
    #[must_use]
    pub fn for_link(now: Instant) -> Self {
        Self::new(LINK_FRAMES_PER_SECOND, LINK_FRAMES_BURST, now)
    }

    /// A full bucket.
    #[must_use]
    pub fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self {
            per_second: f64::from(per_second),
            burst: f64::from(burst),
            tokens: f64::from(burst),
            at: now,
            over_since: None,
        }
    }

    /// Whether [`Bucket::take_strictly`] would count an event now.
    #[must_use]
    pub fn has_room(&self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens + passed * self.per_second >= 1.0
    }

    /// Counts one event if it is within the rate and burst; one beyond is not counted.
    pub fn take_strictly(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        let allowed = self.tokens >= 1.0;
        if allowed {
            self.tokens -= 1.0;
        }
        allowed
    }

    /// Counts `events`; false once the neighbour has been over its rate for a second, or is a whole
    /// burst over it.
    pub fn take(&mut self, events: u32, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        if self.tokens >= 0.0 {
            self.over_since = None;
        }
        self.tokens -= f64::from(events);
        if self.tokens >= 0.0 {
            return true;
        }
        let since = *self.over_since.get_or_insert(now);
        now.saturating_duration_since(since) < PATIENCE && self.tokens > -self.burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_and_rate_pass_and_a_second_of_excess_does_not() {
        let start = Instant::now();
        let mut bucket = Bucket::new(200, 4096, start);
        assert!(bucket.take(4096, start));
        for second in 1..60 {
            assert!(
                bucket.take(200, start + Duration::from_secs(second)),
                "at the rate"
            );
        }
        let mut last = true;
        for ms in 0..1100 {
            last = bucket.take(1, start + Duration::from_millis(59_000 + ms));
        }
        assert!(!last, "1,000 a second for more than a second");
    }

    #[test]
    fn a_flood_is_refused_at_once() {
        let start = Instant::now();
        let mut bucket = Bucket::new(200, 4096, start);
        assert!(!(0..8192).all(|_| bucket.take(1, start)));
    }
}
