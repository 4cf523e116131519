//! Pins, conflicts, denials (protocol 2), and the file they live in.

use std::fs;

use super::*;
use crate::{
    config::TrustedNode,
    crypto::identity::Identity,
    wire::limits::{CONFLICTS, CONFLICTS_PER_NAME, FREE_PINS, NEW_PINS_PER_MINUTE, PINS},
};

fn name(text: &str) -> NodeId {
    text.parse().unwrap()
}

fn key() -> PublicKey {
    Identity::generate().public()
}

fn tofu() -> TrustStore {
    TrustStore::in_memory(&TrustConfig::default(), &[]).unwrap()
}

fn config(explicit: bool, nodes: &[(&str, Option<PublicKey>, &[&str])]) -> TrustConfig {
    let node = |(node, key, labels): &(&str, Option<PublicKey>, &[&str])| TrustedNode {
        node: name(node),
        key: *key,
        labels: labels.iter().map(|l| (*l).to_owned()).collect(),
    };
    TrustConfig {
        explicit,
        nodes: nodes.iter().map(node).collect(),
    }
}

fn peer(node: &str, key: Option<PublicKey>) -> PeerConfig {
    PeerConfig {
        node_id: name(node),
        url: "ws://127.0.0.1:19000/mesh/v1".parse().unwrap(),
        port_given: true,
        tls: crate::mesh::dial::tls::PeerTls::Web,
        proxy: None,
        key,
    }
}

#[test]
fn first_key_of_a_name_is_pinned_and_another_is_refused() {
    let store = tofu();
    let (first, second) = (key(), key());
    let node = name("office-01");
    assert!(store.check(&node, &first).unwrap().new);
    assert_eq!(store.level(&node, &first), None);
    let admission = store.pin(&node, &first, Via::Link).unwrap();
    assert_eq!(admission.level, Level::Pinned);
    assert_eq!(store.level(&node, &first), Some(Level::Pinned));
    let refusal = store.check(&node, &second).unwrap_err();
    let command = format!("clawmatrix trust accept office-01 {}", second.id());
    assert!(refusal.hint().contains(&command), "{}", refusal.hint());
    assert!(store.pin(&node, &second, Via::Link).is_err());
    assert_eq!(store.level(&node, &first), Some(Level::Pinned));
    let conflicts = store.conflicts();
    assert_eq!(conflicts.len(), 1);
    assert_eq!(conflicts[0].held, Some(first.id()));
    assert!(conflicts[0].hint.contains(&command));
    let warning = &store.warnings()[0];
    assert!(warning.contains("(refused 1 time);") && warning.contains(&command));
}

/// T79, the part that trust decides; other alphabets are not names at all.
#[test]
fn a_name_that_differs_only_in_case_is_refused() {
    let store = tofu();
    let known = key();
    store.pin(&name("office-01"), &known, Via::Link).unwrap();
    for other in [known, key()] {
        let refusal = store.check(&name("Office-01"), &other).unwrap_err();
        assert!(matches!(refusal, Refusal::LooksLike { .. }), "{refusal}");
    }
    let configured = TrustStore::in_memory(&config(false, &[("cellar", None, &["x"])]), &[]);
    let refusal = configured.unwrap().check(&name("CELLAR"), &key());
    assert!(matches!(refusal, Err(Refusal::LooksLike { .. })));
}

#[test]
fn accept_replaces_a_key_only_when_it_has_shown_up() {
    let store = tofu();
    let (old, new) = (key(), key());
    let node = name("office-01");
    store.pin(&node, &old, Via::Link).unwrap();
    assert!(matches!(
        store.accept(&node, new.id()),
        Err(TrustError::NotOffered { .. })
    ));
    store.check(&node, &new).unwrap_err();
    let mut changes = store.subscribe();
    changes.mark_unchanged();
    store.accept(&node, new.id()).unwrap();
    assert!(changes.has_changed().unwrap());
    assert_eq!(store.standing(&node, &old), None);
    assert_eq!(store.level(&node, &new), Some(Level::Trusted));
    assert!(store.conflicts().is_empty());
}

#[test]
fn accept_confirms_a_pinned_key() {
    let store = tofu();
    let pinned = key();
    let node = name("office-01");
    store.pin(&node, &pinned, Via::Link).unwrap();
    store.accept(&node, pinned.id()).unwrap();
    assert_eq!(store.level(&node, &pinned), Some(Level::Trusted));
}

