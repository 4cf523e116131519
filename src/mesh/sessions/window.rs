//! Which frame numbers of a session have been seen (protocol 4.3). Pure.

use crate::wire::limits::REPLAY_WINDOW;

const WORDS: usize = (REPLAY_WINDOW / 64) as usize;

/// A sliding window over the frame numbers of one class: a number is taken once, and none that lies
/// a whole window behind the highest.
#[derive(Debug)]
pub(super) struct Window {
    /// One above the highest number taken.
    end: u64,
    // Bit `n % REPLAY_WINDOW` is set when `n` was taken, for the last window of numbers.
    bits: Box<[u64; WORDS]>,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            end: 0,
            bits: Box::new([0; WORDS]),
        }
    }
}

fn place(n: u64) -> (usize, u64) {
    let at = n % REPLAY_WINDOW;
    ((at / 64) as usize, 1 << (at % 64))
}

impl Window {
    /// Takes `n`; false when it was taken before, or is too old to tell. To be called only for
    /// frames whose tag verifies.
    pub(super) fn take(&mut self, n: u64) -> bool {
        if n + REPLAY_WINDOW < self.end {
            return false;
        }
        if n >= self.end {
            // The numbers in between have not been seen yet.
            let fresh = (n - self.end + 1).min(REPLAY_WINDOW);
            if fresh == REPLAY_WINDOW {
                self.bits.fill(0);
            } else {
                for between in self.end..=n {
                    let (word, bit) = place(between);
                    self.bits[word] &= !bit;
                }
            }
            self.end = n + 1;
        }
        let (word, bit) = place(n);
        let taken = self.bits[word] & bit != 0;
        self.bits[word] |= bit;
        !taken
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_taken_once_in_any_order_within_the_window() {
        let mut window = Window::default();
        for n in [5, 3, 4, 0, 1, 2] {
            assert!(window.take(n), "{n}");
            assert!(!window.take(n), "{n} again");
        }
        assert!(window.take(REPLAY_WINDOW + 4));
        assert!(!window.take(4), "taken, and outside by now");
        assert!(window.take(6));
        assert!(window.take(10 * REPLAY_WINDOW));
        assert!(!window.take(9 * REPLAY_WINDOW));
        assert!(window.take(9 * REPLAY_WINDOW + 1));
    }

    proptest! {
        #[test]
        fn behaves_as_a_set_that_forgets_what_is_old(
            numbers in proptest::collection::vec(0u64..3 * REPLAY_WINDOW, 1..400),
        ) {
            let (mut window, mut seen, mut highest) = (Window::default(), HashSet::new(), 0);
            for n in numbers {
                let old = n + REPLAY_WINDOW <= highest;
                highest = highest.max(n);
                prop_assert_eq!(window.take(n), !old && seen.insert(n), "{}", n);
            }
        }
    }
}
