use globset::{Glob, GlobSetBuilder};

use super::*;
use crate::{crypto::identity::PublicKey, ids::Boot, trust::Level};

fn config(id: &str) -> ModelConfig {
    ModelConfig {
        id: id.into(),
        provider: None,
        upstream_model: None,
        base_url: None,
        api_key: None,
        api: None,
        description: String::new(),
        reasoning: None,
        input: None,
        cost: None,
        context_window: None,
        max_tokens: None,
        max_concurrent: None,
        locality: None,
        allow: None,
    }
}

fn entry(base_url: &str, models: &[&str]) -> ProviderEntry {
    ProviderEntry {
        base_url: base_url.into(),
        api: "openai-completions".into(),
        headers: BTreeMap::new(),
        api_key: Some("sk-12345678".into()),
        models: models
            .iter()
            .map(|id| ModelOffer {
                id: (*id).into(),
                context_window: 9000,
                ..ModelOffer::default()
            })
            .collect(),
    }
}

fn peer(node: &str, level: Level, labels: &[&str]) -> Peer {
    Peer {
        node: node.parse().unwrap(),
        key: PublicKey([1; 32]),
        boot: Boot([0; 16]),
        level,
        labels: labels.iter().map(|l| (*l).to_owned()).collect(),
    }
}

fn allow(patterns: &[&str], labels: &[&str]) -> Allow {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).unwrap());
    }
    Allow {
        patterns: patterns.iter().map(|p| (*p).to_owned()).collect(),
        nodes: set.build().unwrap(),
        labels: labels.iter().map(|l| (*l).to_owned()).collect(),
    }
}

fn lend(models: Vec<ModelConfig>, auto: bool, providers: &[(&str, ProviderEntry)]) -> LentModels {
    let providers = providers
        .iter()
        .map(|(n, e)| ((*n).to_owned(), e.clone()))
        .collect();
    LentModels::new(models, auto, 19001, &providers, None)
}

#[tokio::test]
async fn a_model_takes_what_its_provider_knows() {
    let mut named = config("claude");
    named.provider = Some("corp".into());
    named.upstream_model = Some("claude-4".into());
    named.max_tokens = Some(7);
    let lent = lend(
        vec![named],
        false,
        &[("corp", entry("http://p:1/v1", &["claude-4"]))],
    );
    let found = lent.find("claude", None).unwrap();
    assert_eq!(found.model.upstream, "claude-4");
    assert_eq!(found.model.offer.context_window, 9000);
    assert_eq!(found.model.offer.max_tokens, 7);
    assert_eq!(found.model.offer.input, ["text"]);
    assert_eq!(found.model.endpoint.host, "p");
}

#[tokio::test]
async fn a_provider_that_stays_away_is_news_once() {
    let lent = lend(
        vec![config("b/m")],
        false,
        &[("b", entry("http://b/v1", &["m"]))],
    );
    let model = || lent.find("b/m", None).unwrap().model.clone();
    for (answers, news) in [(true, false), (false, true), (false, false), (true, true)] {
        assert_eq!(model().provider_answers(answers), news, "{answers}");
    }
    // A provider table handed over again is no news either.
    model().provider_answers(false);
    lent.set_providers(&BTreeMap::from([(
        "b".to_owned(),
        entry("http://b/v1", &["m"]),
    )]));
    assert!(!model().provider_answers(false));
}

#[tokio::test]
async fn a_model_without_provider_is_looked_for() {
    let providers = [
        ("a", entry("http://a/v1", &["m", "x/y"])),
        ("b", entry("http://b/v1", &["m"])),
    ];
    let lent = lend(
        vec![config("x/y"), config("b/m"), config("m"), config("zz")],
        false,
        &providers,
    );
    assert_eq!(lent.find("x/y", None).unwrap().model.upstream, "x/y");
    assert_eq!(lent.find("b/m", None).unwrap().model.upstream, "m");
    let warnings = &lent.table().warnings;
    assert_eq!(warnings.len(), 2);
    assert!(warnings[0].contains("both `a` and `b`"), "{warnings:?}");
    assert!(warnings[1].contains("`zz` is not lent"), "{warnings:?}");
}

#[tokio::test]
async fn auto_lends_everything_but_our_own_local_api() {
    let lent = lend(
        vec![],
        true,
        &[
            ("a", entry("http://a/v1", &["m", "n"])),
            ("b", entry("http://b/v1", &["m"])),
            (
                "office-01",
                entry("http://127.0.0.1:19001/nodes/office-01/v1", &["q"]),
            ),
        ],
    );
    let ids: Vec<_> = lent.offers().into_iter().map(|o| o.id).collect();
    assert_eq!(ids, ["b/m", "m", "n"]);
}

