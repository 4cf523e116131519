//! How long to wait before the next dial (protocol 3.5).

use std::time::Duration;

use crate::{
    ids::random_bytes,
    wire::limits::{BACKOFF_MAX, BACKOFF_MIN, BACKOFF_RESET},
};

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

    /// The next delay. `refused`: trying again soon is of no use, and would count against us there.
    pub(super) fn next(&mut self, refused: bool) -> Duration {
        let random = f64::from(u32::from_be_bytes(random_bytes())) / f64::from(u32::MAX);
        self.next_with(refused, random)
    }

    fn next_with(&mut self, refused: bool, random: f64) -> Duration {
        if refused {
            // At the limit, so that the next failure of another kind stays there.
            self.failures = u32::BITS - 1;
            return BACKOFF_MAX.mul_f64(0.9 + 0.1 * random);
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
            .map(|_| backoff.next_with(false, 1.0).as_secs())
            .collect();
        assert_eq!(caps, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(backoff.next_with(false, 0.0), FLOOR);
        assert_eq!(backoff.next_with(false, 0.5), Duration::from_secs(30));
    }

    #[test]
    fn link_that_worked_is_dialed_again_at_once() {
        let mut backoff = Backoff::default();
        let mut next = || backoff.next_with(false, 1.0).as_secs();
        assert_eq!([next(), next(), next()], [1, 2, 4]);
        backoff.worked(Duration::from_secs(1));
        let next = backoff.next_with(false, 1.0).as_secs();
        assert_eq!(next, 8, "it never worked");
        backoff.worked(BACKOFF_RESET);
        let mut next = || backoff.next_with(false, 1.0).as_secs();
        assert_eq!([next(), next()], [1, 2], "dials that fail wait again");
    }

    #[test]
    fn refusal_goes_straight_to_a_minute() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next_with(true, 1.0), BACKOFF_MAX);
        assert!(backoff.next_with(true, 0.0) >= Duration::from_secs(54));
    }
}