#[test]
fn accept_can_give_a_name_another_case() {
    let store = tofu();
    let pinned = key();
    store.pin(&name("office-01"), &pinned, Via::Link).unwrap();
    store.check(&name("Office-01"), &pinned).unwrap_err();
    store.accept(&name("Office-01"), pinned.id()).unwrap();
    assert!(store.standing(&name("Office-01"), &pinned).is_some());
    assert!(store.check(&name("office-01"), &pinned).is_err());
}

#[test]
fn a_denied_key_is_refused_under_every_name_and_the_name_stays_taken() {
    let store = tofu();
    let bad = key();
    store.pin(&name("attic"), &bad, Via::Link).unwrap();
    store.deny(bad.id()).unwrap();
    assert_eq!(store.standing(&name("attic"), &bad), None);
    for node in ["attic", "other"] {
        assert_eq!(
            store.check(&name(node), &bad),
            Err(Refusal::Denied(bad.id()))
        );
    }
    assert!(store.check(&name("attic"), &key()).is_err());
    assert!(matches!(
        store.add(&name("attic"), &bad, &[]),
        Err(TrustError::Denied(_))
    ));
    assert!(matches!(
        store.accept(&name("attic"), bad.id()),
        Err(TrustError::Denied(_))
    ));
    store.lift(bad.id()).unwrap();
    assert!(store.standing(&name("attic"), &bad).is_some());
    assert!(matches!(store.lift(bad.id()), Err(TrustError::Unknown(_))));
}

#[test]
fn denial_beats_the_configuration() {
    let listed = key();
    let store = TrustStore::in_memory(&config(false, &[("attic", Some(listed), &[])]), &[]);
    let store = store.unwrap();
    store.deny(listed.id()).unwrap();
    assert!(store.check(&name("attic"), &listed).is_err());
}

#[test]
fn configured_keys_are_trusted_and_no_command_changes_them() {
    let (listed, other) = (key(), key());
    let trust = config(false, &[("attic", Some(listed), &["family"])]);
    let store = TrustStore::in_memory(&trust, &[peer("cellar", Some(other))]).unwrap();
    let admission = store.check(&name("attic"), &listed).unwrap();
    assert_eq!(admission.level, Level::Trusted);
    assert_eq!(&*admission.labels, ["family".to_owned()]);
    // First contact with an impostor leaves no pin (T08).
    let refusal = store.check(&name("cellar"), &listed).unwrap_err();
    assert!(!refusal.hint().contains("trust accept"));
    assert_eq!(store.list().len(), 2);
    assert!(matches!(
        store.accept(&name("cellar"), listed.id()),
        Err(TrustError::Configured(_))
    ));
    assert!(matches!(
        store.add(&name("cellar"), &listed, &[]),
        Err(TrustError::Configured(_))
    ));
    assert!(matches!(
        store.remove(&name("cellar")),
        Err(TrustError::Configured(_))
    ));
}

#[test]
fn a_configured_key_replaces_an_older_pin() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let (old, new) = (key(), key());
    let node = name("attic");
    let before = TrustStore::load(&dir, &TrustConfig::default(), &[]).unwrap();
    before.pin(&node, &old, Via::Link).unwrap();
    let store = TrustStore::load(&dir, &TrustConfig::default(), &[peer("attic", Some(new))]);
    let store = store.unwrap();
    assert!(store.check(&node, &old).is_err());
    assert!(store.pin(&node, &new, Via::Link).is_ok());
    assert_eq!(store.level(&node, &new), Some(Level::Trusted));
    let later = TrustStore::load(&dir, &TrustConfig::default(), &[]).unwrap();
    assert_eq!(later.level(&node, &new), Some(Level::Pinned));
}

#[test]
fn two_configured_keys_for_one_name_are_an_error() {
    let trust = config(false, &[("attic", Some(key()), &[])]);
    assert!(matches!(
        TrustStore::in_memory(&trust, &[peer("attic", Some(key()))]),
        Err(TrustError::TwoKeys(_))
    ));
}

#[test]
fn explicit_mode_admits_listed_keys_only() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let (listed, added, pinned, stranger) = (key(), key(), key(), key());
    let before = TrustStore::load(&dir, &TrustConfig::default(), &[]).unwrap();
    before.pin(&name("pinned"), &pinned, Via::Link).unwrap();
    let trust = config(true, &[("listed", Some(listed), &[])]);
    let store = TrustStore::load(&dir, &trust, &[]).unwrap();
    store.add(&name("added"), &added, &[]).unwrap();
    for (node, key) in [("listed", listed), ("added", added)] {
        assert_eq!(
            store.check(&name(node), &key).unwrap().level,
            Level::Trusted
        );
    }
    for (node, key) in [("pinned", pinned), ("stranger", stranger)] {
        let refusal = store.check(&name(node), &key).unwrap_err();
        assert!(matches!(refusal, Refusal::NotListed { .. }), "{refusal}");
        assert_eq!(store.standing(&name(node), &key), None);
    }
    // Whoever knocked can be let in by its short key id.
    store.accept(&name("stranger"), stranger.id()).unwrap();
    assert!(store.standing(&name("stranger"), &stranger).is_some());
}

