//! How long items take to their acks (protocol 5.4). Pure.
//!
//! The links measure the way with pings, which pass all queues. Items wait in them: over a slow way
//! the time from an item to its ack is many times what pings say, and only that time tells when an
//! ack is overdue.

use std::time::Duration;

use crate::wire::limits::{ACK_DELAY, RTO_MAX};

/// Smoothed time from an item to its ack, and how much it varies (RFC 6298).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trip {
    smooth: Duration,
    spread: Duration,
    /// Nothing better is known than how long one took of which more than one copy was sent.
    guessed: bool,
}

impl Trip {
    /// After the first measurement.
    pub(super) fn first(sample: Duration) -> Self {
        Self {
            smooth: sample,
            spread: sample / 2,
            guessed: false,
        }
    }

    /// After an ack of an item of which more than one copy was sent, so long after the first and the
    /// last. Nobody knows which one was acked. The first, if the way is slow; but after a silence
    /// that swallowed it, it is the last, and that one's ack comes many times sooner.
    pub(super) fn guess(first: Duration, last: Duration) -> Self {
        Self {
            guessed: true,
            ..Self::first(first.min(last * 4).min(RTO_MAX))
        }
    }

    /// One more item that was sent once was acked after `sample`.
    pub(super) fn add(&mut self, sample: Duration) {
        if self.guessed {
            *self = Self::first(sample);
            return;
        }
        self.spread = (self.spread * 3 + self.smooth.abs_diff(sample)) / 4;
        self.smooth = (self.smooth * 7 + sample) / 8;
    }

    /// The smoothed time.
    pub(super) fn smooth(&self) -> Duration {
        self.smooth
    }

    /// How long the ack of one item comes after that of the item before it at most: no longer than
    /// all take that are on their way together.
    pub(super) fn behind(&self) -> Duration {
        if self.guessed {
            self.smooth * 2
        } else {
            self.smooth + ACK_DELAY
        }
    }

    /// When an ack should have been here, if nothing was lost.
    pub(super) fn overdue(&self) -> Duration {
        (self.smooth + (self.spread * 4).max(ACK_DELAY)).min(RTO_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn an_even_way_is_waited_for_little_longer_than_it_takes() {
        let mut trip = Trip::first(millis(2000));
        assert_eq!(trip.overdue(), millis(6000), "one measurement says little");
        for _ in 0..50 {
            trip.add(millis(2000));
        }
        assert_eq!(trip.smooth(), millis(2000));
        assert!(trip.overdue() <= millis(2101), "{trip:?}");
    }

    #[test]
    fn a_guess_takes_neither_a_slow_way_for_a_silent_one_nor_the_reverse() {
        let slow = Trip::guess(millis(2100), millis(1100));
        assert_eq!(slow.smooth(), millis(2100));
        let mut silent = Trip::guess(millis(23_100), millis(100));
        assert_eq!(silent.smooth(), millis(400));
        silent.add(millis(50));
        assert_eq!(silent, Trip::first(millis(50)), "it gives way");
    }

    #[test]
    fn one_interruption_is_soon_forgotten() {
        let mut trip = Trip::first(millis(50));
        trip.add(millis(20_000));
        assert_eq!(trip.overdue(), RTO_MAX);
        for _ in 0..30 {
            trip.add(millis(50));
        }
        assert!(trip.overdue() < millis(1000), "{trip:?}");
    }
}
