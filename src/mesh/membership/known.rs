//! What others ask of membership: who is there, what can be passed on, how it looks.

use super::{
    Item, Membership, NodeId, NodeView, Passage, Reach, RecordKind, Revision, Signed, Version,
    Vertex, View,
};

impl Membership {
    /// Whether a node is known at all.
    #[must_use]
    pub fn knows(&self, node: &NodeId) -> bool {
        self.members.contains_key(node)
    }

    /// Whether records of a node live here.
    #[must_use]
    pub fn hears_of(&self, node: &NodeId) -> bool {
        self.members
            .get(node)
            .is_some_and(|member| member.fresh.is_some() && member.left.is_none())
    }

    /// Whether a node goes away on purpose.
    #[must_use]
    pub fn leaves(&self, node: &NodeId) -> bool {
        self.members
            .get(node)
            .is_some_and(|member| member.left.is_some())
    }

    /// Why a node is not reached.
    #[must_use]
    pub fn why_not(&self, node: &NodeId) -> Option<&str> {
        self.members.get(node)?.problem.as_deref()
    }

    /// Nodes with records.
    #[must_use]
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// The latest record of one kind and key.
    #[must_use]
    pub fn record(&self, item: &Item) -> Option<&Signed> {
        match item.kind {
            RecordKind::Leave => return self.tombs.record(&item.key),
            RecordKind::Rotation => return self.rotations.record(&item.key),
            RecordKind::Descriptor | RecordKind::LinkState => {}
        }
        let member = self.members.get(self.names.get(&item.key)?)?;
        member.records[item.kind as usize]
            .as_ref()
            .map(|held| &held.signed)
    }

    /// The number of the latest record of one kind and key.
    #[must_use]
    pub fn version(&self, item: &Item) -> Option<Version> {
        match item.kind {
            RecordKind::Leave => return self.tombs.left(&item.key),
            RecordKind::Rotation => return self.rotations.version(&item.key),
            RecordKind::Descriptor | RecordKind::LinkState => {}
        }
        let member = self.members.get(self.names.get(&item.key)?)?;
        Some(member.records[item.kind as usize].as_ref()?.version)
    }

    /// Everything that can be passed on, with its version.
    pub fn items(&self) -> impl Iterator<Item = (Item, Version)> + '_ {
        let records = self.members.values().flat_map(|member| {
            let key = member.key.map(|key| key.id());
            let kinds = [RecordKind::Descriptor, RecordKind::LinkState];
            kinds.into_iter().filter_map(move |kind| {
                let held = member.records[kind as usize].as_ref()?;
                Some((Item { kind, key: key? }, held.version))
            })
        });
        // Rotations first: what a new key signed is believed only after its own.
        self.rotations
            .items()
            .chain(records)
            .chain(self.tombs.items())
    }

    /// The same as before as long as [`Membership::items`] gives the same.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision {
            links: self.revision.links,
            other: self.revision.other + self.tombs.revision() + self.rotations.revision(),
        }
    }

    /// Whether a record of this kind, key and version would be news, as far as its number tells.
    #[must_use]
    pub fn lacks(&self, item: &Item, version: Version) -> bool {
        if item.kind == RecordKind::Rotation {
            let held = self.rotations.version(&item.key);
            return held.is_none_or(|held| held < version);
        }
        if self.tombs.covers(&item.key, version) {
            return false;
        }
        let Some(member) = self.names.get(&item.key).and_then(|n| self.members.get(n)) else {
            return true;
        };
        match item.kind {
            RecordKind::Leave => member.newest().is_none_or(|newest| newest < version),
            kind => member.records[kind as usize]
                .as_ref()
                .is_none_or(|held| held.version < version),
        }
    }

    /// Every node with a link state.
    pub fn vertices(&self) -> impl Iterator<Item = Vertex<'_>> {
        self.members.iter().filter_map(|(node, member)| {
            Some(Vertex {
                node,
                key: member.key?.id(),
                links: &member.links,
                stays: member.left.is_none(),
            })
        })
    }

    /// A snapshot; `passage` says how nodes are reached.
    #[must_use]
    pub fn view(&self, passage: impl Fn(&NodeId) -> Option<Passage>) -> View {
        let nodes = self.members.iter().map(|(node, member)| {
            let passage = passage(node);
            let reach = match &passage {
                _ if member.linked => Reach::Direct,
                Some(passage) if passage.via.is_some() => Reach::Relay,
                _ => Reach::Unreachable,
            };
            let relayed = passage.filter(|_| reach == Reach::Relay);
            let problem = member.problem.clone();
            let view = NodeView {
                node: node.clone(),
                key_id: member.key.map(|key| key.id()),
                level: member.level,
                reach,
                latency_ms: match &relayed {
                    Some(passage) => passage.latency_ms,
                    None => member.latency_ms,
                },
                reachable_via: relayed.and_then(|passage| passage.via),
                descriptor: member.descriptor.clone(),
                load: member.links.load,
                last_seen: member.last_seen,
                // That a link of our own fails matters to nobody while a relay leads there.
                problem: problem.filter(|_| reach != Reach::Relay),
            };
            (node.clone(), view)
        });
        View {
            nodes: nodes.collect(),
            ..View::default()
        }
    }
}
