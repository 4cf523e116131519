//! Links to addresses that other nodes advertise (protocol 6.8): to nodes known otherwise already, with
//! the key they are known by, so that what goes through a relay can go straight.
//!
//! ```text
//! view -> wanted: who may be dialed -> one `keep` each, a few at once -> link, or a rest
//! ```
//!
//! What a node says costs little: few nodes at once, each with few addresses, each address judged by
//! [`Bounds`], and a node that is not met in a few attempts is left alone for minutes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{Spot, Target, bounds, bounds::Bounds, keep};
use crate::{
    crypto::identity::KeyId,
    ids::NodeId,
    mesh::{
        hub::Hub,
        view::{NodeView, Reach, View},
    },
    trust::Level,
    wire::limits::{ADVERTISED_LINKS, ADVERTISED_REST, ADVERTISED_TRIES},
};

/// Pause between two looks at the view, which may change often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where a node says it is, and whom to expect there. Another one of these is another attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ad {
    key: KeyId,
    urls: Vec<Url>,
}

/// What this node does about advertised addresses.
#[derive(Debug)]
struct Dialing {
    bounds: Bounds,
    /// Nodes of the configuration: the operator said where they are.
    configured: HashSet<NodeId>,
    under_way: HashMap<NodeId, (Ad, CancellationToken)>,
    /// Until when nodes are left alone, unless they advertise something else.
    resting: HashMap<NodeId, (Ad, Instant)>,
}

impl Dialing {
    /// What a node advertises that may be dialed.
    fn ad(&self, node: &NodeView) -> Option<Ad> {
        // A name that is only heard of costs its inventor nothing.
        let met = node.level >= Some(Level::Pinned) && !self.configured.contains(&node.node);
        let urls = node.descriptor.addresses.iter();
        let urls: Vec<Url> = urls
            .filter_map(|text| bounds::address(text))
            .filter(|url| self.bounds.may_permit(url))
            .collect();
        (met && !urls.is_empty()).then_some(Ad {
            key: node.key_id?,
            urls,
        })
    }

    /// Brings what is under way in line with `view`. Gives what is to begin.
    fn look(&mut self, view: &View, now: Instant) -> Vec<(NodeId, Ad)> {
        let ours = |node: &NodeId| view.links.get(node).is_some_and(|link| link.advertised);
        let mut wanted = BTreeMap::new();
        for node in view.nodes.values() {
            // A link that was made otherwise needs no care of ours.
            let free = node.reach != Reach::Direct || ours(&node.node);
            if let Some(ad) = self.ad(node).filter(|_| free) {
                let rank = (node.trust_rank(), node.reach, &node.node);
                wanted.insert(rank, (&node.node, ad));
            }
        }
        let ads: HashMap<&NodeId, &Ad> = wanted.values().map(|(node, ad)| (*node, ad)).collect();
        self.under_way.retain(|node, (ad, stop)| {
            let stays = ads.get(node).is_some_and(|now| *now == ad);
            if !stays {
                stop.cancel();
            }
            stays
        });
        self.resting.retain(|node, (ad, until)| {
            now < *until && ads.get(node).is_some_and(|now| *now == ad)
        });
        // A link outlives what made it.
        let left_over = view.links.keys().filter(|node| ours(node));
        let left_over = left_over.filter(|node| !self.under_way.contains_key(*node));
        let taken = self.under_way.len() + left_over.count();
        let begin = wanted.into_values().filter(|(node, _)| {
            let busy = self.under_way.contains_key(*node) || self.resting.contains_key(*node);
            !busy && !ours(node)
        });
        begin
            .take(ADVERTISED_LINKS.saturating_sub(taken))
            .map(|(node, ad)| (node.clone(), ad))
            .collect()
    }

