//! How much one caller may do (protocol 8.3, 8.5): tools at once, and what a rule lets it do.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    budgets::{Account, Budgets, Caps, Cost, Share, TOKEN_BYTES},
    crypto::identity::PublicKey,
    policy::Quota,
    wire::{
        code::{Code, Failure},
        limits::{TOOLS_AT_ONCE, TOOLS_PER_PEER},
    },
};

/// Counts what is under way; cheap to clone.
#[derive(Debug, Clone)]
pub struct Counts {
    table: Arc<Mutex<Table>>,
    budgets: Budgets,
}

#[derive(Debug, Default)]
struct Table {
    all: usize,
    of_peer: HashMap<PublicKey, usize>,
}

/// A place taken; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    counts: Counts,
    peer: PublicKey,
    /// What its rule lets it have.
    share: Option<Share>,
    /// Bytes counted so far.
    bytes: u64,
}

impl Counts {
    /// Nothing is under way; what rules limit is counted in `budgets`.
    #[must_use]
    pub fn new(budgets: Budgets) -> Self {
        Self {
            table: Arc::default(),
            budgets,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a request of `peer`.
    ///
    /// # Errors
    /// `overloaded`.
    pub fn enter(&self, peer: PublicKey) -> Result<Slot, Failure> {
        let mut table = self.lock();
        let overloaded = |text: &str| Err(Failure::not_started(Code::Overloaded, text));
        if table.all >= TOOLS_AT_ONCE {
            return overloaded("the node runs as many tools as it may");
        }
        let open = table.of_peer.entry(peer).or_default();
        if *open >= TOOLS_PER_PEER {
            return overloaded("the node runs as many tools of yours as it may");
        }
        *open += 1;
        table.all += 1;
        Ok(Slot {
            counts: self.clone(),
            peer,
            share: None,
            bytes: 0,
        })
    }
}

impl Slot {
    /// Counts a request of `bytes` against what its rule allows. Nobody says how many tokens a tool takes,
    /// so bytes stand for them.
    ///
    /// # Errors
    /// `rate_limited` with the time to wait, `budget_exceeded`, `overloaded`.
    pub fn charge(&mut self, rule: &Arc<str>, quota: Quota, bytes: u64) -> Result<(), Failure> {
        if quota == Quota::default() {
            return Ok(());
        }
        let account = Account {
            peer: self.peer.id(),
            rule: Some(rule.clone()),
        };
        let cost = Cost {
            bytes,
            tokens: bytes / TOKEN_BYTES,
        };
        let caps = Caps::from(quota);
        self.share = Some(self.counts.budgets.enter(account, &caps, cost)?);
        self.bytes = bytes;
        Ok(())
    }

    /// Counts `bytes` of the answer.
    pub fn told(&mut self, bytes: u64) {
        let Some(share) = &self.share else { return };
        let all = self.bytes.saturating_add(bytes);
        let tokens = all / TOKEN_BYTES - self.bytes / TOKEN_BYTES;
        share.add(bytes, i64::try_from(tokens).unwrap_or(i64::MAX));
        self.bytes = all;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut table = self.counts.lock();
        table.all = table.all.saturating_sub(1);
        if let Some(open) = table.of_peer.get_mut(&self.peer) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                table.of_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PublicKey = PublicKey([1; 32]);

    #[test]
    fn tools_at_once_are_bounded_for_each_and_for_all() {
        let counts = Counts::new(Budgets::default());
        let mut slots = Vec::new();
        for _ in 0..TOOLS_PER_PEER {
            slots.push(counts.enter(PEER).unwrap());
        }
        assert_eq!(counts.enter(PEER).unwrap_err().code, Code::Overloaded);
        slots.pop();
        slots.push(counts.enter(PEER).unwrap());
        for peer in 2..=u8::try_from(TOOLS_AT_ONCE / TOOLS_PER_PEER).unwrap() {
            for _ in 0..TOOLS_PER_PEER {
                slots.push(counts.enter(PublicKey([peer; 32])).unwrap());
            }
        }
        assert_eq!(slots.len(), TOOLS_AT_ONCE);
        assert!(counts.enter(PublicKey([200; 32])).is_err());
        slots.clear();
        assert!(counts.lock().of_peer.is_empty());
    }

    /// The ledger's own tests cover minutes and days.
    #[test]
    fn what_a_rule_lets_run_at_once_is_given_back() {
        let counts = Counts::new(Budgets::default());
        let rule: Arc<str> = "r".into();
        let quota = Quota {
            concurrent: Some(1),
            ..Quota::default()
        };
        let mut first = counts.enter(PEER).unwrap();
        first.charge(&rule, quota, 0).unwrap();
        let mut second = counts.enter(PEER).unwrap();
        let busy = second.charge(&rule, quota, 0).unwrap_err();
        assert_eq!(busy.code, Code::Overloaded);
        drop(first);
        second.charge(&rule, quota, 0).unwrap();
    }
}
