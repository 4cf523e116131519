//! Which of two links between the same two nodes is kept (protocol 6.7). Pure.
//!
//! Two nodes that dial one another at the same time must agree without asking: the link dialed by
//! the smaller key stays. Two links dialed by the same side mean that this side has lost the first
//! one, which we may not have noticed yet, unless they were proved with different secrets: then it
//! renews its link.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::{
    crypto::{identity::PublicKey, stretch::SecretId},
    ids::Boot,
    wire::limits::{DUPLICATE_SILENCE, LINK_HOLD_OFF, LINK_REPLACEMENTS_PER_MINUTE},
};

/// What decides about one link.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Whether we dialed it.
    pub dialed: bool,
    /// Process start of the other side.
    pub boot: Boot,
    /// What it was proved with.
    pub secret: SecretId,
}

/// What to do with a new link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The old link stays, the new one is closed.
    Keep,
    /// The new link takes over.
    Replace,
    /// The new link takes over unless the old one shows life soon.
    Probe,
}

/// Judges `new` beside `old`, which has been silent for `silence`.
#[must_use]
pub fn judge(
    us: &PublicKey,
    them: &PublicKey,
    old: Facts,
    silence: Duration,
    new: Facts,
) -> Verdict {
    if old.boot != new.boot {
        // The process at the other end of the old link is gone.
        return Verdict::Replace;
    }
    if old.dialed == new.dialed && old.secret != new.secret {
        // The side that dials has another secret now and renews its link; both of us see that.
        return Verdict::Replace;
    }
    if old.dialed == new.dialed {
        return if silence > DUPLICATE_SILENCE {
            Verdict::Replace
        } else {
            Verdict::Probe
        };
    }
    if new.dialed == (us < them) {
        Verdict::Replace
    } else {
        Verdict::Keep
    }
}

/// How often the link to one node was replaced.
#[derive(Debug, Default)]
pub struct Replacements {
    recent: VecDeque<Instant>,
    held_until: Option<Instant>,
}

impl Replacements {
    /// Counts a replacement; false while too many of them hold further ones off.
    pub fn allow(&mut self, now: Instant) -> bool {
        if self.held_until.is_some_and(|until| now < until) {
            return false;
        }
        let minute = Duration::from_secs(60);
        while self
            .recent
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) >= minute)
        {
            self.recent.pop_front();
        }
        if self.recent.len() >= LINK_REPLACEMENTS_PER_MINUTE as usize {
            self.held_until = Some(now + LINK_HOLD_OFF);
            return false;
        }
        self.recent.push_back(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: PublicKey = PublicKey([1; 32]);
    const LARGE: PublicKey = PublicKey([2; 32]);

    fn facts(dialed: bool, boot: u8) -> Facts {
        Facts {
            dialed,
            boot: Boot([boot; 16]),
            secret: SecretId(0),
        }
    }

    #[test]
    fn both_ends_keep_the_link_dialed_by_the_smaller_key() {
        for old_dialed_by_small in [true, false] {
            let at = |us: &PublicKey, them: &PublicKey, we_are_small: bool| {
                judge(
                    us,
                    them,
                    facts(old_dialed_by_small == we_are_small, 1),
                    Duration::ZERO,
                    facts(old_dialed_by_small != we_are_small, 1),
                )
            };
            let expected = if old_dialed_by_small {
                Verdict::Keep
            } else {
                Verdict::Replace
            };
            assert_eq!(at(&SMALL, &LARGE, true), expected);
            assert_eq!(at(&LARGE, &SMALL, false), expected);
        }
    }

    #[test]
    fn same_direction_asks_a_link_that_was_alive_just_now() {
        let judge = |silence| judge(&SMALL, &LARGE, facts(false, 1), silence, facts(false, 1));
        assert_eq!(judge(Duration::from_secs(3)), Verdict::Replace);
        assert_eq!(judge(Duration::from_secs(1)), Verdict::Probe);
    }

    #[test]
    fn restarted_node_wins_at_once() {
        let verdict = judge(
            &SMALL,
            &LARGE,
            facts(true, 1),
            Duration::ZERO,
            facts(false, 2),
        );
        assert_eq!(verdict, Verdict::Replace);
    }

    #[test]
    fn seventh_replacement_in_a_minute_holds_off() {
        let (mut replacements, now) = (Replacements::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!((0..6).all(|n| replacements.allow(at(n))));
        assert!(!replacements.allow(at(6)));
        assert!(!replacements.allow(at(65)), "held for a minute");
        assert!(replacements.allow(at(67)));
    }
}
