//! What this node noticed of members that break the rules, for its operator (protocol 1, A3 and A4).
//! Pure: time comes in as an argument.
//!
//! Everything that is dropped is counted for each link by [`super::drops`]. Here those counts that tell
//! of a liar become one entry for each node and kind: told once in the log, shown by `status` and
//! `doctor` for an hour after the last time. What fills this is chosen by others, so it is bounded, and
//! ever new names fill no log.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::drops::{Drops, Reason};
use crate::ids::{LinkId, NodeId};

/// How long an entry is shown after the last time.
const SHOWN: Duration = Duration::from_secs(3600);
/// Nodes shown for one kind; more are counted only.
const NODES_PER_KIND: usize = 16;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $label:literal, $from:literal, $says:literal, $way_out:literal;)*) => {
        /// What a node did.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum AlertKind { $($(#[$doc])* $name,)* }

        impl AlertKind {
            /// Every kind, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name in metrics and in the log.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// From how many times on the operator hears of it: what chance may do once does not count.
            const fn from(self) -> u64 {
                match self { $(Self::$name => $from,)* }
            }

            /// What the node did, for people.
            const fn says(self) -> &'static str {
                match self { $(Self::$name => $says,)* }
            }

            /// What to do about it.
            #[must_use]
            pub const fn way_out(self) -> &'static str {
                match self { $(Self::$name => $way_out,)* }
            }
        }
    };
}

kinds! {
    /// Signed two records with one number.
    Contradiction = "contradiction", 1,
        "signs records that contradict each other; the first one counts",
        "if two processes run with its key, stop one; else `clawmatrix trust deny` its key";
    /// Signs faster than a node has reason to.
    RecordFlood = "record_flood", 64,
        "signs new records faster than they are taken",
        "look at that node; `clawmatrix trust deny` its key if it does so on purpose";
    /// Another key signs under our own name.
    OurName = "name_taken", 1,
        "has the name of this node: another key signs records under it",
        "give one of the two another `nodeId`";
    /// Passed on what it must have seen to be wrong.
    Forgery = "forgery", 1,
        "passes on records that are forged or malformed",
        "`clawmatrix trust deny` its key, unless the node is broken";
    /// Brings in too many names.
    UnknownNames = "unknown_names", 1,
        "brings in more unknown nodes than one neighbour may; the rest is left out",
        "`clawmatrix trust accept` its key if it is a relay of yours; else somebody makes up names";
    /// Speaks for others without being a relay.
    ForeignNames = "foreign_names", 1,
        "sends frames in the names of other nodes, and is no relay that this node believes",
        "list it in `relays` if it is one; else `clawmatrix trust deny` its key";
    /// Claims links to nodes that know nothing of them.
    FalseLinks = "false_links", 1,
        "claims links that their other ends do not confirm; nothing is sent over them",
        "`clawmatrix trust deny` its key if it goes on";
    /// Brought bodies that do not open.
    Altered = "altered_frames", 4,
        "brings frames that were altered or forged on their way; they are dropped",
        "if it goes on, use another relay";
    /// Brought frames again.
    Repeats = "repeated_frames", 64,
        "brings frames again that were here before; they are dropped",
        "if it goes on, use another relay";
    /// Brought more beginnings of sessions than one link may.
    Hellos = "hello_flood", 256,
        "brings more beginnings of sessions than one neighbour may; the rest is dropped",
        "a member behind it floods this node; `clawmatrix peers` shows who is there";
    /// Frames through it get no answer.
    LosesFrames = "loses_frames", 2,
        "loses frames that are sent through it; other ways are tried first",
        "use another relay, or look why that one drops frames";
    /// Its link was closed for what it sent.
    Misbehaviour = "misbehaviour", 1,
        "had its link closed for what came over it: a flood, altered bytes, a broken protocol",
        "update that node; `clawmatrix trust deny` its key if it does so on purpose";
    /// Replaces its links again and again.
    HoldOff = "hold_off", 1,
        "replaces its links too often, and is held off a minute each time",
        "if two processes run with its key, stop one";
}

impl AlertKind {
    /// What a reason to drop something says about the neighbour whose link it came over.
    #[must_use]
    pub const fn of(reason: Reason) -> Option<Self> {
        Some(match reason {
            Reason::BadGossip => Self::Forgery,
            Reason::GossipLimited => Self::UnknownNames,
            Reason::ForeignOrigin => Self::ForeignNames,
            Reason::BadBody => Self::Altered,
            Reason::Replayed => Self::Repeats,
            Reason::HelloLimited => Self::Hellos,
            Reason::Misbehaviour => Self::Misbehaviour,
            _ => return None,
        })
    }
}

#[derive(Debug)]
struct Entry {
    kind: AlertKind,
    node: NodeId,
    count: u64,
    last: Instant,
}

/// What was noticed of late.
#[derive(Debug, Default)]
pub struct Alerts {
    entries: Vec<Entry>,
    totals: HashMap<AlertKind, u64>,
    /// What the counters of each link said at the last look.
    looked: HashMap<LinkId, HashMap<AlertKind, u64>>,
}

