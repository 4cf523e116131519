//! The links that are up, one per node (protocol 6.7). Pure but for the clock and the links' own
//! state, which it asks.

use std::{collections::HashMap, sync::Arc};

use tokio::time::Instant;

use super::{
    duel::{Facts, Replacements, Verdict, judge},
    link::Link,
};
use crate::{
    crypto::identity::PublicKey,
    ids::{LinkId, NodeId},
    wire::close::CloseCode,
};

/// What to do with a link that has just authenticated.
#[derive(Debug)]
pub(super) enum Step {
    /// Nobody objects: it is entered. The one it replaces, if any, is to be drained.
    Enter(Option<Arc<Link>>),
    /// Close it.
    Refuse(CloseCode, &'static str),
    /// Ask this one for a sign of life first, then come back with the answer.
    Ask(Arc<Link>),
}

#[derive(Debug, Default)]
struct Slot {
    link: Option<Arc<Link>>,
    replacements: Replacements,
}

/// One slot per node that ever linked; their number is bounded by that of pins.
#[derive(Debug, Default)]
pub(super) struct Links {
    slots: HashMap<NodeId, Slot>,
}

fn facts(link: &Link) -> Facts {
    Facts {
        dialed: link.dialed(),
        boot: link.neighbour().boot,
        secret: link.secret(),
    }
}

impl Links {
    /// The open link to a node.
    pub(super) fn get(&self, node: &str) -> Option<&Arc<Link>> {
        let link = self.slots.get(node)?.link.as_ref()?;
        link.is_open().then_some(link)
    }

    /// Every open link.
    pub(super) fn open(&self) -> Vec<Arc<Link>> {
        let links = self.slots.values().filter_map(|slot| slot.link.as_ref());
        links.filter(|link| link.is_open()).cloned().collect()
    }

    /// Judges a new link, and enters it if it may stay. `answered` is what came of the last
    /// [`Step::Ask`].
    pub(super) fn offer(
        &mut self,
        us: &PublicKey,
        new: &Arc<Link>,
        answered: Option<(LinkId, bool)>,
        now: Instant,
    ) -> Step {
        let peer = new.neighbour();
        let slot = self.slots.entry(peer.node.clone()).or_default();
        if let Some(old) = slot.link.clone().filter(|old| old.is_open()) {
            let verdict = if old.neighbour().key == peer.key {
                judge(us, &peer.key, facts(&old), old.silence(), facts(new))
            } else {
                // The operator has accepted another key for this name meanwhile.
                Verdict::Replace
            };
            let verdict = match (verdict, answered) {
                (Verdict::Probe, Some((asked, true))) if asked == old.id() => Verdict::Keep,
                (Verdict::Probe, Some((asked, false))) if asked == old.id() => Verdict::Replace,
                (verdict, _) => verdict,
            };
            match verdict {
                Verdict::Probe => return Step::Ask(old),
                Verdict::Keep => {
                    // The other side may know better: find out soon whether the old one lives.
                    old.ask();
                    return Step::Refuse(CloseCode::DuplicateLink, "another link is kept");
                }
                Verdict::Replace if !slot.replacements.allow(now) => {
                    return Step::Refuse(CloseCode::RateLimited, "links replaced too often");
                }
                Verdict::Replace => {}
            }
        }
        Step::Enter(slot.link.replace(new.clone()))
    }

    /// A link has ended; true when it was the one that counts.
    pub(super) fn remove(&mut self, link: &Link) -> bool {
        let Some(slot) = self.slots.get_mut(link.neighbour().node.as_str()) else {
            return false;
        };
        slot.link.take_if(|held| held.id() == link.id()).is_some()
    }
}