#[test]
fn add_does_not_replace_a_key() {
    let store = tofu();
    let pinned = key();
    let node = name("attic");
    store.pin(&node, &pinned, Via::Link).unwrap();
    assert!(matches!(
        store.add(&node, &key(), &[]),
        Err(TrustError::Held { .. })
    ));
    store.add(&node, &pinned, &["family".into()]).unwrap();
    let standing = store.standing(&node, &pinned).unwrap();
    assert_eq!(standing.level, Level::Trusted);
    assert_eq!(&*standing.labels, ["family".to_owned()]);
    store.remove(&node).unwrap();
    assert_eq!(store.standing(&node, &pinned), None);
    assert!(matches!(store.remove(&node), Err(TrustError::Unknown(_))));
}

#[tokio::test(start_paused = true)]
async fn new_names_are_limited_a_minute_but_known_and_configured_ones_are_not() {
    let listed = key();
    let store = TrustStore::in_memory(&config(false, &[("listed", Some(listed), &[])]), &[]);
    let store = store.unwrap();
    // A whole mesh may show up at once, a flood of names may not.
    let mut last = (name("n"), key());
    for i in 0..FREE_PINS + NEW_PINS_PER_MINUTE as usize {
        last = (name(&format!("n{i}")), key());
        store.pin(&last.0, &last.1, Via::Link).unwrap();
    }
    assert_eq!(store.warnings(), Vec::<String>::new());
    let late = (name("late"), key());
    for _ in 0..2 {
        assert_eq!(store.check(&late.0, &late.1).unwrap_err(), Refusal::TooFast);
    }
    let [warning] = &store.warnings()[..] else {
        panic!("one warning: {:?}", store.warnings());
    };
    assert!(
        warning.contains("2 times, lately `late`") && warning.contains("within a minute"),
        "{warning}"
    );
    assert_eq!(store.crowded_total(), 2);
    assert!(store.pin(&last.0, &last.1, Via::Link).is_ok());
    assert!(store.pin(&name("listed"), &listed, Via::Link).is_ok());
    tokio::time::advance(std::time::Duration::from_secs(61)).await;
    assert!(store.check(&late.0, &late.1).is_ok());
}

#[tokio::test(start_paused = true)]
async fn nodes_that_a_trusted_neighbour_vouches_for_are_pinned_as_they_come() {
    let store = tofu();
    for i in 0..FREE_PINS + NEW_PINS_PER_MINUTE as usize {
        let node = name(&format!("n{i}"));
        store.pin(&node, &key(), Via::Link).unwrap();
    }
    let (vouched, met, other) = (key(), key(), key());
    store.see(&name("vouched"), &vouched, true).unwrap();
    // Another neighbour brings the same record later.
    store.see(&name("vouched"), &vouched, false).unwrap();
    store.see(&name("met"), &met, false).unwrap();
    let pin = |node: &str, key| store.pin(&name(node), key, Via::EndToEnd);
    assert!(pin("vouched", &vouched).is_ok());
    assert_eq!(pin("met", &met).unwrap_err(), Refusal::TooFast);
    assert!(matches!(
        pin("met", &other).unwrap_err(),
        Refusal::Conflict { .. }
    ));
    // Nor is the word of a neighbour good for a name once its record is gone.
    store.see(&name("gone"), &other, true).unwrap();
    store.forget(&name("gone"), &other);
    assert_eq!(pin("gone", &other).unwrap_err(), Refusal::TooFast);
}

/// T130, the part that trust decides.
#[tokio::test(start_paused = true)]
async fn pins_are_limited_in_all() {
    let store = tofu();
    let known = (name("first"), key());
    store.pin(&known.0, &known.1, Via::Link).unwrap();
    let mut refused = 0;
    for i in 0..10_000_u32 {
        if i % NEW_PINS_PER_MINUTE == 0 {
            tokio::time::advance(std::time::Duration::from_secs(61)).await;
        }
        // Any 32 bytes do: no signature is checked here.
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&i.to_be_bytes());
        let made = PublicKey(bytes);
        match store.pin(&name(&format!("sybil-{i}")), &made, Via::Link) {
            Ok(_) => {}
            Err(refusal) => {
                assert_eq!(refusal, Refusal::Full);
                refused += 1;
            }
        }
    }
    assert_eq!(store.list().len(), PINS);
    assert_eq!(refused, 10_001 - PINS);
    assert!(store.pin(&known.0, &known.1, Via::Link).is_ok());
}

