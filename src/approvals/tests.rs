use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::{
    book::{Book, Full},
    desk::Outcome,
    key::{KeyError, LockedKey},
    *,
};
use crate::{
    crypto::{identity::Identity, secret::Secret},
    events::Events,
    ids::RequestId,
    wire::limits::{APPROVALS, APPROVALS_PER_PEER},
};

const NOW: u64 = 1_000_000;

fn request(peer: u8) -> Request {
    Request {
        rid: RequestId([7; 16]),
        from: "home".parse().unwrap(),
        from_key: crate::crypto::identity::PublicKey([peer; 32]),
        to: "office".parse().unwrap(),
        action: "tool:exec".into(),
        args: "{\"argv\":[\"rm\",\"-r\",\"x\"]}".into(),
        data: Bytes::from_static(b"data"),
        level: 2,
        rule: "toolProxy.ask[0]".into(),
        touches: vec!["/bin/rm".into(), "-r".into(), "x".into()],
        workdir: Some("/srv".into()),
        agent: true,
        asked: NOW,
        exp: NOW + 1000,
    }
}

fn book(request: Request) -> (Book, ApprovalId) {
    let mut book = Book::default();
    let id = ApprovalId([1, 2, 3, 4]);
    book.ask(id, request, "abcdef".into(), NOW).unwrap();
    (book, id)
}

/// T101: what is signed for anything else does not count, and nothing changes by it.
#[test]
fn an_approval_counts_for_exactly_its_request() {
    let operator = Identity::generate();
    let operators = [Identity::generate().public(), operator.public()];
    let right = request(1);
    type Change = Box<dyn Fn(&mut Request)>;
    let changes: Vec<(&str, Change)> = vec![
        ("rid", Box::new(|r| r.rid = RequestId([8; 16]))),
        ("from", Box::new(|r| r.from = "attic".parse().unwrap())),
        ("from_key", Box::new(|r| r.from_key.0[0] ^= 1)),
        ("to", Box::new(|r| r.to = "cellar".parse().unwrap())),
        ("action", Box::new(|r| r.action = "tool:write".into())),
        ("args", Box::new(|r| r.args.push(' '))),
        ("data", Box::new(|r| r.data = Bytes::from_static(b"date"))),
        ("level", Box::new(|r| r.level = 3)),
        ("exp", Box::new(|r| r.exp += 1)),
    ];
    let (mut book, id) = book(right.clone());
    for (what, change) in changes {
        let mut other = right.clone();
        change(&mut other);
        let signature = other.sign(&operator);
        assert_eq!(
            book.approve(id, &signature, "", &operators, NOW),
            Err(Refused::Signature),
            "{what}"
        );
    }
    let node = Identity::generate();
    let by_node = right.sign(&node);
    let refused = book.approve(id, &by_node, "", &operators, NOW);
    assert_eq!(refused, Err(Refused::Signature), "the node's own key");
    let good = right.sign(&operator);
    assert_eq!(
        book.approve(id, &good, "", &[], NOW),
        Err(Refused::Signature)
    );
    let by = book.approve(id, &good, "", &operators, NOW);
    assert_eq!(by, Ok(operator.public().id()));
    let again = book.approve(id, &good, "", &operators, NOW);
    assert_eq!(again, Err(Refused::Decided), "reused");
    assert_eq!(book.take(id, NOW), by);
    assert_eq!(book.take(id, NOW), Err(Refused::Decided), "used once");
    assert_eq!(book.deny(id, NOW), Err(Refused::Decided));
}