impl Alerts {
    /// Notes that `node` did this `times` more. True when the operator is to be told now.
    pub fn raise(&mut self, kind: AlertKind, node: &NodeId, times: u64, now: Instant) -> bool {
        *self.totals.entry(kind).or_default() += times;
        self.entries
            .retain(|entry| now.saturating_duration_since(entry.last) < SHOWN);
        let same = |entry: &&mut Entry| entry.kind == kind && entry.node == *node;
        if let Some(entry) = self.entries.iter_mut().find(same) {
            let before = entry.count;
            entry.count = before.saturating_add(times);
            entry.last = now;
            return before < kind.from() && entry.count >= kind.from();
        }
        if self.entries.iter().filter(|e| e.kind == kind).count() >= NODES_PER_KIND {
            return false;
        }
        self.entries.push(Entry {
            kind,
            node: node.clone(),
            count: times,
            last: now,
        });
        times >= kind.from()
    }

    /// Looks at the counters of a link of `node`; gives what the operator is to be told now.
    pub fn look(
        &mut self,
        (link, node): (LinkId, &NodeId),
        drops: &Drops,
        now: Instant,
    ) -> Vec<AlertKind> {
        let mut told = Vec::new();
        for reason in Reason::ALL {
            let Some(kind) = AlertKind::of(*reason) else {
                continue;
            };
            let count = drops.get(*reason);
            let before = self.looked.get(&link).and_then(|seen| seen.get(&kind));
            let more = count - before.copied().unwrap_or(0).min(count);
            if more > 0 {
                self.looked.entry(link).or_default().insert(kind, count);
                if self.raise(kind, node, more, now) {
                    told.push(kind);
                }
            }
        }
        told
    }

    /// A link is gone.
    pub fn forget(&mut self, link: LinkId) {
        self.looked.remove(&link);
    }

    /// What the operator should know now, the latest first.
    #[must_use]
    pub fn warnings(&self, now: Instant) -> Vec<String> {
        let fresh = |entry: &&Entry| {
            entry.count >= entry.kind.from() && now.saturating_duration_since(entry.last) < SHOWN
        };
        let mut entries: Vec<&Entry> = self.entries.iter().filter(fresh).collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.last));
        let text = |entry: &Entry| {
            let Entry {
                kind, node, count, ..
            } = entry;
            let times = if *count == 1 { "time" } else { "times" };
            format!(
                "node `{node}` {} ({count} {times}); {}",
                kind.says(),
                kind.way_out()
            )
        };
        entries.into_iter().map(text).collect()
    }

    /// How often each kind was noticed since the start.
    #[must_use]
    pub fn totals(&self) -> Vec<(&'static str, u64)> {
        AlertKind::ALL
            .iter()
            .filter_map(|kind| Some((kind.as_str(), *self.totals.get(kind)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::testkit::node;

    #[test]
    fn an_entry_is_told_once_and_shown_for_an_hour() {
        let (mut alerts, start) = (Alerts::default(), Instant::now());
        let kind = AlertKind::Contradiction;
        assert!(alerts.raise(kind, &node("m"), 1, start));
        assert!(!alerts.raise(kind, &node("m"), 1, start + SHOWN / 2));
        let shown = alerts.warnings(start + SHOWN);
        assert_eq!(shown.len(), 1);
        assert!(
            shown[0].starts_with("node `m` signs records") && shown[0].contains("(2 times); if"),
            "{shown:?}"
        );
        let later = start + 2 * SHOWN;
        assert_eq!(alerts.warnings(later), Vec::<String>::new());
        assert!(alerts.raise(kind, &node("m"), 1, later), "told anew");
        assert_eq!(alerts.totals(), [("contradiction", 3)]);
    }

    #[test]
    fn what_chance_may_do_is_not_told() {
        let (mut alerts, now) = (Alerts::default(), Instant::now());
        let (link, drops) = (LinkId(1), Drops::default());
        let mut look = || alerts.look((link, &node("r")), &drops, now);
        drops.add(Reason::BadBody, 3);
        drops.add(Reason::Repeated, 1000);
        assert_eq!(look(), []);
        assert_eq!(look(), [], "counted once");
        drops.count(Reason::BadBody);
        assert_eq!(look(), [AlertKind::Altered]);
        drops.count(Reason::BadBody);
        assert_eq!(look(), [], "told once");
        assert!(alerts.warnings(now)[0].contains("(5 times)"));
    }

    #[test]
    fn ever_new_names_fill_nothing() {
        let (mut alerts, now) = (Alerts::default(), Instant::now());
        let told = (0..1000)
            .filter(|n| alerts.raise(AlertKind::Contradiction, &node(&format!("n{n}")), 1, now));
        assert_eq!(told.count(), NODES_PER_KIND);
        assert_eq!(alerts.warnings(now).len(), NODES_PER_KIND);
        assert!(
            alerts.raise(AlertKind::Forgery, &node("other"), 1, now),
            "other kinds have their own room"
        );
        assert_eq!(alerts.totals()[0], ("contradiction", 1000));
    }
}