#[test]
fn conflicts_are_counted_and_bounded() {
    let store = tofu();
    let held = key();
    for i in 0..CONFLICTS + 10 {
        let node = name(&format!("n{i}"));
        store.inner.book.lock().unwrap().pins_for_test(&node, &held);
    }
    let again = key();
    for _ in 0..5 {
        store.check(&name("n0"), &again).unwrap_err();
    }
    assert_eq!(store.conflicts().len(), 1);
    assert_eq!(store.conflicts()[0].count, 5);
    // One name that shows ever new keys does not push out another.
    for _ in 0..CONFLICTS * 2 {
        store.check(&name("n1"), &key()).unwrap_err();
    }
    assert_eq!(store.conflicts().len(), 1 + CONFLICTS_PER_NAME);
    for i in 2..CONFLICTS + 10 {
        store.check(&name(&format!("n{i}")), &key()).unwrap_err();
    }
    assert_eq!(store.conflicts().len(), CONFLICTS);
    assert_eq!(
        store.conflicts_total(),
        (5 + CONFLICTS * 2 + CONFLICTS + 8) as u64
    );
}

#[test]
fn pins_and_denials_survive_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let (pinned, trusted, bad) = (key(), key(), key());
    let store = TrustStore::load(&dir, &TrustConfig::default(), &[]).unwrap();
    store.pin(&name("a"), &pinned, Via::Link).unwrap();
    let labels = ["family".to_owned()];
    store.add(&name("b"), &trusted, &labels).unwrap();
    store.deny(bad.id()).unwrap();
    let again = TrustStore::load(&dir, &TrustConfig::default(), &[]).unwrap();
    assert_eq!(again.list(), store.list());
    assert_eq!(again.denied(), [bad.id()]);
    assert_eq!(again.level(&name("a"), &pinned), Some(Level::Pinned));
    let standing = again.standing(&name("b"), &trusted).unwrap();
    assert_eq!(standing.level, Level::Trusted);
    assert_eq!(*standing.labels, labels);
}

#[test]
fn a_damaged_file_is_refused_and_kept() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let pin = |level: &str| {
        let key = key();
        format!(r#"{{"key":"{key}","level":"{level}","firstSeen":1,"via":"link"}}"#)
    };
    let texts = [
        String::new(),
        "{".into(),
        "[]".into(),
        r#"{"pins":{"a/b":{}}}"#.into(),
        format!(r#"{{"pins":{{"a":{}}}}}"#, pin("seen")),
        format!(
            r#"{{"pins":{{"a":{},"A":{}}}}}"#,
            pin("pinned"),
            pin("pinned")
        ),
        format!(r#"{{"pins":{{"a":{}}}}} x"#, pin("pinned")),
    ];
    for text in texts {
        dir.write("pins.json", text.as_bytes()).unwrap();
        let error = TrustStore::load(&dir, &TrustConfig::default(), &[]).unwrap_err();
        assert!(matches!(error, TrustError::Damaged { .. }), "{text}");
        assert_eq!(dir.read("pins.json").unwrap().unwrap(), text.as_bytes());
    }
}

/// T104, the part of trust: a disk that refuses ends no link, and a denial holds all the same.
#[test]
fn a_disk_that_refuses_loses_no_decision() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("state");
    let dir = StateDir::open(&root).unwrap();
    let store = TrustStore::load(&dir, &TrustConfig::default(), &[]).unwrap();
    fs::remove_dir_all(&root).unwrap();
    let (pinned, bad) = (key(), key());
    assert!(store.pin(&name("a"), &pinned, Via::Link).is_ok());
    assert!(store.standing(&name("a"), &pinned).is_some());
    assert!(matches!(store.deny(bad.id()), Err(TrustError::State(_))));
    assert!(store.check(&name("b"), &bad).is_err());
}

/// Two handshakes with different keys for one new name at once: one of them wins, the other is told.
#[test]
fn simultaneous_first_contacts_pin_one_key() {
    let store = tofu();
    let node = name("new");
    let won: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let own = key();
                    let _ = store.check(&node, &own);
                    usize::from(store.pin(&node, &own, Via::Link).is_ok())
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(won, 1);
}