#[test]
fn time_ends_a_request_whatever_was_decided() {
    let operator = Identity::generate();
    let operators = [operator.public()];
    let right = request(1);
    let signature = right.sign(&operator);
    let (mut pending, id) = book(right.clone());
    let late = NOW + 1000;
    let refused = pending.approve(id, &signature, "", &operators, late);
    assert_eq!(refused, Err(Refused::Expired));
    assert!(pending.pending(late).is_empty());
    assert_eq!(pending.deny(id, late), Err(Refused::Expired));
    // Approved in time, used too late.
    let (mut approved, id) = book(right);
    approved
        .approve(id, &signature, "", &operators, NOW)
        .unwrap();
    assert_eq!(approved.take(id, late), Err(Refused::Expired));
    let forgotten = late + 3_600_000;
    assert!(approved.pending(forgotten).is_empty());
    assert_eq!(approved.deny(id, forgotten), Err(Refused::Unknown));
}

#[test]
fn who_goes_away_takes_the_request_along() {
    let operator = Identity::generate();
    let right = request(1);
    let signature = right.sign(&operator);
    let (mut pending, id) = book(right.clone());
    pending.withdraw(id, NOW);
    let refused = pending.approve(id, &signature, "", &[operator.public()], NOW);
    assert_eq!(refused, Err(Refused::Unknown));
    let (mut approved, id) = book(right);
    approved
        .approve(id, &signature, "", &[operator.public()], NOW)
        .unwrap();
    approved.withdraw(id, NOW);
    assert_eq!(approved.take(id, NOW), Err(Refused::Unknown));
}

#[test]
fn level_3_wants_its_challenge_typed() {
    let operator = Identity::generate();
    let operators = [operator.public()];
    let mut right = request(1);
    right.level = 3;
    let signature = right.sign(&operator);
    let (mut book, id) = book(right);
    for typed in ["", "abcdeg"] {
        let refused = book.approve(id, &signature, typed, &operators, NOW);
        assert_eq!(refused, Err(Refused::Challenge));
    }
    assert!(
        book.approve(id, &signature, "abcdef", &operators, NOW)
            .is_ok()
    );
}

