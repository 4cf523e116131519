//! Whole handshakes over the in-memory transport: outcomes, close codes, and what was on the wire.

use std::{
    sync::Mutex,
    time::{Duration, SystemTime},
};

use bytes::BytesMut;

use super::*;
use crate::{
    config::{PeerConfig, TrustConfig},
    crypto::stretch::{MeshKey, SecretId},
    mesh::{
        dial::tls::PeerTls,
        memory::{self, Direction, End},
    },
    trust::Level,
    wire::limits::{FREE_PINS, NEW_PINS_PER_MINUTE},
};

fn node(node_id: &str) -> Ourselves {
    Ourselves {
        node_id: node_id.parse().unwrap(),
        mesh: "demo".parse().unwrap(),
        identity: Arc::new(Identity::generate()),
        keys: secret(7, &[]),
        trust: TrustStore::in_memory(&TrustConfig::default(), &[]).unwrap(),
        params: Params {
            relay: false,
            hb: 15,
            boot: Boot::random(),
            sw: "clawmatrix/0.1.0".into(),
        },
    }
}

fn secret(own: u8, older: &[(u8, Option<SystemTime>)]) -> MeshKeys {
    let key = |byte| MeshKey::from_bytes([byte; 32]);
    MeshKeys::ready(
        key(own),
        older.iter().map(|(byte, end)| (key(*byte), *end)).collect(),
    )
}

/// A peer entry that gives the node's key.
fn with_key(node_id: &str, us: &Ourselves) -> PeerConfig {
    PeerConfig {
        node_id: node_id.parse().unwrap(),
        url: "ws://127.0.0.1:19000/mesh/v1".parse().unwrap(),
        port_given: true,
        tls: PeerTls::Web,
        proxy: None,
        key: Some(us.identity.public()),
    }
}

type Outcome = Result<Established, HandshakeError>;
type Seen = Vec<(Direction, Message)>;

/// Both halves between two nodes, and every message as it was sent.
async fn run(dialer: &Ourselves, listener: &Ourselves) -> (Outcome, Outcome, Seen) {
    let expected = listener.node_id.clone();
    run_expecting(dialer, listener, &expected).await
}

async fn run_expecting(
    dialer: &Ourselves,
    listener: &Ourselves,
    expected: &NodeId,
) -> (Outcome, Outcome, Seen) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let tap = seen.clone();
    let (mut near, mut far) = memory::tapped_pair(move |direction, message: Message| {
        tap.lock().unwrap().push((direction, message.clone()));
        vec![message]
    });
    let (dialed, accepted) = tokio::join!(
        initiate(
            &mut near.sink,
            &mut near.stream,
            dialer,
            expected,
            Vec::new()
        ),
        respond(&mut far.sink, &mut far.stream, listener, Vec::new()),
    );
    let seen = seen.lock().unwrap().clone();
    (dialed, accepted, seen)
}

fn texts(seen: &Seen, from: Direction) -> Vec<String> {
    let text = |(direction, message): &(Direction, Message)| match message {
        Message::Text(text) if *direction == from => Some(text.clone()),
        Message::Text(_) | Message::Binary(_) | Message::Close { .. } => None,
    };
    seen.iter().filter_map(text).collect()
}

fn closes(seen: &Seen) -> Vec<(Direction, u16, String)> {
    let close = |(direction, message): &(Direction, Message)| match message {
        Message::Close { code, reason } => Some((*direction, *code, reason.clone())),
        Message::Text(_) | Message::Binary(_) => None,
    };
    seen.iter().filter_map(close).collect()
}

/// Every close that was sent is 4401 with its one text.
fn only_auth_failed(seen: &Seen) {
    let closes = closes(seen);
    assert!(!closes.is_empty());
    for (_, code, reason) in closes {
        assert_eq!((code, reason.as_str()), (4401, "auth_failed"));
    }
}

fn abort(outcome: Outcome) -> Abort {
    match outcome.unwrap_err() {
        HandshakeError::Abort(abort) => abort,
        other => panic!("{other:?}"),
    }
}

