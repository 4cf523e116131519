//! Who may try to connect, and how often (protocol 3.5). Pure: time comes in as an argument.
//!
//! Strangers are told apart by [`Source`]. A source that failed too often is held to a few attempts
//! a minute; one from which a node linked within a day keeps enough for that node to come back,
//! whatever else fails behind the same address. Every table is bounded and forgets the entry that
//! was touched least recently; sources that succeeded live in a table of their own, so that failures
//! cannot push them out.

mod lru;
pub mod pending;
pub mod source;

use std::time::Duration;

use tokio::time::Instant;

use self::lru::Lru;
pub use self::source::{Cidr, Source};
use crate::{
    crypto::identity::PublicKey,
    wire::limits::{
        FAILED_SOURCE_PER_MINUTE, FREE_FAILURES, KNOWN_SOURCE_PER_MINUTE, LIMITER_SOURCES,
        SUCCESSES_PER_KEY_MINUTE, SUCCESSES_PER_SOURCE_MINUTE,
    },
};

/// How long a source counts as known after a success.
const KNOWN_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// How long after its last failure a source is forgiven.
const FORGIVEN_AFTER: Duration = Duration::from_secs(10 * 60);
/// At most one log line in this time about one source.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// So many events a minute, in bursts of as many.
#[derive(Debug, Clone, Copy)]
struct PerMinute {
    limit: f64,
    left: f64,
    at: Instant,
}

impl PerMinute {
    fn new(limit: u32, now: Instant) -> Self {
        let limit = f64::from(limit);
        Self {
            limit,
            left: limit,
            at: now,
        }
    }

    fn set_limit(&mut self, limit: u32) {
        self.limit = f64::from(limit);
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + passed * self.limit / 60.0).min(self.limit);
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

#[derive(Debug)]
struct Failed {
    count: u32,
    last: Instant,
    attempts: PerMinute,
    logged: Option<Instant>,
}

#[derive(Debug)]
struct Known {
    until: Instant,
    successes: PerMinute,
}

/// The limits of one listener.
#[derive(Debug)]
pub struct Limiter {
    failed: Lru<Source, Failed>,
    known: Lru<Source, Known>,
    keys: Lru<PublicKey, PerMinute>,
}

impl Default for Limiter {
    fn default() -> Self {
        // Together LIMITER_SOURCES.
        Self {
            failed: Lru::new(LIMITER_SOURCES / 2),
            known: Lru::new(LIMITER_SOURCES / 4),
            keys: Lru::new(LIMITER_SOURCES / 4),
        }
    }
}

impl Limiter {
    /// Whether a source may try now. A source that has not failed is never limited here: pending
    /// handshakes have their own limits.
    pub fn attempt(&mut self, source: Source, now: Instant) -> bool {
        let known = self
            .known
            .get(&source)
            .is_some_and(|known| now < known.until);
        let Some(failed) = self.failed.get(&source) else {
            return true;
        };
        if now.saturating_duration_since(failed.last) >= FORGIVEN_AFTER {
            self.failed.remove(&source);
            return true;
        }
        if failed.count < FREE_FAILURES {
            return true;
        }
        failed.attempts.set_limit(if known {
            KNOWN_SOURCE_PER_MINUTE
        } else {
            FAILED_SOURCE_PER_MINUTE
        });
        failed.attempts.take(now)
    }

    /// A handshake from this source failed. True when it may be logged.
    pub fn failure(&mut self, source: Source, now: Instant) -> bool {
        let failed = self.failed.entry(source, || Failed {
            count: 0,
            last: now,
            attempts: PerMinute::new(FAILED_SOURCE_PER_MINUTE, now),
            logged: None,
        });
        failed.count = failed.count.saturating_add(1);
        failed.last = now;
        let quiet = failed
            .logged
            .is_none_or(|at| now.saturating_duration_since(at) >= LOG_EVERY);
        if quiet {
            failed.logged = Some(now);
        }
        quiet
    }

    /// A handshake from this source proved the secret, and its new name finds no room at present: it
    /// will come back soon. True when it may be logged.
    pub fn crowded(&mut self, source: Source, now: Instant) -> bool {
        self.know(source, now);
        self.failure(source, now)
    }