    /// A node was not met.
    fn rest(&mut self, node: NodeId, now: Instant) {
        if let Some((ad, _)) = self.under_way.remove(&node) {
            let urls: Vec<&str> = ad.urls.iter().map(Url::as_str).collect();
            tracing::info!(peer = %node, ?urls, "node not met where it says it is, left alone for a while");
            self.resting.insert(node, (ad, now + ADVERTISED_REST));
        }
    }
}

/// Dials what `bounds` permit until the mesh stops; nodes in `configured` are dialed elsewhere.
pub(in crate::mesh) async fn run(hub: Arc<Hub>, bounds: Bounds, configured: HashSet<NodeId>) {
    let mut view = hub.view.subscribe();
    let (given_up, mut ended) = mpsc::channel(ADVERTISED_LINKS);
    let mut dialing = Dialing {
        bounds: bounds.clone(),
        configured,
        under_way: HashMap::new(),
        resting: HashMap::new(),
    };
    loop {
        let now = Instant::now();
        let begin = dialing.look(&view.borrow_and_update(), now);
        for (node, ad) in begin {
            let stop = hub.stop.child_token();
            let target = target(&hub, &node, &ad, &bounds);
            let (hub, over, given_up) = (hub.clone(), stop.clone(), given_up.clone());
            dialing.under_way.insert(node.clone(), (ad, stop));
            hub.tasks.clone().spawn(async move {
                let done = tokio::select! {
                    () = over.cancelled() => return,
                    () = keep(hub, target) => given_up.send((node, over)),
                };
                // Nobody asks any more when the mesh has stopped.
                let _ = done.await;
            });
        }
        let wake = dialing.resting.values().map(|(_, until)| *until).min();
        let wake = wake.unwrap_or(now + ADVERTISED_REST);
        tokio::select! {
            () = hub.stop.cancelled() => return,
            changed = view.changed() => if changed.is_err() { return },
            Some((node, stop)) = ended.recv() => {
                // Not one that was called off, and perhaps begun anew, meanwhile.
                if !stop.is_cancelled() {
                    dialing.rest(node, Instant::now());
                }
            }
            () = sleep_until(wake) => {}
        }
        tokio::select! {
            () = hub.stop.cancelled() => return,
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

fn target(hub: &Hub, node: &NodeId, ad: &Ad, bounds: &Bounds) -> Target {
    let spot = |url: &Url| Spot::advertised(hub, node, url.clone(), bounds.clone());
    Target {
        node: node.clone(),
        key: Some(ad.key),
        spots: ad.urls.iter().map(spot).collect(),
        tries: Some(ADVERTISED_TRIES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{
        testkit::{carriage, node},
        view::Descriptor,
    };

    /// A pinned node behind a relay that advertises these addresses.
    fn seen(name: &str, addresses: &[&str]) -> NodeView {
        NodeView {
            node: node(name),
            key_id: Some(KeyId([7; 16])),
            level: Some(Level::Pinned),
            reach: Reach::Relay,
            reachable_via: None,
            latency_ms: None,
            descriptor: Arc::new(Descriptor {
                addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
                ..Descriptor::default()
            }),
            load: None,
            last_seen: None,
            problem: None,
        }
    }

    fn view(nodes: Vec<NodeView>) -> View {
        View {
            nodes: nodes.into_iter().map(|n| (n.node.clone(), n)).collect(),
            ..View::default()
        }
    }

    fn dialing() -> Dialing {
        Dialing {
            bounds: Bounds::own_networks(),
            configured: HashSet::from([node("peer")]),
            under_way: HashMap::new(),
            resting: HashMap::new(),
        }
    }

    impl Dialing {
        /// Looks, and begins what is to begin. The names of that.
        fn begin(&mut self, view: &View, now: Instant) -> Vec<String> {
            let begin = self.look(view, now);
            let names = begin.iter().map(|(node, _)| node.to_string()).collect();
            let running = |(node, ad)| (node, (ad, CancellationToken::new()));
            self.under_way.extend(begin.into_iter().map(running));
            names
        }
    }

    const GOOD: &[&str] = &["ws://10.0.0.5:19000"];

    #[tokio::test(start_paused = true)]
    async fn only_met_nodes_without_a_link_are_dialed_where_it_is_permitted() {
        let mut heard = seen("heard", GOOD);
        heard.level = Some(Level::Seen);
        let mut trusted = seen("trusted", GOOD);
        trusted.level = Some(Level::Trusted);
        let (mut away, mut linked) = (seen("away", GOOD), seen("linked", GOOD));
        (away.reach, linked.reach) = (Reach::Unreachable, Reach::Direct);
        let view = view(vec![
            heard,
            trusted,
            away,
            linked,
            seen("peer", GOOD),
            seen("silent", &[]),
            seen("here", &["ws://127.0.0.1:19000", "ws://[::1]:19000"]),
            seen("outside", &["ws://203.0.113.7:19000"]),
            seen("odd", &["ws://167772165:19000"]),
            seen("named", &["ws://127.0.0.1", "wss://office.example"]),
        ]);
        let begun = dialing().look(&view, Instant::now());
        let names: Vec<&str> = begun.iter().map(|(node, _)| node.as_str()).collect();
        assert_eq!(names, ["trusted", "named", "away"]);
        let urls: Vec<&str> = begun[1].1.urls.iter().map(Url::as_str).collect();
        assert_eq!(urls, ["wss://office.example/mesh/v1"], "to be looked up");
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_at_once_and_links_count() {
        let names: Vec<String> = (0..20).map(|n| format!("n{n:02}")).collect();
        let mut view = view(names.iter().map(|name| seen(name, GOOD)).collect());
        let (mut dialing, now) = (dialing(), Instant::now());
        assert_eq!(dialing.begin(&view, now), names[..ADVERTISED_LINKS]);
        assert!(dialing.begin(&view, now).is_empty());
        // One is met and says at once that it is elsewhere: its link goes on, and so does its count.
        let mut met = seen("n00", &["ws://10.0.0.6:19000"]);
        met.reach = Reach::Direct;
        view.nodes.insert(met.node.clone(), met);
        let mut link = carriage();
        link.advertised = true;
        view.links.insert(node("n00"), link);
        assert!(dialing.begin(&view, now).is_empty());
        assert_eq!(dialing.under_way.len(), ADVERTISED_LINKS - 1);
        // Another one is linked by its own doing: its turn is free.
        let mut linked = seen("n01", GOOD);
        linked.reach = Reach::Direct;
        view.nodes.insert(linked.node.clone(), linked);
        view.links.insert(node("n01"), carriage());
        let stop = dialing.under_way[&node("n01")].1.clone();
        assert_eq!(dialing.begin(&view, now), ["n08"]);
        assert!(stop.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_met_is_left_alone_for_a_while() {
        let mut view = view(vec![seen("a", GOOD)]);
        let (mut dialing, now) = (dialing(), Instant::now());
        assert_eq!(dialing.begin(&view, now), ["a"]);
        dialing.rest(node("a"), now);
        assert!(dialing.begin(&view, now).is_empty());
        assert_eq!(dialing.begin(&view, now + ADVERTISED_REST), ["a"]);
        dialing.rest(node("a"), now);
        let moved = seen("a", &["ws://10.0.0.6:19000"]);
        view.nodes.insert(moved.node.clone(), moved);
        assert_eq!(dialing.begin(&view, now), ["a"], "it is elsewhere now");
        let mut other = seen("a", &["ws://10.0.0.6:19000"]);
        other.key_id = Some(KeyId([8; 16]));
        view.nodes.insert(other.node.clone(), other);
        assert_eq!(dialing.begin(&view, now), ["a"], "with its new key");
        view.nodes.clear();
        assert!(dialing.begin(&view, now).is_empty() && dialing.under_way.is_empty());
    }
}