/// T02.
#[tokio::test]
async fn two_nodes_of_one_mesh_link_and_pin_each_other() {
    let (home, office) = (node("home-01"), node("office-01"));
    let (dialed, accepted, seen) = run(&home, &office).await;
    let (dialed, accepted) = (dialed.unwrap(), accepted.unwrap());
    assert_eq!(dialed.peer.node, office.node_id);
    assert_eq!(dialed.peer.boot, office.params.boot);
    assert_eq!(accepted.params, home.params);
    assert_eq!((dialed.role, accepted.role), (Role::Dialer, Role::Listener));
    assert_eq!(dialed.sid, accepted.sid);
    assert_eq!(dialed.send_key, accepted.recv_key);
    assert_eq!(dialed.recv_key, accepted.send_key);
    assert_eq!(dialed.peer.level, Level::Pinned);
    assert_eq!(closes(&seen), []);
    for (store, other) in [(&home.trust, &office), (&office.trust, &home)] {
        let level = store.level(&other.node_id, &other.identity.public());
        assert_eq!(level, Some(Level::Pinned));
    }
    assert!(run(&home, &office).await.0.is_ok());
}

/// T03.
#[tokio::test]
async fn wrong_secret_is_named_in_both_logs_but_not_on_the_wire() {
    let (home, mut office) = (node("home-01"), node("office-01"));
    office.keys = secret(8, &[]);
    let (dialed, accepted, seen) = run(&home, &office).await;
    assert_eq!(abort(accepted), Abort::Proof);
    let refused = dialed.unwrap_err();
    assert!(refused.to_string().contains("secrets differ"), "{refused}");
    assert!(refused.hint().unwrap().contains("`secret` must match"));
    assert_eq!(refused.outlook(), Outlook::Refused);
    only_auth_failed(&seen);
    assert_eq!(home.trust.list(), []);
    assert_eq!(office.trust.list(), []);
}

/// T03.
#[tokio::test]
async fn wrong_mesh_ends_before_any_proof_is_on_the_wire() {
    let (home, mut office) = (node("home-01"), node("office-01"));
    office.mesh = "other".parse().unwrap();
    let (dialed, accepted, seen) = run(&home, &office).await;
    assert_eq!(abort(dialed), Abort::OtherMesh);
    let left = accepted.unwrap_err();
    assert!(left.hint().unwrap().contains("`mesh` must match"));
    assert_eq!(texts(&seen, Direction::Forward).len(), 1);
    only_auth_failed(&seen);
}

/// T06.
#[tokio::test]
async fn a_dialer_without_the_secret_gets_no_byte_after_the_challenge() {
    let office = node("office-01");
    // A made-up box, and an honest proof under a wrong secret.
    for forge in [true, false] {
        let mut fake = node("home-01");
        fake.keys = secret(9, &[]);
        let (_, accepted, seen) = if forge {
            forged_proof(&fake, &office).await
        } else {
            run(&fake, &office).await
        };
        assert!(accepted.is_err());
        let back: Vec<_> = seen.iter().filter(|(d, _)| *d == Direction::Back).collect();
        assert!(
            matches!(
                back[..],
                [
                    (_, Message::Text(_)),
                    (_, Message::Close { code: 4401, .. })
                ]
            ),
            "{back:?}"
        );
    }
    assert_eq!(office.trust.list(), []);
}

async fn forged_proof(fake: &Ourselves, office: &Ourselves) -> (Outcome, Outcome, Seen) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let tap = seen.clone();
    let (mut near, mut far) = memory::tapped_pair(move |direction, message: Message| {
        let message = match message {
            Message::Text(text) if text.contains("\"auth\"") => Message::Text(format!(
                r#"{{"type":"auth","box":"{}"}}"#,
                "Zm9v".repeat(60)
            )),
            other => other,
        };
        tap.lock().unwrap().push((direction, message.clone()));
        vec![message]
    });
    let (dialed, accepted) = tokio::join!(
        initiate(
            &mut near.sink,
            &mut near.stream,
            fake,
            &office.node_id,
            Vec::new()
        ),
        respond(&mut far.sink, &mut far.stream, office, Vec::new()),
    );
    let seen = seen.lock().unwrap().clone();
    (dialed, accepted, seen)
}

