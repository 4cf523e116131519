//! How long to wait before the next dial (protocol 3.5).

use std::time::Duration;

use crate::{
    ids::random_bytes,
    wire::limits::{BACKOFF_MAX, BACKOFF_MIN, BACKOFF_RESET, RATE_LIMITED_RETRY},
};

/// What the end of an attempt says about the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::mesh) enum Outlook {
    /// Nothing: the longer it fails, the longer it may last.
    Open,
    /// One side refused the other: trying again soon is of no use, and would count against us there.
    Refused,
    /// It would have worked at another moment: somebody takes only so many in a minute.
    Crowded,
}

/// Below this a delay is of no use to anybody.
const FLOOR: Duration = Duration::from_millis(100);

/// Grows with each failure; full jitter, so that nodes which lost the same relay do not come back
/// all at once.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A link that was up for `age` is gone or in doubt.
    pub(super) fn worked(&mut self, age: Duration) {
        if age >= BACKOFF_RESET {
            self.failures = 0;
        }
    }

    /// The next delay.
    pub(super) fn next(&mut self, outlook: Outlook) -> Duration {
        let random = f64::from(u32::from_be_bytes(random_bytes())) / f64::from(u32::MAX);
        self.next_with(outlook, random)
    }

    fn next_with(&mut self, outlook: Outlook, random: f64) -> Duration {
        match outlook {
            Outlook::Open => {}
            Outlook::Refused => {
                // At the limit, so that the next failure of another kind stays there.
                self.failures = u32::BITS - 1;
                return BACKOFF_MAX.mul_f64(0.9 + 0.1 * random);
            }
            // The other side is there, so what failed before counts as little as what worked.
            Outlook::Crowded => return RATE_LIMITED_RETRY.mul_f64(1.0 + 0.5 * random),
        }
        let cap = BACKOFF_MIN
            .saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX))
            .min(BACKOFF_MAX);
        self.failures = (self.failures + 1).min(u32::BITS - 1);
        cap.mul_f64(random).max(FLOOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_a_minute_with_full_jitter() {
        let mut backoff = Backoff::default();
        let caps: Vec<u64> = (0..9)
            .map(|_| backoff.next_with(Outlook::Open, 1.0).as_secs())
            .collect();
        assert_eq!(caps, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(backoff.next_with(Outlook::Open, 0.0), FLOOR);
        assert_eq!(
            backoff.next_with(Outlook::Open, 0.5),
            Duration::from_secs(30)
        );
    }

    #[test]
    fn link_that_worked_is_dialed_again_at_once() {
        let mut backoff = Backoff::default();
        let mut next = || backoff.next_with(Outlook::Open, 1.0).as_secs();
        assert_eq!([next(), next(), next()], [1, 2, 4]);
        backoff.worked(Duration::from_secs(1));
        let next = backoff.next_with(Outlook::Open, 1.0).as_secs();
        assert_eq!(next, 8, "it never worked");
        backoff.worked(BACKOFF_RESET);
        let mut next = || backoff.next_with(Outlook::Open, 1.0).as_secs();
        assert_eq!([next(), next()], [1, 2], "dials that fail wait again");
    }

    #[test]
    fn refusal_goes_straight_to_a_minute() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next_with(Outlook::Refused, 1.0), BACKOFF_MAX);
        assert!(backoff.next_with(Outlook::Refused, 0.0) >= Duration::from_secs(54));
    }

    #[test]
    fn a_crowded_node_is_tried_again_in_seconds_however_often() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            let delay = backoff.next_with(Outlook::Crowded, 1.0);
            assert_eq!(delay, RATE_LIMITED_RETRY.mul_f64(1.5));
        }
        let delay = backoff.next_with(Outlook::Crowded, 0.0);
        assert_eq!(delay, RATE_LIMITED_RETRY, "never at once");
        assert_eq!(backoff.next_with(Outlook::Open, 1.0), BACKOFF_MIN);
    }
}
