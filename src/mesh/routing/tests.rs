//! Ways through small graphs. Numbers T.. are those of protocol 10.

use super::*;
use crate::mesh::testkit::node;

fn id(name: &str) -> KeyId {
    let mut key = [0; 16];
    key[..name.len()].copy_from_slice(name.as_bytes());
    KeyId(key)
}

/// A graph by its edges; nodes whose name begins with `r` relay.
fn graph(edges: &[(&str, &str, u32)]) -> Topology {
    let mut names: Vec<&str> = edges.iter().flat_map(|(a, b, _)| [*a, *b]).collect();
    names.sort_unstable();
    names.dedup();
    let at = |name: &str| names.iter().position(|n| *n == name).unwrap();
    let vertices = names.iter().map(|name| {
        let edges = edges.iter().filter_map(|(a, b, cost)| match () {
            () if a == name => Some((at(b), *cost)),
            () if b == name => Some((at(a), *cost)),
            () => None,
        });
        Vertex {
            node: node(name),
            key: id(name),
            relay: name.starts_with('r'),
            edges: edges.collect(),
        }
    });
    Topology {
        vertices: vertices.collect(),
    }
}

fn first(name: &str, cost: u16) -> FirstHop {
    FirstHop {
        node: node(name),
        key: id(name),
        cost,
        suspect: false,
        leaving: false,
    }
}

fn plain(topology: &Topology, hops: &[FirstHop]) -> Ways {
    let none = Penalties::default();
    ways(topology, hops, &none, &Ways::new(), Instant::now())
}

fn via(ways: &Ways, to: &str) -> Option<(String, u32)> {
    let way = ways.get(&node(to))?;
    Some((way.via.to_string(), way.cost))
}

#[test]
fn the_cheapest_way_leads_through_relays_alone() {
    let graph = graph(&[
        ("r1", "r2", 10),
        ("r1", "x", 1),
        ("x", "far", 1),
        ("r2", "far", 10),
    ]);
    let ways = plain(&graph, &[first("r1", 20)]);
    assert_eq!(via(&ways, "r1"), Some(("r1".into(), 20)));
    assert_eq!(via(&ways, "r2"), Some(("r1".into(), 35)));
    assert_eq!(via(&ways, "far"), Some(("r1".into(), 50)), "not through x");
    assert_eq!(ways[&node("far")].rtt(), Duration::from_millis(40));
    assert_eq!(via(&ways, "nowhere"), None);
}

#[test]
fn a_link_of_our_own_is_the_way_unless_it_is_in_doubt() {
    let graph = graph(&[("r1", "far", 1), ("r2", "r3", 1), ("r3", "r1", 1)]);
    let mut hops = [first("r1", 1), first("far", 100)];
    assert_eq!(via(&plain(&graph, &hops), "far"), Some(("far".into(), 100)));
    hops[1].suspect = true;
    assert_eq!(via(&plain(&graph, &hops), "far"), Some(("r1".into(), 7)));
    hops[0].leaving = true;
    assert_eq!(via(&plain(&graph, &hops), "far"), Some(("far".into(), 400)));
    assert_eq!(via(&plain(&graph, &hops), "r1"), Some(("r1".into(), 1)));
    assert_eq!(via(&plain(&graph, &hops), "r3"), None);
}

#[test]
fn a_neighbour_of_whom_nothing_is_known_is_reached() {
    let ways = plain(&Topology::default(), &[first("a", 3)]);
    assert_eq!(via(&ways, "a"), Some(("a".into(), 3)));
}

#[test]
fn ties_are_settled_by_key() {
    let graph = graph(&[("r1", "far", 10), ("r2", "far", 10)]);
    for hops in [
        [first("r1", 10), first("r2", 10)],
        [first("r2", 10), first("r1", 10)],
    ] {
        assert_eq!(via(&plain(&graph, &hops), "far").unwrap().0, "r1");
    }
}

#[test]
fn an_old_way_is_kept_unless_another_is_a_fifth_better() {
    let graph = graph(&[("r1", "far", 50), ("r2", "far", 50)]);
    let none = Penalties::default();
    let now = Instant::now();
    let old = plain(&graph, &[first("r2", 50)]);
    let again = |cost: u16| {
        let hops = [first("r1", cost), first("r2", 50)];
        via(&ways(&graph, &hops, &none, &old, now), "far")
            .unwrap()
            .0
    };
    assert_eq!(again(40), "r2", "95 against 105");
    assert_eq!(again(20), "r1", "75 against 105");
}

#[test]
fn an_old_way_that_leads_back_is_not_kept() {
    // Our old next hop lies behind us: it would send frames for `far` back to us.
    let graph = graph(&[("r1", "far", 100), ("r2", "r3", 10), ("r3", "far", 200)]);
    let none = Penalties::default();
    let now = Instant::now();
    let old = plain(&graph, &[first("r2", 1)]);
    let hops = [first("r1", 90), first("r2", 1)];
    assert_eq!(
        via(&ways(&graph, &hops, &none, &old, now), "far")
            .unwrap()
            .0,
        "r1"
    );
}

/// T68: a relay that draws frames with a low cost and loses them.
#[test]
fn a_relay_that_loses_frames_loses_its_traffic_for_a_while() {
    let graph = graph(&[("r1", "far", 1), ("r2", "far", 200)]);
    let hops = [first("r1", 1), first("r2", 100)];
    let mut penalties = Penalties::default();
    let now = Instant::now();
    let old = plain(&graph, &hops);
    assert_eq!(via(&old, "far").unwrap().0, "r1");
    assert!(penalties.punish(&node("r1"), now));
    assert!(
        !penalties.punish(&node("r1"), now),
        "once for a burst of losses"
    );
    let next = ways(&graph, &hops, &penalties, &old, now);
    assert_eq!(via(&next, "far").unwrap().0, "r2");
    assert_eq!(
        via(&next, "r1").unwrap(),
        ("r1".into(), 1),
        "itself it is reached"
    );
    let later = now + PENALTY_TIME;
    assert_eq!(penalties.next(now), Some(later));
    let back = ways(&graph, &hops, &penalties, &next, later);
    assert_eq!(via(&back, "far").unwrap().0, "r1");
    assert!(penalties.punish(&node("r1"), later));
    assert_eq!(penalties.next(later), Some(later + 2 * PENALTY_TIME));
    // Where there is no other way it is used all the same.
    let alone = ways(&graph, &hops[..1], &penalties, &next, later);
    assert_eq!(via(&alone, "far").unwrap().0, "r1");
}
