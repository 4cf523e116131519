use super::*;
use crate::crypto::identity::Label;

fn state() -> (tempfile::TempDir, StateDir) {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::open(temp.path().join("state")).unwrap();
    (temp, state)
}

fn node() -> NodeId {
    "office-01".parse().unwrap()
}

fn key_file(state: &StateDir) -> Identity {
    Identity::load_or_create(state, None).unwrap()
}

/// A start of the node: the key it begins with and the rotations it shows.
fn start(state: &StateDir) -> (PublicKey, Vec<Rotation>) {
    let (identity, records) = take_over(state, key_file(state), true).unwrap();
    let rotations = records.iter().map(|r| verified(r).unwrap()).collect();
    (identity.public(), rotations)
}

#[test]
fn a_prepared_key_is_in_force_from_the_next_start() {
    let (_temp, state) = state();
    let (old, none) = start(&state);
    assert_eq!(none, []);
    let new = prepare(&state, &node(), &key_file(&state))
        .unwrap()
        .public();
    assert_eq!(
        key_file(&state).public(),
        old,
        "the running node keeps its key"
    );
    assert_eq!(prepared(&state, old).unwrap(), Some(new));
    let again = prepare(&state, &node(), &key_file(&state));
    assert!(matches!(again, Err(RotationError::Prepared)));

    let (first, shown) = start(&state);
    assert_eq!(first, new);
    assert_eq!(shown.len(), 1);
    assert_eq!((&shown[0].old, &shown[0].new), (&old, &new));
    assert_eq!(start(&state), (new, shown.clone()), "and stays so");
    assert!(
        state.read(NEXT).unwrap().is_none(),
        "no second copy of the key"
    );
    assert_eq!(prepared(&state, new).unwrap(), None);

    let third = prepare(&state, &node(), &key_file(&state))
        .unwrap()
        .public();
    let (key, shown) = start(&state);
    assert_eq!(key, third);
    assert!(shown[1].seq > shown[0].seq);
    assert_eq!(earlier(&state, third), [new, old]);
}

/// Killed between any two writes, a node starts with one whole identity: a key, and records that lead
/// to it.
#[test]
fn a_kill_leaves_the_old_or_the_new_identity_whole() {
    let files = ["identity.key", NEXT, RECORDS];
    let copy = |state: &StateDir| files.map(|name| state.read(name).unwrap());
    let (_temp, state) = state();
    let (old, _) = start(&state);
    let before = copy(&state);
    prepare(&state, &node(), &key_file(&state)).unwrap();
    let ready = copy(&state);
    let (new, _) = start(&state);
    let after = copy(&state);
    // In the order of the writes: the seed, the records, the key, the seed removed.
    let steps = [
        [&before[0], &before[1], &before[2]],
        [&before[0], &ready[1], &before[2]],
        [&before[0], &ready[1], &ready[2]],
        [&after[0], &ready[1], &ready[2]],
        [&after[0], &after[1], &after[2]],
        // Not one of ours: the seed was lost.
        [&before[0], &None, &ready[2]],
    ];
    for (at, step) in steps.into_iter().enumerate() {
        for (name, bytes) in files.iter().zip(step) {
            match bytes {
                Some(bytes) => state.write(name, bytes).unwrap(),
                None => state.remove(name),
            }
        }
        let (key, shown) = start(&state);
        let expected = if matches!(at, 2..=4) { new } else { old };
        assert_eq!(key, expected, "step {at}");
        assert_eq!(
            shown.last().map_or(old, |last| last.new),
            expected,
            "step {at}"
        );
        // Whatever happened, another rotation is possible.
        assert!(
            prepare(&state, &node(), &key_file(&state)).is_ok(),
            "step {at}"
        );
    }
}

#[test]
fn a_key_that_is_handed_over_is_left_alone() {
    let (_temp, state) = state();
    let held = key_file(&state);
    prepare(&state, &node(), &held).unwrap();
    let (identity, shown) = take_over(&state, key_file(&state), false).unwrap();
    assert_eq!(identity.public(), held.public());
    assert_eq!(shown, []);
    assert_eq!(start(&state).0, held.public(), "given up for good");
}

#[test]
fn damaged_records_are_told() {
    let (_temp, state) = state();
    state.write(RECORDS, b"{").unwrap();
    let error = take_over(&state, key_file(&state), true).unwrap_err();
    assert!(matches!(error, RotationError::Damaged(_)), "{error}");
}

/// T27: both signatures count, and the header must say what the payload says.
#[test]
fn a_record_holds_only_with_both_signatures() {
    let (old, new, other) = (
        Identity::generate(),
        Identity::generate(),
        Identity::generate(),
    );
    let rotation = Rotation {
        node: node(),
        old: old.public(),
        new: new.public(),
        seq: 9,
        ts: 1,
    };
    let check = |record: &Signed| {
        let claim = signed::claim(&record.header)?;
        verify(&claim, &record.header, &record.body)
    };
    let good = sign(&rotation, &old, &new);
    assert_eq!(check(&good), Ok(rotation.clone()));
    // The old key's is missing: somebody else signed the record.
    assert_eq!(
        check(&sign(&rotation, &other, &new)),
        Err(RecordError::Malformed)
    );
    let mut forged = good.body.to_vec();
    forged[2..66].copy_from_slice(&other.sign(Label::Record, &[]));
    assert_eq!(
        check(&Signed::copied(&good.header, &forged)),
        Err(RecordError::Forged)
    );
    // The new key's is missing.
    assert_eq!(
        check(&sign(&rotation, &old, &other)),
        Err(RecordError::Malformed)
    );
    // A payload under another header.
    let payload = rotation.payload(&new);
    for (name, version) in [
        ("office-02", (9, 1)),
        ("office-01", (10, 1)),
        ("office-01", (9, 2)),
    ] {
        let name = name.parse().unwrap();
        let record = signed::sign(&old, &name, RecordKind::Rotation, version, &payload);
        assert_eq!(
            check(&record),
            Err(RecordError::Malformed),
            "{name} {version:?}"
        );
    }
}

#[test]
fn what_a_door_shows_comes_back_and_garbage_is_passed_over() {
    let keys: Vec<Identity> = (0..7).map(|_| Identity::generate()).collect();
    let records: Vec<Signed> = keys
        .windows(2)
        .zip(1..)
        .map(|(pair, seq)| {
            let rotation = Rotation {
                node: "a".repeat(64).parse().unwrap(),
                old: pair[0].public(),
                new: pair[1].public(),
                seq: JSON_INTEGER_MAX - 10 + seq,
                ts: u64::MAX >> 11,
            };
            sign(&rotation, &pair[0], &pair[1])
        })
        .collect();
    assert_eq!(shown(&[]), None);
    let line = shown(&records).unwrap();
    assert!(line.len() < 6 * 1024, "{}", line.len());
    assert_eq!(
        read_shown(Some(&line)),
        records[records.len() - ROTATIONS_SHOWN..]
    );
    for text in ["", "a", ".", "a.b,,c", "!!.!!", &"a.a,".repeat(40_000)] {
        let value = http::HeaderValue::try_from(text).unwrap();
        assert!(read_shown(Some(&value)).len() <= ROTATIONS_SHOWN);
    }
    assert_eq!(read_shown(None), []);
}
