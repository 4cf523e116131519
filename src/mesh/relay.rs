//! Frames of others, passed on (protocol 5.6). A relay reads the header, takes one from the hops a
//! frame has left and seals it for the next link where it lies; it never looks at the body.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{bucket::Bucket, drops::Reason, link::Arrived};
use crate::{
    ids::LinkId,
    wire::{
        frame::RoutedHeader,
        limits::{
            RELAY_MEMORY, RELAY_MEMORY_TIME, RELAYED_HELLOS_BURST, RELAYED_HELLOS_PER_SECOND,
        },
        record::Kind,
    },
};

/// Bytes of a frame's end that tell it from another with the same name: a relay that guesses names
/// must not have a victim's frames dropped elsewhere.
const TAIL_BYTES: usize = 16;

/// Frames seen of late, in two generations: the older one is dropped as a whole.
#[derive(Debug)]
struct Memory {
    young: HashSet<u64>,
    old: HashSet<u64>,
    since: Instant,
}

impl Memory {
    fn new(now: Instant) -> Self {
        Self {
            young: HashSet::new(),
            old: HashSet::new(),
            since: now,
        }
    }

    /// Whether this frame was not here before; notes it.
    fn first(&mut self, frame: u64, now: Instant) -> bool {
        let half: Duration = RELAY_MEMORY_TIME / 2;
        if self.young.len() >= RELAY_MEMORY / 2 || now.saturating_duration_since(self.since) >= half
        {
            self.old = std::mem::take(&mut self.young);
            self.since = now;
        }
        !self.old.contains(&frame) && self.young.insert(frame)
    }
}

/// What is remembered of one link that brings frames of others.
#[derive(Debug)]
struct Ingress {
    memory: Memory,
    hellos: Bucket,
}

/// What a relay remembers. Bounded for each link, and forgotten with it.
#[derive(Debug, Default)]
pub(super) struct Relay {
    // Keyed by chance, so that nobody can make two frames look alike.
    hasher: RandomState,
    // Std mutex: held for a look-up, never across an await.
    links: Mutex<HashMap<LinkId, Ingress>>,
}

impl Relay {
    /// Whether a frame that came over `link` may be passed on.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn admit(
        &self,
        link: LinkId,
        header: &RoutedHeader<'_>,
        frame: &Arrived,
        now: Instant,
    ) -> Result<(), Reason> {
        let body = if frame.record.rest.is_empty() {
            frame.body()
        } else {
            &frame.record.rest
        };
        let tail = &body[body.len().saturating_sub(TAIL_BYTES)..];
        let name = self.hasher.hash_one((&header.f, header.i, tail));
        // Entries are put in and taken out whole.
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let ingress = links.entry(link).or_insert_with(|| Ingress {
            memory: Memory::new(now),
            hellos: Bucket::new(RELAYED_HELLOS_PER_SECOND, RELAYED_HELLOS_BURST, now),
        });
        let hello = frame.fixed.kind == Kind::RoutedHandshake;
        if hello && !ingress.hellos.take_strictly(now) {
            return Err(Reason::HelloLimited);
        }
        if ingress.memory.first(name, now) {
            Ok(())
        } else {
            Err(Reason::Repeated)
        }
    }

    /// A link is gone.
    pub(super) fn forget(&self, link: LinkId) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.remove(&link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_remembered_within_bounds() {
        let start = Instant::now();
        let mut memory = Memory::new(start);
        assert!(memory.first(1, start) && !memory.first(1, start));
        for frame in 2..200_000 {
            memory.first(frame, start);
        }
        assert!(memory.young.len() + memory.old.len() <= RELAY_MEMORY);
        assert!(!memory.first(199_999, start), "the latest are known");
        let later = start + RELAY_MEMORY_TIME / 2;
        assert!(
            !memory.first(199_999, later),
            "known for half the time at least"
        );
        let much_later = later + RELAY_MEMORY_TIME / 2;
        memory.first(0, much_later);
        assert!(memory.first(199_999, much_later), "and not for ever");
    }
}
