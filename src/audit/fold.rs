//! Equal refusals within a minute become one line with a count, so that a stranger cannot fill the
//! disk: the first is written at once, its repeats when the minute is over. Pure; time comes in.

use std::collections::HashMap;

use tokio::time::Instant;

use super::{Decision, Entry};
use crate::{
    crypto::identity::KeyId,
    ids::NodeId,
    wire::limits::{AUDIT_FOLD, AUDIT_FOLDS},
};

/// What makes refusals equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Same {
    key: KeyId,
    /// Whom this node did not ask.
    to: Option<NodeId>,
    action: String,
    rule: String,
    result: String,
}

#[derive(Debug)]
struct Fold {
    since: Instant,
    last: Entry,
    repeats: u64,
}

/// Refusals of the last minute.
#[derive(Debug, Default)]
pub(super) struct Folds(HashMap<Same, Fold>);

impl Folds {
    /// The entry, if it is to be written now.
    pub(super) fn pass(&mut self, mut entry: Entry, now: Instant) -> Option<Entry> {
        if entry.decision == Decision::Allow {
            return Some(entry);
        }
        let of_key = self.0.keys().filter(|same| same.key == entry.key).count();
        let mut same = Same {
            key: entry.key,
            to: entry.to.clone(),
            action: entry.action.clone(),
            rule: entry.rule.clone(),
            result: entry.result.clone(),
        };
        if !self.0.contains_key(&same) && of_key >= AUDIT_FOLDS {
            // Somebody tries name after name: they count together.
            "*".clone_into(&mut entry.action);
            entry.to = None;
            same.action.clone_from(&entry.action);
            same.to = None;
        }
        if let Some(fold) = self.0.get_mut(&same) {
            fold.repeats += 1;
            fold.last = entry;
            return None;
        }
        let fold = Fold {
            since: now,
            last: entry.clone(),
            repeats: 0,
        };
        self.0.insert(same, fold);
        Some(entry)
    }

    /// The repeats whose minute is over, with their number.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(Entry, u64)> {
        let over = |fold: &Fold| now.duration_since(fold.since) >= AUDIT_FOLD;
        let due = self.0.extract_if(|_, fold| over(fold));
        let repeated = due.filter(|(_, fold)| fold.repeats > 0);
        repeated
            .map(|(_, fold)| (fold.last, fold.repeats))
            .collect()
    }
}
