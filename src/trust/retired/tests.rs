//! T27 as far as the trust store decides it; signatures are checked before.

use super::*;
use crate::{
    config::{TrustConfig, TrustedNode},
    crypto::identity::Identity,
    state::StateDir,
    trust::{Followed, Level, Refusal, TrustError, TrustStore, Via},
};

fn key() -> PublicKey {
    Identity::generate().public()
}

fn name(text: &str) -> NodeId {
    text.parse().unwrap()
}

fn rotation(node: &str, old: PublicKey, new: PublicKey, seq: u64) -> Rotation {
    Rotation {
        node: name(node),
        old,
        new,
        seq,
        ts: 0,
    }
}

fn tofu() -> TrustStore {
    TrustStore::in_memory(&TrustConfig::default(), &[]).unwrap()
}

#[test]
fn the_new_key_takes_level_and_labels_and_the_old_one_is_worthless() {
    let store = tofu();
    let (office, old, new) = (name("office"), key(), key());
    store.add(&office, &old, &["family".into()]).unwrap();
    let mut changes = store.subscribe();
    changes.mark_unchanged();
    let record = rotation("office", old, new, 5);
    assert_eq!(store.follow(&record), Ok(Followed::Now));
    assert!(changes.has_changed().unwrap(), "links are looked at");
    let now = store.standing(&office, &new).unwrap();
    assert_eq!(
        (now.level, &now.labels[..]),
        (Level::Trusted, &["family".to_owned()][..])
    );
    assert_eq!(store.standing(&office, &old), None);
    assert_eq!(store.conflicts(), []);
    // The same record again is no news and no attack.
    assert_eq!(store.follow(&record), Ok(Followed::Known));
    assert_eq!(store.conflicts(), []);

    // A retired key later, under any name.
    for node in ["office", "elsewhere"] {
        let refusal = store.check(&name(node), &old).unwrap_err();
        assert!(matches!(refusal, Refusal::Retired { .. }), "{refusal}");
    }
    assert_eq!(store.conflicts().len(), 2, "the operator is told");
    assert!(
        store.warnings()[1].contains("which it gave up for"),
        "{:?}",
        store.warnings()
    );
    for refused in [
        store.add(&office, &old, &[]),
        store.accept(&office, old.id()),
    ] {
        assert!(matches!(refused, Err(TrustError::Retired(_))));
    }
    // Unless the operator knows better.
    store.lift(old.id()).unwrap();
    store.remove(&office).unwrap();
    store.add(&office, &old, &[]).unwrap();
    assert!(store.standing(&office, &old).is_some());
}

#[test]
fn what_does_not_fit_is_refused_and_told_once() {
    let store = tofu();
    let (office, keys) = (name("office"), [key(), key(), key(), key()]);
    store.pin(&office, &keys[0], Via::Link).unwrap();
    assert_eq!(
        store.follow(&rotation("office", keys[0], keys[1], 5)),
        Ok(Followed::Now)
    );
    let cases = [
        // A replayed number, and one that is lower.
        (
            rotation("office", keys[1], keys[2], 5),
            NotFollowed::Replayed,
        ),
        (
            rotation("office", keys[1], keys[2], 4),
            NotFollowed::Replayed,
        ),
        // Another successor for a key that was given up, and back to one.
        (
            rotation("office", keys[0], keys[2], 9),
            NotFollowed::Retired,
        ),
        (
            rotation("office", keys[1], keys[0], 9),
            NotFollowed::Retired,
        ),
        // A key that does not count for the name.
        (
            rotation("office", keys[3], keys[2], 9),
            NotFollowed::OtherKey,
        ),
        (
            rotation("Office", keys[1], keys[2], 9),
            NotFollowed::OtherKey,
        ),
    ];
    for (record, why) in cases {
        assert_eq!(store.follow(&record), Err(why), "{record:?}");
        assert!(store.holds(&office, &keys[1]), "{record:?}");
    }
    let told = store.conflicts();
    assert_eq!(told.len(), 3, "once for each name and key: {told:?}");
    assert!(
        store
            .warnings()
            .iter()
            .all(|w| w.contains("would change its key to"))
    );

    store.deny(keys[2].id()).unwrap();
    let denied = store.follow(&rotation("office", keys[1], keys[2], 9));
    assert_eq!(denied, Err(NotFollowed::Denied));
}

#[test]
fn four_a_day_are_followed() {
    let store = tofu();
    let office = name("office");
    let keys: Vec<PublicKey> = (0..6).map(|_| key()).collect();
    store.pin(&office, &keys[0], Via::Link).unwrap();
    for (pair, seq) in keys.windows(2).zip(1..) {
        let followed = store.follow(&rotation("office", pair[0], pair[1], seq));
        if seq <= 4 {
            assert_eq!(followed, Ok(Followed::Now));
        } else {
            assert_eq!(followed, Err(NotFollowed::TooMany));
        }
    }
    assert!(store.holds(&office, &keys[4]));
}

#[test]
fn a_key_in_the_configuration_is_followed_and_the_operator_told_to_write_the_new_one() {
    let (old, new) = (key(), key());
    let config = TrustConfig {
        explicit: true,
        nodes: vec![TrustedNode {
            node: name("office"),
            key: Some(old),
            labels: vec![],
        }],
    };
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let load = || TrustStore::load(&dir, &config, &[]).unwrap();
    let store = load();
    assert_eq!(
        store.follow(&rotation("office", old, new, 5)),
        Ok(Followed::Now)
    );
    assert!(store.is_unsaved());
    store.save();
    assert!(!store.is_unsaved());
    for store in [store, load()] {
        let admission = store.check(&name("office"), &new).unwrap();
        assert_eq!(admission.level, Level::Trusted);
        assert!(store.check(&name("office"), &old).is_err());
        assert!(
            store
                .warnings()
                .iter()
                .any(|w| w.contains(&new.to_string()))
        );
        assert_eq!(store.list()[0].key, new);
    }
}

#[test]
fn strangers_are_not_remembered_and_known_ones_lose_their_old_key() {
    let store = tofu();
    let (old, new) = (key(), key());
    let record = rotation("office", old, new, 5);
    assert_eq!(store.follow(&record), Ok(Followed::Stranger));
    assert!(!store.is_unsaved());
    // Met after its change: the old key must not get another name either.
    store.pin(&name("office"), &new, Via::Link).unwrap();
    assert_eq!(store.follow(&record), Ok(Followed::Before));
    assert!(store.check(&name("attic"), &old).is_err());
    // Of a node known by its records alone.
    let (first, second) = (key(), key());
    store.see(&name("cellar"), &first, false).unwrap();
    assert_eq!(
        store.follow(&rotation("cellar", first, second, 5)),
        Ok(Followed::Now)
    );
    assert_eq!(store.see(&name("cellar"), &second, false), Ok(Level::Seen));
    assert!(store.see(&name("cellar"), &first, false).is_err());
}