#[tokio::test]
async fn allow_lists_hold_by_name_trust_and_label() {
    let mut secret = config("s");
    secret.base_url = Some(Url::parse("http://h/v1").unwrap());
    secret.allow = Some(allow(&["home-*", "lab-01"], &["family"]));
    let mut open = config("o");
    open.base_url = Some(Url::parse("http://h/v1").unwrap());
    let lent = lend(vec![secret, open], false, &[]);
    for (caller, may) in [
        (peer("home-01", Level::Pinned, &[]), false),
        (peer("home-01", Level::Trusted, &[]), true),
        (peer("lab-01", Level::Pinned, &[]), true),
        (peer("lab-02", Level::Trusted, &[]), false),
        (peer("x", Level::Pinned, &["family"]), true),
        (peer("lab-01", Level::Seen, &["family"]), false),
    ] {
        assert_eq!(lent.find("s", Some(&caller)).is_some(), may, "{caller:?}");
        assert_eq!(
            lent.find("o", Some(&caller)).is_some(),
            caller.level >= Level::Pinned
        );
    }
}

#[tokio::test]
async fn places_are_limited_across_a_rebuild() {
    let mut one = config("m");
    one.base_url = Some(Url::parse("http://h/v1").unwrap());
    one.max_concurrent = Some(1);
    let lent = lend(vec![one], false, &[]);
    let place = lent.find("m", None).unwrap().enter().unwrap();
    lent.set_providers(&BTreeMap::new());
    let again = lent.find("m", None).unwrap();
    assert!(again.enter().is_none());
    assert_eq!(again.model.active(), 1);
    drop(place);
    assert!(again.enter().is_some());
}

#[tokio::test(start_paused = true)]
async fn load_counts_places_of_all_models_and_tells_of_changes() {
    let url = || Some(Url::parse("http://h/v1").unwrap());
    let (mut one, mut two) = (config("one"), config("two"));
    (one.base_url, two.base_url) = (url(), url());
    one.max_concurrent = Some(3);
    two.max_concurrent = Some(1);
    let lent = lend(vec![one.clone(), two], false, &[]);
    let now = |lent: &LentModels| {
        let load = lent.load().unwrap();
        (load.active, load.cap)
    };
    lent.load_changed().await;
    assert_eq!(now(&lent), (0, 4));
    let place = lent.find("two", None).unwrap().enter().unwrap();
    lent.load_changed().await;
    assert_eq!(now(&lent), (1, 4));
    assert!(lent.find("two", None).unwrap().enter().is_none());
    drop(place);
    lent.load_changed().await;
    assert_eq!(now(&lent), (0, 4));
    let unchanged = timeout(std::time::Duration::from_secs(60), lent.load_changed()).await;
    assert!(unchanged.is_err());

    assert_eq!(lend(Vec::new(), false, &[]).load(), None);
    one.max_concurrent = None;
    let unbounded = lend(vec![one], false, &[]);
    let _place = unbounded.find("one", None).unwrap().enter().unwrap();
    let share = unbounded.load().unwrap().share().unwrap();
    assert!(share > 0.0 && share < 0.01, "{share}");
}

#[tokio::test(start_paused = true)]
async fn the_pace_of_late_answers_is_told() {
    let lent = lend(
        vec![config("m")],
        false,
        &[("a", entry("http://a/v1", &["m"]))],
    );
    let told = || lent.load().unwrap().ttfb_ms;
    assert_eq!(told(), 0, "not known");
    let place = lent.find("m", None).unwrap().enter().unwrap();
    lent.load_changed().await;
    place.began(std::time::Duration::ZERO);
    lent.load_changed().await;
    assert_eq!(told(), 1, "0 would say that nothing is known");
    for (ms, expected) in [(801, 201), (801, 351), (1, 264)] {
        place.began(std::time::Duration::from_millis(ms));
        assert_eq!(told(), expected);
    }
    for _ in 0..64 {
        place.began(std::time::Duration::from_secs(u64::MAX));
    }
    assert!(told() > u32::MAX / 2);
}

#[derive(Debug)]
struct Fresh(Mutex<Option<LentModels>>, AtomicU32);

impl KeyRefresher for Arc<Fresh> {
    fn refresh(&self, provider: String) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let this = self.clone();
        Box::pin(async move {
            this.1.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            let mut new = entry("http://a/v1", &["m"]);
            new.api_key = Some("sk-fresh-key".into());
            let lent = this.0.lock().unwrap().clone().unwrap();
            lent.set_providers(&BTreeMap::from([(provider, new)]));
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_is_asked_for_once() {
    let fresh = Arc::new(Fresh(Mutex::new(None), AtomicU32::new(0)));
    let providers = BTreeMap::from([("a".to_owned(), entry("http://a/v1", &["m"]))]);
    let lent = LentModels::new(
        vec![config("m")],
        false,
        1,
        &providers,
        Some(Arc::new(fresh.clone())),
    );
    *fresh.0.lock().unwrap() = Some(lent.clone());
    let old = lent.find("m", None).unwrap().model.endpoint.clone();
    let (a, b) = tokio::join!(
        lent.fresh_endpoint("m", &old),
        lent.fresh_endpoint("m", &old)
    );
    assert!(a.is_some() && b.is_some());
    assert_eq!(fresh.1.load(Ordering::Relaxed), 1);
    // Refused again at once: no other key, and no question either.
    assert!(lent.fresh_endpoint("m", &a.unwrap()).await.is_none());
    assert_eq!(fresh.1.load(Ordering::Relaxed), 1);
}
