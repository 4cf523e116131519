//! How much a link's writer gives the socket at once (protocol 5.5). Pure.
//!
//! What the socket has is sent in that order, whatever comes later. On a slow uplink a batch of 64 KiB
//! and as much in the kernel are a second by which a token comes late. So batches, and what the kernel
//! may hold unsent, are what the link carries in [`SPAN`]: they begin small, grow while the socket takes
//! them at once, and shrink while it does not.

use std::time::Duration;

use crate::wire::limits::{WRITE_BATCH_BYTES, WRITE_BATCH_MIN_BYTES};

/// Time that a batch should take.
const SPAN: Duration = Duration::from_millis(50);
/// Full batches in a row that leave sooner before they grow: an idle socket takes a few at once
/// however slow the link is.
const QUICK: u32 = 4;

/// The size of batches on one link.
#[derive(Debug)]
pub(super) struct Pace {
    bytes: usize,
    quick: u32,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            bytes: WRITE_BATCH_MIN_BYTES * 2,
            quick: 0,
        }
    }

    /// Most bytes of a batch, unless its first frame is larger.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A batch has left. Returns whether the size is another one now.
    pub(super) fn left(&mut self, bytes: usize, took: Duration) -> bool {
        let before = self.bytes;
        if took > SPAN {
            self.quick = 0;
            let fits = bytes as f64 * SPAN.as_secs_f64() / took.as_secs_f64();
            self.bytes = (fits as usize).clamp(WRITE_BATCH_MIN_BYTES, before);
        } else if bytes * 2 >= before && took * 2 < SPAN {
            self.quick += 1;
            if self.quick == QUICK {
                self.quick = 0;
                self.bytes = (before * 2).min(WRITE_BATCH_BYTES);
            }
        }
        self.bytes != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: usize = 125_000;

    /// What becomes of batches of such records on a link that takes so many bytes a second.
    fn settled(rate: usize, record: usize) -> usize {
        let mut pace = Pace::new();
        for _ in 0..100 {
            let bytes = record.max(pace.bytes() / record * record);
            let took = Duration::from_secs_f64(bytes as f64 / rate as f64);
            pace.left(bytes, took);
        }
        pace.bytes()
    }

    #[test]
    fn batches_are_as_long_as_the_link_is_fast() {
        assert_eq!(settled(MBIT, 16_500), WRITE_BATCH_MIN_BYTES);
        let between = settled(4 * MBIT, 16_500);
        assert!((16_000..40_000).contains(&between), "{between}");
        assert_eq!(settled(100 * MBIT, 16_500), WRITE_BATCH_BYTES);
        assert_eq!(settled(100 * MBIT, 61_500), WRITE_BATCH_BYTES);
    }

    #[test]
    fn small_records_on_an_idle_link_say_nothing() {
        let mut pace = Pace::new();
        pace.left(MBIT, Duration::from_secs(1));
        for _ in 0..100 {
            assert!(!pace.left(300, Duration::ZERO));
        }
        assert_eq!(pace.bytes(), WRITE_BATCH_MIN_BYTES);
    }
}