/// T07.
#[tokio::test]
async fn an_impostor_of_a_pinned_listener_gets_no_proof() {
    let (home, office) = (node("home-01"), node("office-01"));
    run(&home, &office).await.0.unwrap();
    let impostor = node("office-01");
    let (dialed, _, seen) = run(&home, &impostor).await;
    let error = dialed.unwrap_err();
    assert!(
        matches!(error, HandshakeError::Refused(Refusal::Conflict { .. })),
        "{error}"
    );
    let accept = format!(
        "clawmatrix trust accept office-01 {}",
        impostor.identity.public().id()
    );
    assert!(error.hint().unwrap().contains(&accept));
    assert_eq!(texts(&seen, Direction::Forward).len(), 1);
    only_auth_failed(&seen);
    assert_eq!(home.trust.conflicts().len(), 1);
    assert!(impostor.trust.list().is_empty());
    // The way out works.
    let found = impostor.identity.public().id();
    home.trust.accept(&office.node_id, found).unwrap();
    assert!(run(&home, &impostor).await.0.is_ok());
    assert!(run(&home, &office).await.0.is_err());
}

/// T08.
#[tokio::test]
async fn a_configured_key_protects_the_first_contact() {
    let (mut home, office) = (node("home-01"), node("office-01"));
    let peers = [with_key("office-01", &office)];
    home.trust = TrustStore::in_memory(&TrustConfig::default(), &peers).unwrap();
    let impostor = node("office-01");
    let (dialed, _, seen) = run(&home, &impostor).await;
    assert!(matches!(
        dialed.unwrap_err(),
        HandshakeError::Refused(Refusal::Conflict {
            configured: true,
            ..
        })
    ));
    assert_eq!(texts(&seen, Direction::Forward).len(), 1);
    let entries = home.trust.list();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].first_seen, None);
    let dialed = run(&home, &office).await.0.unwrap();
    assert_eq!(dialed.peer.level, Level::Trusted);
}

#[tokio::test]
async fn an_impostor_of_a_pinned_dialer_is_refused_after_its_proof() {
    let (home, office) = (node("home-01"), node("office-01"));
    run(&home, &office).await.1.unwrap();
    let impostor = node("home-01");
    let (_, accepted, seen) = run(&impostor, &office).await;
    assert!(matches!(
        accepted.unwrap_err(),
        HandshakeError::Refused(Refusal::Conflict { .. })
    ));
    assert_eq!(texts(&seen, Direction::Back).len(), 1);
    only_auth_failed(&seen);
}

/// T126: nothing is noted about whoever lacks the secret.
#[tokio::test]
async fn an_outsider_under_a_pinned_name_raises_no_conflict() {
    let (home, office) = (node("home-01"), node("office-01"));
    run(&home, &office).await.1.unwrap();
    let mut outsider = node("home-01");
    outsider.keys = secret(9, &[]);
    let (_, accepted, _) = run(&outsider, &office).await;
    assert_eq!(abort(accepted), Abort::Proof);
    assert_eq!(office.trust.conflicts(), []);
    assert_eq!(office.trust.conflicts_total(), 0);
}

#[tokio::test]
async fn a_denied_key_is_refused_on_either_side() {
    let (home, office) = (node("home-01"), node("office-01"));
    office.trust.deny(home.identity.public().id()).unwrap();
    let (_, accepted, seen) = run(&home, &office).await;
    assert!(matches!(
        accepted.unwrap_err(),
        HandshakeError::Refused(Refusal::Denied(_))
    ));
    only_auth_failed(&seen);
    let (dialed, _, seen) = run(&office, &home).await;
    assert!(matches!(
        dialed.unwrap_err(),
        HandshakeError::Refused(Refusal::Denied(_))
    ));
    assert_eq!(texts(&seen, Direction::Forward).len(), 1);
}

#[tokio::test]
async fn another_name_than_the_configured_one_is_told_with_both() {
    let (home, office) = (node("home-01"), node("office-01"));
    let (dialed, _, _) = run_expecting(&home, &office, &"cellar".parse().unwrap()).await;
    let error = dialed.unwrap_err();
    let hint = error.hint().unwrap();
    assert!(
        hint.contains("cellar") && hint.contains("office-01"),
        "{hint}"
    );
    assert_eq!(home.trust.list(), []);
}

