//! How many bytes the links of this node carry, and how many of them for others.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters over all links since the start. Bytes are those of records as sealed, without what
/// WebSocket, TLS and TCP add.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
    relayed: AtomicU64,
    relayed_frames: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// Bytes written to links.
    pub sent: u64,
    /// Bytes read from links.
    pub received: u64,
    /// Bytes of frames of others that were passed on; `received` has them too, and `sent` once they
    /// are written.
    pub relayed: u64,
    /// Frames of others that were passed on.
    pub relayed_frames: u64,
}

impl Traffic {
    /// Counts what was written.
    pub fn sent(&self, bytes: usize) {
        // Counters order nothing.
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts what was read.
    pub fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a frame of others that was passed on.
    pub fn relayed(&self, bytes: usize) {
        self.relayed.fetch_add(bytes as u64, Ordering::Relaxed);
        self.relayed_frames.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters now.
    #[must_use]
    pub fn carried(&self) -> Carried {
        Carried {
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
            relayed: self.relayed.load(Ordering::Relaxed),
            relayed_frames: self.relayed_frames.load(Ordering::Relaxed),
        }
    }
}
