//! How much one caller may do (protocol 8.3, 8.5): tools at once, and what a rule allows within a
//! minute or a day. Pure: time comes in.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    crypto::identity::PublicKey,
    policy::Quota,
    wire::{
        code::{Code, Failure},
        limits::{TOOLS_AT_ONCE, TOOLS_PER_PEER},
    },
};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Callers and rules that are remembered; more are refused, the idle ones are forgotten.
const COUNTED: usize = 8192;

/// Counts what is under way and what was; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Counts(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    all: usize,
    of_peer: HashMap<PublicKey, usize>,
    of_rule: HashMap<(PublicKey, Arc<str>), Used>,
}

/// What a caller did under one rule.
#[derive(Debug, Default)]
struct Used {
    open: u32,
    /// When requests of the last minute came, at most as many as the limit.
    minute: VecDeque<Instant>,
    /// Begin of the day that is counted, and requests in it.
    day: Option<(Instant, u32)>,
}

impl Used {
    fn idle(&self, now: Instant) -> bool {
        self.open == 0
            && self
                .minute
                .back()
                .is_none_or(|at| now.duration_since(*at) >= MINUTE)
            && self
                .day
                .is_none_or(|(begun, _)| now.duration_since(begun) >= DAY)
    }
}

/// A place taken; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    counts: Counts,
    peer: PublicKey,
    rule: Option<Arc<str>>,
}

impl Counts {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
            rule: None,
        })
    }
}

impl Slot {
    /// Counts the request against what its rule allows.
    ///
    /// # Errors
    /// `rate_limited` with the time to wait, `budget_exceeded`, `overloaded`.
    pub fn charge(&mut self, rule: &Arc<str>, quota: Quota, now: Instant) -> Result<(), Failure> {
        if quota == Quota::default() {
            return Ok(());
        }
        let mut table = self.counts.lock();
        if table.of_rule.len() >= COUNTED {
            table.of_rule.retain(|_, used| !used.idle(now));
        }
        let key = (self.peer, rule.clone());
        if table.of_rule.len() >= COUNTED && !table.of_rule.contains_key(&key) {
            return Err(Failure::not_started(
                Code::Overloaded,
                "the node counts as many callers as it can",
            ));
        }
        let used = table.of_rule.entry(key).or_default();
        if let Some(most) = quota.concurrent
            && used.open >= most
        {
            return Err(Failure::not_started(
                Code::Overloaded,
                format!("rule `{rule}` lets {most} run at once"),
            ));
        }
        while used
            .minute
            .front()
            .is_some_and(|at| now.duration_since(*at) >= MINUTE)
        {
            used.minute.pop_front();
        }
        if let Some(most) = quota.per_minute
            && used.minute.len() >= most as usize
        {
            let first = used.minute.front().copied().unwrap_or(now);
            return Err(Failure {
                retry_after: Some(MINUTE.saturating_sub(now.duration_since(first))),
                ..Failure::not_started(
                    Code::RateLimited,
                    format!("rule `{rule}` lets {most} requests a minute through"),
                )
            });
        }
        let day = used
            .day
            .filter(|(begun, _)| now.duration_since(*begun) < DAY);
        let (begun, count) = day.unwrap_or((now, 0));
        if let Some(most) = quota.per_day
            && count >= most
        {
            return Err(Failure::not_started(
                Code::BudgetExceeded,
                format!("rule `{rule}` lets {most} requests a day through"),
            ));
        }
        used.day = quota.per_day.map(|_| (begun, count + 1));
        if quota.per_minute.is_some() {
            used.minute.push_back(now);
        }
        used.open += 1;
        self.rule = Some(rule.clone());
        Ok(())
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
        if let Some(rule) = self.rule.take()
            && let Some(used) = table.of_rule.get_mut(&(self.peer, rule))
        {
            used.open = used.open.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PublicKey = PublicKey([1; 32]);

    #[test]
    fn tools_at_once_are_bounded_for_each_and_for_all() {
        let counts = Counts::default();
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

    /// T107: the eleventh of ten a minute is refused; places freed do not count twice.
    #[tokio::test(start_paused = true)]
    async fn a_rule_lets_so_many_through_a_minute() {
        let counts = Counts::default();
        let rule: Arc<str> = "r".into();
        let quota = Quota {
            per_minute: Some(10),
            ..Quota::default()
        };
        let ask = |peer| {
            let mut slot = counts.enter(peer).unwrap();
            slot.charge(&rule, quota, Instant::now())
        };
        for _ in 0..10 {
            ask(PEER).unwrap();
        }
        let refused = ask(PEER).unwrap_err();
        assert_eq!(refused.code, Code::RateLimited);
        assert_eq!(refused.retry_after, Some(MINUTE));
        ask(PublicKey([2; 32])).unwrap();
        tokio::time::advance(MINUTE).await;
        ask(PEER).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_rule_lets_so_many_through_a_day_and_at_once() {
        let counts = Counts::default();
        let rule: Arc<str> = "r".into();
        let quota = Quota {
            per_day: Some(2),
            concurrent: Some(1),
            ..Quota::default()
        };
        let mut first = counts.enter(PEER).unwrap();
        first.charge(&rule, quota, Instant::now()).unwrap();
        let mut second = counts.enter(PEER).unwrap();
        let busy = second.charge(&rule, quota, Instant::now()).unwrap_err();
        assert_eq!(busy.code, Code::Overloaded);
        drop(first);
        second.charge(&rule, quota, Instant::now()).unwrap();
        drop(second);
        let mut third = counts.enter(PEER).unwrap();
        let spent = third.charge(&rule, quota, Instant::now()).unwrap_err();
        assert_eq!(spent.code, Code::BudgetExceeded);
        tokio::time::advance(DAY).await;
        third.charge(&rule, quota, Instant::now()).unwrap();
    }
}