    fn know(&mut self, source: Source, now: Instant) -> &mut Known {
        let known = self.known.entry(source, || Known {
            until: now,
            successes: PerMinute::new(SUCCESSES_PER_SOURCE_MINUTE, now),
        });
        known.until = now + KNOWN_FOR;
        known
    }

    /// A handshake from this source succeeded. False when this key or this source links too often.
    pub fn success(&mut self, source: Source, key: &PublicKey, now: Instant) -> bool {
        let by_source = self.know(source, now).successes.take(now);
        let by_key = self
            .keys
            .entry(*key, || PerMinute::new(SUCCESSES_PER_KEY_MINUTE, now))
            .take(now);
        by_source && by_key
    }

    /// Entries in all tables.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.failed.len() + self.known.len() + self.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new(text.parse().unwrap())
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    /// T49.
    /// A new node that comes back every few seconds until there is room for its name must not be held
    /// to what a stranger may.
    #[test]
    fn a_source_that_proves_the_secret_keeps_sixty_a_minute() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let new = source("10.0.0.1");
        let tries = (0..20).map(|i| after(now, 3 * i));
        let passed = tries.filter(|at| {
            let may = limiter.attempt(new, *at);
            limiter.crowded(new, *at);
            may
        });
        assert_eq!(passed.count(), 20);
        let flood = (0..1000).filter(|_| limiter.attempt(new, after(now, 60)));
        assert!(flood.count() <= 60);
    }

    #[test]
    fn failing_source_is_held_to_six_a_minute_and_others_are_not() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let bad = source("10.0.0.1");
        let mut passed = 0;
        for _ in 0..50 {
            if limiter.attempt(bad, now) {
                passed += 1;
                limiter.failure(bad, now);
            }
        }
        assert_eq!(passed, 5 + 6, "five free, then six a minute");
        assert!(limiter.attempt(source("10.0.0.2"), now));
        let later: Vec<bool> = (0..10)
            .map(|_| limiter.attempt(bad, after(now, 60)))
            .collect();
        assert_eq!(later.iter().filter(|ok| **ok).count(), 6);
    }

    #[test]
    fn known_source_keeps_sixty_a_minute() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let nat = source("10.0.0.1");
        assert!(limiter.success(nat, &PublicKey([1; 32]), now));
        for _ in 0..50 {
            limiter.failure(nat, now);
        }
        let passed = |limiter: &mut Limiter, at: Instant| {
            (0..100).filter(|_| limiter.attempt(nat, at)).count()
        };
        let within_a_minute: usize = (1..=60).map(|s| passed(&mut limiter, after(now, s))).sum();
        assert!((60..=66).contains(&within_a_minute), "{within_a_minute}");
        let next_day = after(now, 24 * 3600 + 60);
        limiter.failure(nat, next_day);
        assert!(passed(&mut limiter, next_day) <= 6, "forgotten after a day");
    }

    #[test]
    fn failures_are_forgiven_after_a_quiet_while() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let bad = source("10.0.0.1");
        for _ in 0..20 {
            limiter.failure(bad, now);
        }
        assert!((0..20).all(|_| limiter.attempt(bad, after(now, 600))));
    }

    #[test]
    fn hundred_nodes_behind_one_address_link() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        for key in 0..100 {
            assert!(limiter.success(source("10.0.0.1"), &PublicKey([key; 32]), now));
        }
    }

    #[test]
    fn one_key_cannot_link_for_ever() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let linked = (0..100)
            .filter(|_| limiter.success(source("10.0.0.1"), &PublicKey([1; 32]), now))
            .count();
        assert_eq!(linked, 60);
    }

    #[test]
    fn log_is_one_line_a_second_for_one_source() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let lines = (0..50)
            .filter(|n| limiter.failure(source("10.0.0.1"), now + Duration::from_millis(n * 100)))
            .count();
        assert_eq!(lines, 5);
    }

    /// T50.
    #[test]
    fn million_sources_fill_a_bounded_table_and_push_out_no_known_one() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let nat = source("10.0.0.1");
        limiter.success(nat, &PublicKey([1; 32]), now);
        for n in 0..1_000_000u64 {
            let address = std::net::Ipv6Addr::from(u128::from(n) << 64 | 0x2001 << 112);
            limiter.failure(Source::new(address.into()), now);
        }
        assert!(limiter.entries() <= LIMITER_SOURCES);
        assert!(limiter.known.get(&nat).is_some());
    }
}
