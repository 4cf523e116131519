//! Hellos of other nodes, paced by the link they came over (protocol 4.2). Pure.
//!
//! A hello carries no proof, so nobody may be charged for the name in it. What a link may bring in a
//! second is bounded; above that hellos wait, the newest of each origin, and origins take turns:
//! whoever floods under one name waits behind its own flood.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::wire::limits::{HELLOS_BURST, HELLOS_PER_SECOND, HELLOS_WAITING};

/// The hellos of one ingress link; `T` is what is kept of each.
#[derive(Debug)]
pub(super) struct Hellos<T> {
    tokens: f64,
    at: Instant,
    turns: VecDeque<String>,
    waiting: HashMap<String, T>,
}

impl<T> Hellos<T> {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            tokens: f64::from(HELLOS_BURST),
            at: now,
            turns: VecDeque::new(),
            waiting: HashMap::new(),
        }
    }

    /// Takes a hello in; false when it takes the place of another, or finds none.
    pub(super) fn push(&mut self, origin: &str, hello: T) -> bool {
        if let Some(older) = self.waiting.get_mut(origin) {
            *older = hello;
            return false;
        }
        let displaced = self.turns.len() >= HELLOS_WAITING;
        if displaced && let Some(last) = self.turns.pop_back() {
            // The latest comer gives way: those that wait longest are served next.
            self.waiting.remove(&last);
        }
        self.turns.push_back(origin.to_owned());
        self.waiting.insert(origin.to_owned(), hello);
        !displaced
    }

    /// The next hello that may be answered now.
    pub(super) fn pop(&mut self, now: Instant) -> Option<T> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.tokens =
            (self.tokens + passed * f64::from(HELLOS_PER_SECOND)).min(f64::from(HELLOS_BURST));
        if self.tokens < 1.0 {
            return None;
        }
        let origin = self.turns.pop_front()?;
        self.tokens -= 1.0;
        self.waiting.remove(&origin)
    }

    /// Whether it is as good as new.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        let full = self.tokens + passed * f64::from(HELLOS_PER_SECOND) >= f64::from(HELLOS_BURST);
        self.turns.is_empty() && full
    }

    /// When to come back for what waits.
    pub(super) fn due(&self) -> Option<Duration> {
        let missing = (1.0 - self.tokens).max(0.0);
        (!self.turns.is_empty())
            .then(|| Duration::from_secs_f64(missing / f64::from(HELLOS_PER_SECOND)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_the_rate_holds() {
        let mut hellos = Hellos::new(Instant::now());
        let mut passed = 0;
        for n in 0..400 {
            hellos.push(&format!("node-{n}"), n);
            while hellos.pop(Instant::now()).is_some() {
                passed += 1;
            }
        }
        assert_eq!(passed, HELLOS_BURST);
        assert!(hellos.due().is_some_and(|due| due > Duration::ZERO));
        tokio::time::advance(Duration::from_secs(1)).await;
        let more = std::iter::from_fn(|| hellos.pop(Instant::now())).count();
        assert_eq!(more, HELLOS_PER_SECOND as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_under_one_name_holds_nobody_up() {
        let mut hellos = Hellos::new(Instant::now());
        for n in 0..1000 {
            hellos.push("flood", n);
            let _ = hellos.pop(Instant::now());
        }
        hellos.push("flood", 1000);
        hellos.push("honest", 1);
        tokio::time::advance(Duration::from_millis(100)).await;
        let served: Vec<u32> = std::iter::from_fn(|| hellos.pop(Instant::now())).collect();
        assert_eq!(served, [1000, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_longest_keep_their_place() {
        let mut hellos = Hellos::new(Instant::now());
        for _ in 0..HELLOS_BURST {
            hellos.push("burst", 0);
            assert_eq!(hellos.pop(Instant::now()), Some(0));
        }
        hellos.push("honest", 7);
        for n in 0..1000 {
            hellos.push(&format!("forged-{n}"), n);
        }
        assert!(hellos.turns.len() <= HELLOS_WAITING);
        tokio::time::advance(Duration::from_millis(60)).await;
        assert_eq!(hellos.pop(Instant::now()), Some(7));
    }
}
