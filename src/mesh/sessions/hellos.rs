//! Hellos of other nodes, paced by the link they came over (protocol 4.2). Pure.
//!
//! A hello carries no proof, so nobody may be charged for the name in it. What a link may bring in a
//! second is bounded; above that hellos wait, the newest of each origin, and origins take turns:
//! whoever floods under one name waits behind its own flood. Names we know wait apart, so that a flood
//! under names nobody ever had holds none of them up.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::wire::limits::{HELLOS_BURST, HELLOS_PER_SECOND, HELLOS_WAITING};

/// Turns that names we know get for one of a stranger, who must get some: he may have forged theirs.
const KNOWN_IN_A_ROW: u32 = 3;

/// Hellos that wait, one for each origin.
#[derive(Debug)]
struct Lane<T> {
    turns: VecDeque<String>,
    waiting: HashMap<String, T>,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self {
            turns: VecDeque::new(),
            waiting: HashMap::new(),
        }
    }
}

impl<T> Lane<T> {
    fn push(&mut self, origin: &str, hello: T) -> bool {
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

    fn pop(&mut self) -> Option<T> {
        let origin = self.turns.pop_front()?;
        self.waiting.remove(&origin)
    }

    fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}

/// The hellos of one ingress link; `T` is what is kept of each.
#[derive(Debug)]
pub(super) struct Hellos<T> {
    tokens: f64,
    at: Instant,
    known: Lane<T>,
    strangers: Lane<T>,
    /// Names we know that were served since the last stranger.
    in_a_row: u32,
}

impl<T> Hellos<T> {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            tokens: f64::from(HELLOS_BURST),
            at: now,
            known: Lane::default(),
            strangers: Lane::default(),
            in_a_row: 0,
        }
    }

    /// Takes a hello in; false when it takes the place of another, or finds none. `known` says
    /// whether the origin's name means anything to us.
    pub(super) fn push(&mut self, origin: &str, known: bool, hello: T) -> bool {
        let lane = if known {
            &mut self.known
        } else {
            &mut self.strangers
        };
        lane.push(origin, hello)
    }

    /// The next hello that may be answered now.
    pub(super) fn pop(&mut self, now: Instant) -> Option<T> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.tokens =
            (self.tokens + passed * f64::from(HELLOS_PER_SECOND)).min(f64::from(HELLOS_BURST));
        if self.tokens < 1.0 || self.is_empty() {
            return None;
        }
        self.tokens -= 1.0;
        let strangers_turn = self.in_a_row >= KNOWN_IN_A_ROW && !self.strangers.is_empty();
        if self.known.is_empty() || strangers_turn {
            self.in_a_row = 0;
            self.strangers.pop()
        } else {
            self.in_a_row += 1;
            self.known.pop()
        }
    }

    fn is_empty(&self) -> bool {
        self.known.is_empty() && self.strangers.is_empty()
    }

    /// Whether it is as good as new.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        let full = self.tokens + passed * f64::from(HELLOS_PER_SECOND) >= f64::from(HELLOS_BURST);
        self.is_empty() && full
    }

    /// When to come back for what waits.
    pub(super) fn due(&self) -> Option<Duration> {
        let missing = (1.0 - self.tokens).max(0.0);
        (!self.is_empty()).then(|| Duration::from_secs_f64(missing / f64::from(HELLOS_PER_SECOND)))
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
            hellos.push(&format!("node-{n}"), false, n);
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
            hellos.push("flood", false, n);
            let _ = hellos.pop(Instant::now());
        }
        hellos.push("flood", false, 1000);
        hellos.push("honest", false, 1);
        tokio::time::advance(Duration::from_millis(100)).await;
        let served: Vec<u32> = std::iter::from_fn(|| hellos.pop(Instant::now())).collect();
        assert_eq!(served, [1000, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_longest_keep_their_place() {
        let mut hellos = Hellos::new(Instant::now());
        for _ in 0..HELLOS_BURST {
            hellos.push("burst", false, 0);
            assert_eq!(hellos.pop(Instant::now()), Some(0));
        }
        hellos.push("honest", false, 7);
        for n in 0..1000 {
            hellos.push(&format!("forged-{n}"), false, n);
        }
        assert!(hellos.strangers.turns.len() <= HELLOS_WAITING);
        tokio::time::advance(Duration::from_millis(60)).await;
        assert_eq!(hellos.pop(Instant::now()), Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn known_names_pass_a_flood_of_strangers_and_the_other_way_round() {
        let mut hellos = Hellos::new(Instant::now());
        for _ in 0..HELLOS_BURST {
            hellos.push("burst", false, 0);
            assert_eq!(hellos.pop(Instant::now()), Some(0));
        }
        for n in 0..1000 {
            hellos.push(&format!("forged-{n}"), false, n);
            hellos.push(&format!("member-{}", n % 50), true, 10_000 + n);
        }
        hellos.push("stranger", false, 5);
        tokio::time::advance(Duration::from_secs(1)).await;
        let served: Vec<u32> = std::iter::from_fn(|| hellos.pop(Instant::now())).collect();
        let known = served.iter().filter(|n| **n >= 10_000).count();
        assert_eq!((served.len(), known), (20, 15));
    }
}
