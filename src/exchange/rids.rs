//! What is remembered of requests that have ended (protocol 5.3, 7.1).
//!
//! Those that may run once only keep a [`Slot`] for ten minutes after their end and are never
//! forgotten early. Nor are those that are barred: they never run, and are remembered longer than a
//! copy that somebody holds back counts as fresh. The rest is remembered for a minute, the oldest
//! making room.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::sender::Time;
use crate::{
    ids::RequestId,
    wire::{
        code::Code,
        limits::{RID_MEMORY, RIDS, RIDS_PER_PEER, TOMBSTONE, UNRUN_MEMORY},
    },
};

/// Places for requests that may run once only: one counter a node.
#[derive(Debug, Clone, Default)]
pub(super) struct Slots(Arc<AtomicUsize>);

/// One taken place; given back on drop.
#[derive(Debug)]
pub(super) struct Slot(Arc<AtomicUsize>);

impl Slots {
    pub(super) fn take(&self) -> Option<Slot> {
        let taken = self.0.fetch_add(1, Relaxed) < RIDS;
        let slot = Slot(Arc::clone(&self.0));
        taken.then_some(slot)
    }

    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// How a remembered request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It ran.
    Ended,
    /// It was refused before it began.
    Refused(Code),
    /// Its `cancel` came before it.
    Cancelled,
    /// A `query` found it unknown, and it must stay so.
    Fenced,
}

#[derive(Debug)]
struct Tomb {
    fate: Fate,
    /// Held, so that the place is free again with the tomb.
    _slot: Option<Slot>,
}

/// The ended requests of one peer in one direction.
#[derive(Debug, Default)]
pub(super) struct Tombs {
    map: HashMap<RequestId, Tomb>,
    short: VecDeque<(Time, RequestId)>,
    /// Those that must never run.
    barred: VecDeque<(Time, RequestId)>,
    long: VecDeque<(Time, RequestId)>,
}

impl Tombs {
    /// Remembers `rid`: ten minutes with a `slot`, without one for a minute at most.
    pub(super) fn bury(&mut self, rid: RequestId, fate: Fate, slot: Option<Slot>, now: Time) {
        let long = slot.is_some();
        if self.map.insert(rid, Tomb { fate, _slot: slot }).is_some() {
            return;
        }
        if long {
            self.long.push_back((now + RID_MEMORY, rid));
            return;
        }
        if self.short.len() >= RIDS_PER_PEER
            && let Some((_, oldest)) = self.short.pop_front()
        {
            self.map.remove(&oldest);
        }
        self.short.push_back((now + TOMBSTONE, rid));
    }

    /// Remembers that `rid`, so far unknown, never runs. False when there is no room: then nothing
    /// was noted, and nobody may be told that it never runs (protocol 7.1).
    #[must_use]
    pub(super) fn bar(&mut self, rid: RequestId, fate: Fate, now: Time) -> bool {
        let room = self.barred.len() < RIDS_PER_PEER;
        if room {
            self.map.insert(rid, Tomb { fate, _slot: None });
            self.barred.push_back((now + UNRUN_MEMORY, rid));
        }
        room
    }

    pub(super) fn fate(&self, rid: &RequestId) -> Option<Fate> {
        self.map.get(rid).map(|tomb| tomb.fate)
    }

    /// Requests remembered for ten minutes.
    pub(super) fn long(&self) -> usize {
        self.long.len()
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// Forgets what is old enough; returns when the next one is.
    pub(super) fn expire(&mut self, now: Time) -> Option<Time> {
        for queue in [&mut self.short, &mut self.barred, &mut self.long] {
            while let Some((_, rid)) = queue.pop_front_if(|(until, _)| *until <= now) {
                self.map.remove(&rid);
            }
        }
        let front = |queue: &VecDeque<(Time, RequestId)>| queue.front().map(|(until, _)| *until);
        [&self.short, &self.barred, &self.long]
            .into_iter()
            .filter_map(front)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wire::limits::{HELLO_TIMEOUT, STALE_AFTER};

    /// A copy that a relay holds back is refused as stale once this much has passed: until then the
    /// refusal must be remembered, whatever else ends meanwhile.
    #[test]
    fn a_refusal_outlives_every_fresh_copy() {
        let mut tombs = Tombs::default();
        let refused = RequestId::random();
        assert!(tombs.bar(refused, Fate::Fenced, Time::ZERO));
        for _ in 0..=RIDS_PER_PEER {
            tombs.bury(RequestId::random(), Fate::Ended, None, Time::ZERO);
        }
        for _ in 1..RIDS_PER_PEER {
            assert!(tombs.bar(RequestId::random(), Fate::Cancelled, Time::ZERO));
        }
        tombs.expire(STALE_AFTER + HELLO_TIMEOUT);
        assert_eq!(tombs.fate(&refused), Some(Fate::Fenced));
        let one_more = RequestId::random();
        assert!(!tombs.bar(one_more, Fate::Fenced, Time::ZERO), "no room");
        assert_eq!(tombs.fate(&one_more), None);
        tombs.expire(UNRUN_MEMORY);
        assert_eq!(tombs.fate(&refused), None);
        assert!(tombs.bar(one_more, Fate::Fenced, UNRUN_MEMORY));
    }

    #[test]
    fn once_only_is_remembered_longest_and_never_evicted() {
        let slots = Slots::default();
        let mut tombs = Tombs::default();
        let once = RequestId::random();
        tombs.bury(once, Fate::Ended, slots.take(), Time::ZERO);
        let first = RequestId::random();
        tombs.bury(first, Fate::Ended, None, Time::ZERO);
        for _ in 0..RIDS_PER_PEER {
            tombs.bury(RequestId::random(), Fate::Ended, None, Time::ZERO);
        }
        assert_eq!(tombs.fate(&first), None, "the oldest made room");
        assert_eq!(tombs.len(), RIDS_PER_PEER + 1);
        assert_eq!(tombs.expire(TOMBSTONE), Some(RID_MEMORY));
        assert_eq!(tombs.len(), 1);
        assert_eq!(tombs.fate(&once), Some(Fate::Ended));
        assert_eq!(slots.taken(), 1);
        assert_eq!(tombs.expire(RID_MEMORY + Duration::from_secs(1)), None);
        assert_eq!((tombs.len(), slots.taken()), (0, 0));
    }

    #[test]
    fn slots_end_at_the_limit() {
        let slots = Slots::default();
        let taken: Vec<_> = (0..RIDS).filter_map(|_| slots.take()).collect();
        assert_eq!(taken.len(), RIDS);
        assert!(slots.take().is_none());
        drop(taken);
        assert_eq!(slots.taken(), 0);
    }
}
