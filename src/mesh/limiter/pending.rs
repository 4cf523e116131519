//! Connections that have not authenticated yet (protocol 3.5). When there are too many, the oldest
//! gives way: an honest one needs two round trips, so the newest is the better guess.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Source;
use crate::wire::limits::{PENDING_HANDSHAKES, PENDING_PER_48, PENDING_PER_SOURCE};

/// Names one pending connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// The pending connections of one listener, oldest first; `T` is what ends one of them.
#[derive(Debug)]
pub struct Pending<T> {
    all: BTreeMap<Ticket, (Option<Source>, T)>,
    by_source: HashMap<Source, BTreeSet<Ticket>>,
    by_48: HashMap<u128, BTreeSet<Ticket>>,
    next: u64,
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self {
            all: BTreeMap::new(),
            by_source: HashMap::new(),
            by_48: HashMap::new(),
            next: 0,
        }
    }
}

impl<T> Pending<T> {
    /// Enters a connection; gives its ticket, and those that must end for it. A source that is not
    /// known yet counts towards the limit of all alone.
    pub fn enter(&mut self, source: Option<Source>, end: T) -> (Ticket, Vec<T>) {
        let mut evicted = Vec::new();
        let full = |set: Option<&BTreeSet<Ticket>>, limit: usize| {
            set.filter(|set| set.len() >= limit)
                .and_then(|set| set.first().copied())
        };
        let oldest = source.and_then(|source| {
            full(self.by_source.get(&source), PENDING_PER_SOURCE).or_else(|| {
                let wider = source.wider()?;
                full(self.by_48.get(&wider), PENDING_PER_48)
            })
        });
        evicted.extend(oldest.and_then(|ticket| self.leave(ticket)));
        if self.all.len() >= PENDING_HANDSHAKES
            && let Some(ticket) = self.all.keys().next().copied()
        {
            evicted.extend(self.leave(ticket));
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.all.insert(ticket, (source, end));
        if let Some(source) = source {
            self.by_source.entry(source).or_default().insert(ticket);
        }
        if let Some(wider) = source.and_then(Source::wider) {
            self.by_48.entry(wider).or_default().insert(ticket);
        }
        (ticket, evicted)
    }

    /// Removes a connection that has authenticated or ended; none when it was evicted before.
    pub fn leave(&mut self, ticket: Ticket) -> Option<T> {
        fn forget<K: std::hash::Hash + Eq>(
            map: &mut HashMap<K, BTreeSet<Ticket>>,
            key: K,
            ticket: Ticket,
        ) {
            if let Some(set) = map.get_mut(&key) {
                set.remove(&ticket);
                if set.is_empty() {
                    map.remove(&key);
                }
            }
        }
        let (source, end) = self.all.remove(&ticket)?;
        if let Some(source) = source {
            forget(&mut self.by_source, source, ticket);
        }
        if let Some(wider) = source.and_then(Source::wider) {
            forget(&mut self.by_48, wider, ticket);
        }
        Some(end)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(n: u32) -> Option<Source> {
        Some(Source::new(std::net::Ipv4Addr::from(n).into()))
    }

    fn v6(subnet: u128) -> Option<Source> {
        let address = std::net::Ipv6Addr::from(0x2001_0db8 << 96 | subnet << 64);
        Some(Source::new(address.into()))
    }

    #[test]
    fn ninth_of_a_source_replaces_its_first() {
        let mut pending = Pending::default();
        for n in 0..8 {
            assert_eq!(pending.enter(v4(1), n).1, Vec::<u32>::new());
        }
        pending.enter(v4(2), 100);
        assert_eq!(pending.enter(v4(1), 8).1, [0]);
        assert_eq!(pending.len(), 9);
    }

    #[test]
    fn subnets_of_one_48_share_a_limit() {
        let mut pending = Pending::default();
        for n in 0..32 {
            assert!(pending.enter(v6(n), n).1.is_empty());
        }
        assert_eq!(pending.enter(v6(99), 32).1, [0]);
    }

    #[test]
    fn never_more_than_the_limit_and_nothing_left_behind() {
        let mut pending = Pending::default();
        let tickets: Vec<Ticket> = (0..4000).map(|n| pending.enter(v4(n), n).0).collect();
        assert_eq!(pending.len(), PENDING_HANDSHAKES);
        let left: Vec<u32> = tickets
            .into_iter()
            .filter_map(|t| pending.leave(t))
            .collect();
        assert_eq!(left, (4000 - 256..4000).collect::<Vec<u32>>());
        assert!(pending.is_empty() && pending.by_source.is_empty() && pending.by_48.is_empty());
    }
}