#[test]
fn a_caller_has_few_places_and_the_node_not_many() {
    let mut book = Book::default();
    let mut next = 0_u32;
    let mut ask = |book: &mut Book, peer: u8| {
        next += 1;
        let id = ApprovalId(next.to_be_bytes());
        book.ask(id, request(peer), String::new(), NOW)
    };
    for _ in 0..APPROVALS_PER_PEER {
        ask(&mut book, 1).unwrap();
    }
    assert_eq!(ask(&mut book, 1), Err(Full::Peer));
    for peer in 2..=u8::try_from(APPROVALS / APPROVALS_PER_PEER).unwrap() {
        for _ in 0..APPROVALS_PER_PEER {
            ask(&mut book, peer).unwrap();
        }
    }
    assert_eq!(ask(&mut book, 200), Err(Full::Node));
    // A denial makes room.
    let id = book.pending(NOW)[0].0;
    book.deny(id, NOW).unwrap();
    ask(&mut book, 200).unwrap();
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_is_told_once() {
    let operator = Identity::generate();
    let who = Operator {
        key: operator.public(),
        token_sha256: None,
    };
    let events = Events::default();
    let mut watcher = events.watch().unwrap();
    let desk = Desk::new(&[who], Duration::from_secs(60), events);
    let waiting = desk.ask(request(1)).unwrap();
    let (parked, _) = desk.find(waiting.id()).unwrap();
    let id = waiting.id();
    let by = operator.public().id();
    let decide = async { desk.approve(id, &parked.sign(&operator), "") };
    let (outcome, decided) = tokio::join!(waiting.decided(), decide);
    assert_eq!((outcome, decided), (Outcome::Approved(by), Ok(by)));

    let waiting = desk.ask(request(1)).unwrap();
    desk.deny(waiting.id()).unwrap();
    assert_eq!(waiting.decided().await, Outcome::Denied);

    let waiting = desk.ask(request(1)).unwrap();
    assert_eq!(*desk.count().borrow(), 1);
    assert_eq!(waiting.decided().await, Outcome::Expired);

    let waiting = desk.ask(request(1)).unwrap();
    let id = waiting.id();
    let signature = desk.find(id).unwrap().0.sign(&operator);
    drop(waiting);
    assert_eq!(desk.approve(id, &signature, ""), Err(Refused::Unknown));
    assert_eq!((desk.list().len(), *desk.count().borrow()), (0, 0));

    let waiting = desk.ask(request(1)).unwrap();
    desk.close();
    assert_eq!(waiting.decided().await, Outcome::Closed);
    // Whoever watches hears of each twice, by names alone.
    for decision in ["approved", "denied", "expired", "withdrawn", "closed"] {
        let asked = watcher.next().await.unwrap().data.clone();
        let decided = watcher.next().await.unwrap().data.clone();
        assert_eq!(
            (&asked["type"], &decided["type"], &decided["decision"]),
            (
                &json!("approval_asked"),
                &json!("approval_decided"),
                &json!(decision)
            )
        );
        assert_eq!(asked["id"], decided["id"]);
        let by_whom = decision == "approved";
        assert_eq!(decided.get("by").is_some(), by_whom);
        for name in ["requestId", "from", "to", "action", "level", "expMs"] {
            assert!(asked.get(name).is_some(), "{name}");
        }
        let all = format!("{asked}{decided}");
        for hidden in ["argv", "/srv", "/bin/rm", "toolProxy"] {
            assert!(!all.contains(hidden), "{all}");
        }
    }
}

/// An operator that was removed decides nothing of what waits already; a new one does.
#[tokio::test(start_paused = true)]
async fn operators_change_while_a_request_waits() {
    let [old, new] = [Identity::generate(), Identity::generate()];
    let operators = |who: &Identity| {
        [Operator {
            key: who.public(),
            token_sha256: None,
        }]
    };
    let wait = Duration::from_secs(60);
    let desk = Desk::new(&operators(&old), wait, Events::default());
    let waiting = desk.ask(request(1)).unwrap();
    let id = waiting.id();
    let parked = desk.find(id).unwrap().0;
    desk.set(&operators(&new), Duration::from_secs(5));
    assert_eq!(
        desk.approve(id, &parked.sign(&old), ""),
        Err(Refused::Signature)
    );
    let by = new.public().id();
    assert_eq!(desk.approve(id, &parked.sign(&new), ""), Ok(by));
    assert_eq!(waiting.decided().await, Outcome::Approved(by));
    // What began to wait before keeps its time; what comes later has the new one.
    let waiting = desk.ask(request(1)).unwrap();
    assert!(waiting.left() <= Duration::from_secs(5));
    desk.set(&[], wait);
    assert!(!desk.manned());
}

#[test]
fn a_key_opens_with_its_passphrase_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sub/operator.key");
    let passphrase = Secret::new("three grey herons wait".to_owned());
    let made = LockedKey::make(&passphrase);
    made.save(&path).unwrap();
    assert!(matches!(made.save(&path), Err(KeyError::Exists(_))));
    let text = std::fs::read_to_string(&path).unwrap();
    let seed = made.unlock(&passphrase).unwrap();
    let read = LockedKey::load(&path).unwrap();
    assert_eq!((read.key, read.operator()), (made.key, made.operator()));
    let wrong = Secret::new("three grey herons waits".to_owned());
    assert!(matches!(read.unlock(&wrong), Err(KeyError::Passphrase)));
    assert_eq!(read.unlock(&passphrase).unwrap().public(), seed.public());
    // Another public half is no way to another's name.
    let other = text.replace(
        &made.key.to_string(),
        &Identity::generate().public().to_string(),
    );
    std::fs::write(&path, other).unwrap();
    let forged = LockedKey::load(&path).unwrap();
    assert!(matches!(
        forged.unlock(&passphrase),
        Err(KeyError::Passphrase)
    ));
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert!(matches!(LockedKey::load(&path), Err(KeyError::Open(_))));
}
