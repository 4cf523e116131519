//! A bounded map that forgets the entry touched least recently.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    hash::Hash,
};

pub(super) struct Lru<K, V> {
    limit: usize,
    // The number is the moment of the last touch.
    values: HashMap<K, (u64, V)>,
    order: BTreeMap<u64, K>,
    touches: u64,
}

impl<K, V> fmt::Debug for Lru<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lru({} of {})", self.values.len(), self.limit)
    }
}

impl<K: Copy + Eq + Hash, V> Lru<K, V> {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            values: HashMap::new(),
            order: BTreeMap::new(),
            touches: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// An entry, without counting as a touch.
    pub(super) fn get(&mut self, key: &K) -> Option<&mut V> {
        self.values.get_mut(key).map(|(_, value)| value)
    }

    pub(super) fn remove(&mut self, key: &K) {
        if let Some((touch, _)) = self.values.remove(key) {
            self.order.remove(&touch);
        }
    }

    /// The entry of `key`, made if missing, and touched.
    pub(super) fn entry(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if !self.values.contains_key(&key)
            && self.values.len() >= self.limit
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.values.remove(&oldest);
        }
        self.touches += 1;
        let touch = self.touches;
        let (last, value) = self.values.entry(key).or_insert_with(|| (touch, make()));
        self.order.remove(last);
        *last = touch;
        self.order.insert(touch, key);
        value
    }
}