/// T09.
#[tokio::test]
async fn a_replayed_dialer_is_refused() {
    let (home, office) = (node("home-01"), node("office-01"));
    let (_, _, seen) = run(&home, &office).await;
    let captured = texts(&seen, Direction::Forward);
    let before = office.trust.list();
    let (mut near, mut far) = memory::pair();
    for text in captured {
        near.sink.feed(Message::Text(text)).await.unwrap();
    }
    let accepted = respond(&mut far.sink, &mut far.stream, &office, Vec::new()).await;
    assert_eq!(abort(accepted), Abort::Altered("proof"));
    assert_eq!(office.trust.list(), before);
    assert!(matches!(
        last(&mut near).await,
        Some(Message::Close { code: 4401, .. })
    ));
}

/// T10.
#[tokio::test]
async fn a_replayed_listener_is_refused() {
    let (home, office) = (node("home-01"), node("office-01"));
    let (_, _, seen) = run(&home, &office).await;
    let (mut near, mut far) = memory::pair();
    for text in texts(&seen, Direction::Back) {
        far.sink.feed(Message::Text(text)).await.unwrap();
    }
    let dialed = initiate(
        &mut near.sink,
        &mut near.stream,
        &home,
        &office.node_id,
        Vec::new(),
    )
    .await;
    assert_eq!(abort(dialed), Abort::OtherMesh);
}

/// The last message that arrived at an end.
async fn last(end: &mut End) -> Option<Message> {
    let mut latest = None;
    while let Ok(Some(message)) = end.stream.next().await {
        let is_close = matches!(message, Message::Close { .. });
        latest = Some(message);
        if is_close {
            break;
        }
    }
    latest
}

/// T13.
#[tokio::test]
async fn a_node_that_reaches_itself_closes_with_its_own_code() {
    let home = node("home-01");
    let (dialed, accepted, seen) = run(&home, &home).await;
    assert_eq!(abort(dialed), Abort::OwnKey);
    let other = accepted.unwrap_err();
    assert!(matches!(other, HandshakeError::Closed { code: 4410, .. }));
    assert!(other.hint().unwrap().contains("its own `peers`"));
    assert_eq!(
        closes(&seen)[0],
        (Direction::Forward, 4410, "self_connect".into())
    );
    assert_eq!(home.trust.list(), []);
}

