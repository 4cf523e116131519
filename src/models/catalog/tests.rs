use super::*;
use crate::mesh::view::{Descriptor, NodeView, Reach};

struct World {
    _temp: tempfile::TempDir,
    dir: StateDir,
    view: watch::Sender<Arc<View>>,
}

fn world() -> World {
    let temp = tempfile::tempdir().unwrap();
    World {
        dir: StateDir::open(temp.path()).unwrap(),
        _temp: temp,
        view: watch::Sender::new(Arc::default()),
    }
}

impl World {
    fn catalog(&self, proxy_models: Vec<ProxyModel>) -> Catalog {
        let us = Us {
            node: "home".parse().unwrap(),
            min_trust: Level::Pinned,
            proxy_models,
        };
        let lent = LentModels::new(vec![], false, 19001, &BTreeMap::new(), None);
        Catalog::load(&us, 19001, lent, self.view.subscribe(), self.dir.clone()).unwrap()
    }

    fn see(&self, nodes: Vec<NodeView>) {
        let nodes = nodes.into_iter().map(|n| (n.node.clone(), n)).collect();
        self.view.send_replace(Arc::new(View {
            nodes,
            ..View::default()
        }));
    }
}

fn offer(id: &str) -> ModelOffer {
    ModelOffer {
        id: id.into(),
        api: "openai-completions".into(),
        context_window: 1000,
        input: vec!["text".into()],
        ..ModelOffer::default()
    }
}

fn node(name: &str, reach: Reach, models: Vec<ModelOffer>) -> NodeView {
    NodeView {
        node: name.parse().unwrap(),
        key_id: None,
        level: Some(Level::Pinned),
        reach,
        reachable_via: None,
        latency_ms: Some(1.0),
        descriptor: Arc::new(Descriptor {
            models,
            ..Descriptor::default()
        }),
        load: None,
        last_seen: None,
        problem: None,
    }
}

fn shown(catalog: &Catalog) -> Vec<String> {
    let entries = catalog.subscribe().borrow().clone();
    entries
        .iter()
        .flat_map(|e| {
            e.models
                .iter()
                .map(move |m| format!("{}/{} {}", e.provider, m.id, m.name))
        })
        .collect()
}

#[tokio::test]
async fn a_node_that_left_is_kept_until_it_is_forgotten() {
    let world = world();
    let catalog = world.catalog(vec![]);
    world.see(vec![node("office", Reach::Direct, vec![offer("qwen/q3")])]);
    assert!(catalog.refresh(now()));
    let all = [
        "office/qwen/q3 qwen/q3 @ office",
        "clawmatrix/qwen/q3 qwen/q3",
    ];
    assert_eq!(shown(&catalog), all);
    assert_eq!(catalog.usable().len(), 1);
    catalog.save().await;

    world.see(vec![]);
    assert!(!catalog.refresh(now()));
    assert_eq!(shown(&catalog), all);
    assert!(catalog.usable().is_empty());
    // A restart remembers too.
    let again = world.catalog(vec![]);
    assert_eq!(shown(&again), all);
    assert_eq!(again.forget(Some("nobody"), None).await.unwrap(), 0);
    assert_eq!(
        again.forget(Some("office"), Some("other")).await.unwrap(),
        0
    );
    assert_eq!(again.forget(Some("office"), None).await.unwrap(), 1);
    assert!(shown(&again).is_empty());
    assert!(shown(&world.catalog(vec![])).is_empty());
}

#[tokio::test]
async fn a_model_not_seen_for_thirty_days_leaves() {
    let world = world();
    let catalog = world.catalog(vec![]);
    world.see(vec![node("office", Reach::Direct, vec![offer("m")])]);
    catalog.refresh(now());
    world.see(vec![]);
    catalog.refresh(now() + 29 * 24 * 3600);
    assert_eq!(shown(&catalog).len(), 2);
    assert!(catalog.refresh(now() + 30 * 24 * 3600));
    assert!(shown(&catalog).is_empty());
}

#[tokio::test]
async fn only_what_openclaw_shows_makes_a_change() {
    let world = world();
    let catalog = world.catalog(vec![]);
    world.see(vec![node("office", Reach::Direct, vec![offer("m")])]);
    catalog.refresh(now());
    let mut entries = catalog.subscribe();
    entries.mark_unchanged();
    let with = |change: fn(&mut ModelOffer)| {
        let mut new = offer("m");
        change(&mut new);
        world.see(vec![node("office", Reach::Relay, vec![new])]);
        catalog.refresh(now());
    };
    with(|m| m.description = "busy".into());
    with(|m| m.max_tokens = 9);
    assert!(!entries.has_changed().unwrap());
    with(|m| m.context_window = 2000);
    assert!(entries.has_changed().unwrap());
}

#[tokio::test]
async fn promised_models_are_shown_before_their_node_is_seen() {
    let world = world();
    let catalog = world.catalog(vec![
        ProxyModel {
            id: "claude".into(),
            node_id: Some("office".parse().unwrap()),
            description: Some("Claude at work".into()),
        },
        ProxyModel {
            id: "any".into(),
            node_id: None,
            description: None,
        },
    ]);
    assert_eq!(
        shown(&catalog),
        [
            "office/claude Claude at work @ office",
            "clawmatrix/any any",
            "clawmatrix/claude Claude at work",
        ]
    );
    let entries = catalog.subscribe().borrow().clone();
    assert_eq!(
        entries[0].base_url,
        "http://127.0.0.1:19001/nodes/office/v1"
    );
    assert_eq!(entries[1].base_url, "http://127.0.0.1:19001/v1");
    assert_eq!(entries[0].models[0].context_window, 128_000);
}

#[tokio::test]
async fn a_damaged_memory_is_started_afresh() {
    let world = world();
    world.dir.write(KNOWN_MODELS, b"{\"a b\":").unwrap();
    assert!(shown(&world.catalog(vec![])).is_empty());
}