/// T20, T22: whatever is not the next text message ends it.
#[tokio::test]
async fn anything_but_the_next_message_ends_the_handshake() {
    let office = node("office-01");
    let binary = Message::Binary(BytesMut::from(&b"data"[..]));
    let junk = [
        binary.clone(),
        Message::Text(String::new()),
        Message::Text("{}".into()),
        Message::Text("x".repeat(2049)),
        Message::Text(r#"{"type":"auth","box":""}"#.into()),
    ];
    for message in junk {
        let (mut near, mut far) = memory::pair();
        near.sink.feed(message.clone()).await.unwrap();
        let accepted = respond(&mut far.sink, &mut far.stream, &office, Vec::new()).await;
        assert!(
            matches!(abort(accepted), Abort::Malformed(_)),
            "{message:?}"
        );
        assert!(matches!(
            last(&mut near).await,
            Some(Message::Close { code: 4401, .. })
        ));
    }
    // Data in place of the proof, and in place of each answer to the dialer.
    for place in 0..3 {
        let home = node("home-01");
        let count = Arc::new(Mutex::new(0));
        let binary = binary.clone();
        let (mut near, mut far) = memory::tapped_pair(move |_, message: Message| {
            let mut count = count.lock().unwrap();
            *count += 1;
            vec![if *count == place + 2 {
                binary.clone()
            } else {
                message
            }]
        });
        let (dialed, accepted) = tokio::join!(
            initiate(
                &mut near.sink,
                &mut near.stream,
                &home,
                &office.node_id,
                Vec::new()
            ),
            respond(&mut far.sink, &mut far.stream, &office, Vec::new()),
        );
        assert!(dialed.is_err());
        // The listener is done once it has sent the last message.
        assert_eq!(accepted.is_err(), place < 2);
    }
}

#[tokio::test]
async fn the_earlier_plugin_is_recognised() {
    let home = node("home-01");
    let (mut near, mut far) = memory::pair();
    let old = r#"{"type":"auth_challenge","nonce":"00112233"}"#;
    far.sink.feed(Message::Text(old.into())).await.unwrap();
    let dialed = initiate(
        &mut near.sink,
        &mut near.stream,
        &home,
        &"office-01".parse().unwrap(),
        Vec::new(),
    )
    .await;
    let error = dialed.unwrap_err();
    assert_eq!(error.hint().as_deref(), Some("old plugin, upgrade it"));
}

#[tokio::test]
async fn an_early_end_is_an_error_at_every_step() {
    let (home, office) = (node("home-01"), node("office-01"));
    for keep in 0..4 {
        let count = Arc::new(Mutex::new(0));
        let (mut near, mut far) = memory::tapped_pair(move |_, message: Message| {
            let mut count = count.lock().unwrap();
            *count += 1;
            if *count <= keep {
                vec![message]
            } else {
                vec![Message::Close {
                    code: 1006,
                    reason: "\u{1b}[31mgone".into(),
                }]
            }
        });
        let (dialed, accepted) = tokio::join!(
            initiate(
                &mut near.sink,
                &mut near.stream,
                &home,
                &office.node_id,
                Vec::new()
            ),
            respond(&mut far.sink, &mut far.stream, &office, Vec::new()),
        );
        let error = dialed.unwrap_err();
        assert_eq!(error.outlook(), Outlook::Open, "{error}");
        assert!(!error.to_string().contains('\u{1b}'));
        assert_eq!(accepted.is_err(), keep < 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_other_side_costs_ten_seconds() {
    let home = node("home-01");
    let (mut near, mut far) = memory::pair();
    let began = tokio::time::Instant::now();
    let expected = "office-01".parse().unwrap();
    let (dialed, accepted) = tokio::join!(
        initiate(
            &mut near.sink,
            &mut near.stream,
            &home,
            &expected,
            Vec::new()
        ),
        async {
            let (_silent, mut far_only) = memory::pair();
            respond(&mut far_only.sink, &mut far_only.stream, &home, Vec::new()).await
        },
    );
    assert_eq!(began.elapsed().as_secs(), HANDSHAKE_TIMEOUT.as_secs());
    for outcome in [dialed, accepted] {
        let error = outcome.unwrap_err();
        assert!(matches!(error, HandshakeError::Timeout));
        assert_eq!(error.outlook(), Outlook::Open);
    }
    assert!(matches!(
        last(&mut far).await,
        Some(Message::Close { code: 4408, .. })
    ));
}

/// T24 as far as one handshake goes: every step of a rotation links with the step before it.
#[tokio::test]
async fn neighbouring_steps_of_a_secret_rotation_link() {
    let steps = [
        secret(1, &[]),
        secret(1, &[(2, None)]),
        secret(2, &[(1, None)]),
        secret(2, &[]),
    ];
    for (i, dialer_keys) in steps.iter().enumerate() {
        for (j, listener_keys) in steps.iter().enumerate() {
            let (mut home, mut office) = (node("home-01"), node("office-01"));
            home.keys = dialer_keys.clone();
            office.keys = listener_keys.clone();
            let (dialed, accepted, _) = run(&home, &office).await;
            assert_eq!(dialed.is_ok(), accepted.is_ok());
            if i.abs_diff(j) <= 1 {
                assert!(accepted.is_ok(), "step {i} to step {j}");
            }
        }
    }
    // After the last step the old secret is worthless.
    let (mut home, mut office) = (node("home-01"), node("office-01"));
    (home.keys, office.keys) = (steps[0].clone(), steps[3].clone());
    let (_, accepted, seen) = run(&home, &office).await;
    assert_eq!(abort(accepted), Abort::Proof);
    only_auth_failed(&seen);
}

/// T25.
#[tokio::test]
async fn an_older_secret_is_worthless_past_its_end() {
    let (mut home, mut office) = (node("home-01"), node("office-01"));
    home.keys = secret(1, &[]);
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    office.keys = secret(2, &[(1, Some(now + hour))]);
    assert_eq!(run(&home, &office).await.1.unwrap().secret, SecretId(1));
    office.keys = secret(2, &[(1, Some(now - hour))]);
    let (_, accepted, seen) = run(&home, &office).await;
    assert_eq!(abort(accepted), Abort::Proof);
    only_auth_failed(&seen);
}

/// Fills the store to where new names are pinned at so many a minute, and uses those up.
fn crowd(store: &TrustStore) {
    for i in 0..FREE_PINS + NEW_PINS_PER_MINUTE as usize {
        let (name, key) = (format!("old-{i}"), Identity::generate().public());
        store.pin(&name.parse().unwrap(), &key, Via::Link).unwrap();
    }
}

/// A full minute at the listener is no refusal: the dialer hears so, and comes back soon.
#[tokio::test]
async fn no_room_for_a_new_name_is_told_to_who_proved_the_secret() {
    let (home, office) = (node("home-01"), node("office-01"));
    crowd(&office.trust);
    let (dialed, accepted, seen) = run(&home, &office).await;
    assert_eq!(accepted.unwrap_err().outlook(), Outlook::Crowded);
    assert_eq!(dialed.unwrap_err().outlook(), Outlook::Crowded);
    let told = (Direction::Back, 4429, "rate_limited".to_owned());
    assert_eq!(closes(&seen)[0], told);
    // Without the secret it is never looked at (T126).
    let mut stranger = node("home-02");
    stranger.keys = secret(8, &[]);
    let (dialed, accepted, seen) = run(&stranger, &office).await;
    assert_eq!(abort(accepted), Abort::Proof);
    assert_eq!(dialed.unwrap_err().outlook(), Outlook::Refused);
    only_auth_failed(&seen);
    // A listener has proved nothing yet when the dialer has no room for it.
    let (dialed, _, seen) = run(&office, &home).await;
    assert_eq!(dialed.unwrap_err().outlook(), Outlook::Crowded);
    only_auth_failed(&seen);
}

/// T08 for advertised addresses: the key that the node is known by and no other, even under a name that
/// nobody has pinned.
#[tokio::test]
async fn another_key_than_the_expected_one_gets_no_proof() {
    let (home, office) = (node("home-01"), node("office-01"));
    let (mut near, mut far) = memory::pair();
    let expected = |key: &Ourselves| Expected {
        node: &office.node_id,
        key: Some(key.identity.public().id()),
    };
    let (dialed, accepted) = tokio::join!(
        initiate(
            &mut near.sink,
            &mut near.stream,
            &home,
            expected(&home),
            Vec::new()
        ),
        respond(&mut far.sink, &mut far.stream, &office, Vec::new()),
    );
    assert!(
        matches!(dialed, Err(HandshakeError::OtherKey(_))),
        "{dialed:?}"
    );
    let left = HandshakeError::Closed {
        code: 4401,
        stage: Stage::Challenged,
    };
    assert_eq!(
        accepted.unwrap_err().to_string(),
        left.to_string(),
        "before any proof"
    );
    assert_eq!(home.trust.list(), []);
    let (mut near, mut far) = memory::pair();
    let (dialed, _) = tokio::join!(
        initiate(
            &mut near.sink,
            &mut near.stream,
            &home,
            expected(&office),
            Vec::new()
        ),
        respond(&mut far.sink, &mut far.stream, &office, Vec::new()),
    );
    assert!(dialed.is_ok(), "{dialed:?}");
}

/// T26: a dialer proves with `secret` alone; a listener that knows only the older one never sees it.
#[tokio::test]
async fn a_dialer_never_falls_back_to_an_older_secret() {
    let (mut home, mut office) = (node("home-01"), node("office-01"));
    home.keys = secret(2, &[(1, None)]);
    office.keys = secret(1, &[]);
    for _ in 0..3 {
        let (dialed, accepted, seen) = run(&home, &office).await;
        assert_eq!(dialed.unwrap_err().outlook(), Outlook::Refused);
        assert_eq!(abort(accepted), Abort::Proof);
        assert_eq!(texts(&seen, Direction::Forward).len(), 2);
    }
}

#[tokio::test]
async fn what_the_other_side_says_of_itself_is_cleaned() {
    let (mut home, office) = (node("home-01"), node("office-01"));
    home.params.hb = 100_000;
    home.params.sw = format!("x\u{1b}[2J\n\u{202e}{}", "y".repeat(5000));
    let accepted = run(&home, &office).await.1.unwrap();
    assert_eq!(accepted.params.hb, 60);
    assert!(accepted.params.sw.starts_with("x[2Jyyy"));
    assert_eq!(accepted.params.sw.len(), SOFTWARE_CHARS);
    assert!(Params::read(b"{}").is_none(), "a process start is required");
    let boot = Boot::random();
    let newer = format!(r#"{{"boot":"{boot}","later":[1,2]}}"#);
    assert_eq!(Params::read(newer.as_bytes()).unwrap().hb, 15);
}
