//! How sessions come up and end: lost, repeated, altered and invented messages, both sides at once,
//! restarts, denied keys.

use super::*;
use crate::{
    crypto::handshake::{Local, Responder},
    mesh::{session::SendError, testkit::Event},
    trust::Level,
};

/// T02 for end-to-end sessions.
#[tokio::test(start_paused = true)]
async fn a_session_opens_through_a_relay_and_pins_the_other_node() {
    let trio = heard().await;
    let session = trio.home.open("office").await;
    assert_eq!(session.peer().node, node("office"));
    assert_eq!(session.peer().key, trio.office.us.identity.public());
    assert_eq!(session.peer().level, Level::Pinned);
    assert_eq!(session.rtt(), Some(Duration::from_millis(10)));
    assert!(!session.direct());
    // The initiator sends at once, so that the other side may.
    until("office may send", || {
        trio.office.sessions().ready(&node("home")).is_some()
    })
    .await;
    let back = trio.office.open("home").await;
    assert_eq!(back.id(), session.id());
    say(&session, Class::Interactive, 1);
    say(&back, Class::Bulk, 2);
    trio.office_saw
        .until(|seen| seen.frames() == numbered([1]))
        .await;
    trio.home_saw
        .until(|seen| seen.frames() == numbered([2]))
        .await;

    // What the relay saw: one handshake, tied together by its header, and no plaintext.
    let seen = trio.relay.seen();
    let hello: Vec<_> = seen
        .iter()
        .filter(|(_, frame)| frame.kind == Kind::RoutedHandshake)
        .collect();
    assert_eq!(hello.len(), 4);
    let tie = hello[0].1.head().s;
    assert!(
        hello
            .iter()
            .all(|(_, frame)| frame.head().s == tie && frame.head().n == 0)
    );
    for (_, frame) in &seen {
        assert!(!frame.body.windows(4).any(|four| four == b"\"n\":"));
    }
    let pinned = trio.home.us.trust.list();
    assert!(pinned.iter().any(|entry| entry.node == node("office")));
}

/// 4.2: the same bytes again after 1, 2 and 4 s, the end at 10 s.
#[tokio::test(start_paused = true)]
async fn an_unanswered_hello_is_said_four_times_and_given_up() {
    let trio = heard().await;
    trio.relay.does(|_, _| vec![]);
    let began = Instant::now();
    let failure = trio.home.sessions().session(&node("office")).await;
    assert_eq!(failure.unwrap_err().code, Code::PeerUnreachable);
    assert_eq!(began.elapsed().as_secs(), 10);
    let said = trio.relay.heard(Way::ToOffice, "auth_hello");
    assert_eq!(said.len(), 4);
    assert!(said.iter().all(|frame| frame.body == said[0].body));
    // Nothing is left of it: the next one opens.
    trio.relay.obeys();
    trio.home.open("office").await;
}

#[tokio::test(start_paused = true)]
async fn each_message_may_be_lost_three_times() {
    for lost in ["auth_hello", "auth_challenge", "auth", "auth_ok"] {
        let trio = heard().await;
        let mut left = 3;
        trio.relay.does(move |_, frame| {
            if frame.says(lost) && left > 0 {
                left -= 1;
                return vec![];
            }
            vec![frame]
        });
        let began = Instant::now();
        let session = trio.home.open("office").await;
        assert_eq!(began.elapsed().as_secs(), 7, "{lost}");
        say(&session, Class::Interactive, 1);
        trio.office_saw
            .until(|seen| seen.frames() == numbered([1]))
            .await;
        // A reply that is asked for again is not made again.
        for (way, kind) in [(Way::ToHome, "auth_challenge"), (Way::ToHome, "auth_ok")] {
            let said = trio.relay.heard(way, kind);
            assert!(
                said.iter().all(|frame| frame.body == said[0].body),
                "{lost}: {kind}"
            );
        }
        assert_eq!(trio.office.sessions().count(), 1, "{lost}");
    }
}

#[tokio::test(start_paused = true)]
async fn repeated_messages_make_one_session() {
    let trio = heard().await;
    trio.relay.does(|_, frame| match frame.kind {
        Kind::RoutedHandshake => vec![frame.clone(), frame.clone(), frame],
        _ => vec![frame],
    });
    let session = trio.home.open("office").await;
    say(&session, Class::Interactive, 1);
    trio.office_saw
        .until(|seen| seen.frames() == numbered([1]))
        .await;
    assert_eq!(trio.home.sessions().count(), 1);
    assert_eq!(trio.office.sessions().count(), 1);
    let up = |seen: &Recorder| {
        seen.events()
            .iter()
            .filter(|e| matches!(e, Event::Up(_)))
            .count()
    };
    assert_eq!((up(&trio.home_saw), up(&trio.office_saw)), (1, 1));
}

/// After a partition the old connection may swallow what is sent for long: what was said over it is
/// said again as soon as another leads to the node.
#[tokio::test(start_paused = true)]
async fn a_message_goes_again_when_another_link_leads_there() {
    let trio = heard().await;
    trio.relay.does(|_, _| Vec::new());
    let opening = trio.home.open("office");
    let healing = async {
        // Between the third message and the last one.
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        trio.relay.obeys();
        let link = trio.relay.link(&trio.home).await;
        trio.home.leads("office", &link);
        Instant::now()
    };
    let ((_, opened), healed) = tokio::join!(async { (opening.await, Instant::now()) }, healing);
    let took = opened.saturating_duration_since(healed);
    assert!(
        took < SECOND,
        "only the next message was answered: {took:?}"
    );
}

/// 3.3 for ctx=2: what does not verify is dropped and counted, the attempt goes on. The true message
/// comes after its damaged copy and an invented one.
#[tokio::test(start_paused = true)]
async fn altered_and_invented_messages_abort_nothing() {
    for target in ["auth_hello", "auth_challenge", "auth", "auth_ok"] {
        let trio = heard().await;
        let injected = Arc::new(Mutex::new(0));
        let count = injected.clone();
        trio.relay.does(move |_, frame| {
            if !frame.says(target) {
                return vec![frame];
            }
            let mut damaged = frame.clone();
            // A character of the last value, which is a nonce, a key or a box.
            let at = damaged.body.len() - 12;
            damaged.body[at] = if damaged.body[at] == b'A' { b'B' } else { b'A' };
            let mut invented = frame.clone();
            invented.body = format!("{{\"type\":\"{target}\",\"box\":\"AAAA\"}}").into_bytes();
            *count.lock().unwrap() += 2;
            // An altered M1 takes the place of the true one at the other side: it comes later.
            if target == "auth_hello" {
                vec![frame, damaged, invented]
            } else {
                vec![damaged, invented, frame]
            }
        });
        let session = trio.home.open("office").await;
        say(&session, Class::Interactive, 1);
        trio.office_saw
            .until(|seen| seen.frames() == numbered([1]))
            .await;
        let counted = trio.home.dropped(Reason::BadHello) + trio.office.dropped(Reason::BadHello);
        assert!(
            counted > 0 && *injected.lock().unwrap() > 0,
            "{target}: {counted}"
        );
    }
}

/// T35. The relay answers in office's name with its own key, before office can.
#[tokio::test(start_paused = true)]
async fn an_impostor_gets_no_proof_and_stops_nobody() {
    let trio = heard().await;
    // Home knows office.
    let key = trio.office.us.identity.public();
    let home = &trio.home.us.trust;
    home.pin(&node("office"), &key, Via::Link).unwrap();
    let impostor = Local {
        node: node("office"),
        ..trio.relay.us.local(Carrier::EndToEnd)
    };
    let relay = trio.relay.clone();
    trio.relay.does(move |way, frame| {
        if way == Way::ToOffice && frame.says("auth_hello") {
            let (_, m2) = Responder::answer(impostor.clone(), &frame.text()).unwrap();
            let tie = frame.head().s;
            let forged = Frame::plain(Kind::RoutedHandshake, "office", "home", &tie, m2);
            relay.inject("home", forged);
            return vec![];
        }
        vec![frame]
    });
    let failure = trio.home.sessions().session(&node("office")).await;
    let failure = failure.unwrap_err();
    assert_eq!(failure.code, Code::PeerUnreachable);
    assert!(
        trio.relay.heard(Way::ToOffice, "auth").is_empty(),
        "no proof was sent"
    );
    assert_eq!(home.conflicts().len(), 1, "the operator is told");
    assert_eq!(
        home.standing(&node("office"), &key).map(|a| a.level),
        Some(Level::Pinned)
    );
    // With the true answer behind the forged one the session opens.
    let impostor = Local {
        node: node("office"),
        ..trio.relay.us.local(Carrier::EndToEnd)
    };
    let relay = trio.relay.clone();
    trio.relay.does(move |way, frame| {
        if way == Way::ToOffice && frame.says("auth_hello") {
            let (_, m2) = Responder::answer(impostor.clone(), &frame.text()).unwrap();
            let tie = frame.head().s;
            relay.inject(
                "home",
                Frame::plain(Kind::RoutedHandshake, "office", "home", &tie, m2),
            );
        }
        vec![frame]
    });
    let session = trio.home.open("office").await;
    assert_eq!(session.peer().key, key);
}

/// 4.2: the name that is proved must be the one in the header, or frames for one node would end in
/// sessions of another.
#[tokio::test(start_paused = true)]
async fn proved_names_must_be_those_of_the_headers() {
    let trio = heard().await;
    // The relay changes home's name in every header; it proves itself as home all the same.
    trio.relay.does(|way, mut frame| {
        let swap = match way {
            Way::ToOffice => ("\"f\":\"home\"", "\"f\":\"attic\""),
            Way::ToHome => ("\"t\":\"attic\"", "\"t\":\"home\""),
        };
        let text = String::from_utf8(frame.header).unwrap();
        frame.header = text.replace(swap.0, swap.1).into_bytes();
        vec![frame]
    });
    let failure = trio.home.sessions().session(&node("office")).await;
    assert_eq!(failure.unwrap_err().code, Code::PeerUnreachable);
    assert_eq!(trio.office.sessions().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn both_sides_at_once_make_two_sessions_and_both_work() {
    let trio = heard().await;
    let (home, office) = (&trio.home, &trio.office);
    // Which of the two each of them gets depends on which is the newest by then.
    tokio::join!(home.open("office"), office.open("home"));
    let live = |site: &Site, of: &str| site.sessions().table().peers[&node(of)].live.clone();
    until("two sessions each, fit to send in", || {
        let both = [live(home, "office"), live(office, "home")];
        both.iter()
            .all(|live| live.len() == 2 && live.iter().all(|live| live.fit()))
    })
    .await;
    for (site, of, saw) in [
        (home, "office", &trio.office_saw),
        (office, "home", &trio.home_saw),
    ] {
        for (n, live) in live(site, of).into_iter().enumerate() {
            let session: SessionRef = live;
            say(&session, Class::Interactive, n);
            saw.until(|seen| seen.frames() == numbered(0..=n)).await;
        }
    }
    let ids = |site: &Site, of: &str| {
        let mut ids: Vec<_> = live(site, of).iter().map(|live| live.id()).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids(home, "office"), ids(office, "home"));
}

/// 4.2: nobody sends in a session of which the other side may not have the keys.
#[tokio::test(start_paused = true)]
async fn the_node_asked_sends_only_after_it_opened_a_frame() {
    let trio = heard().await;
    trio.relay.does(|_, frame| match frame.kind {
        Kind::Routed => vec![],
        _ => vec![frame],
    });
    let session = trio.home.open("office").await;
    until("office has it", || trio.office.sessions().count() == 1).await;
    tokio::time::sleep(SECOND).await;
    assert!(trio.office.sessions().ready(&node("home")).is_none());
    assert!(trio.office_saw.events().is_empty());
    trio.relay.obeys();
    say(&session, Class::Interactive, 1);
    trio.office_saw
        .until(|seen| seen.frames() == numbered([1]))
        .await;
    assert!(trio.office.sessions().ready(&node("home")).is_some());
}

/// 4.2: two sessions a peer, the newest for sending.
#[tokio::test(start_paused = true)]
async fn the_third_session_ends_the_first() {
    let trio = heard().await;
    let (home, office) = (&trio.home, &trio.office);
    let mut ids = Vec::new();
    for round in 1..=3_usize {
        if round > 1 {
            // Nothing else makes a second one while the first is fit.
            let mut outcome = home.sessions().open(&node("office")).unwrap();
            let outcome = outcome.wait_for(Option::is_some).await.unwrap().clone();
            assert!(outcome.unwrap().is_ok());
        }
        let session = home.open("office").await;
        say(&session, Class::Interactive, round);
        trio.office_saw
            .until(|seen| seen.frames() == numbered(1..=round))
            .await;
        ids.push(session.id());
        assert_eq!(home.sessions().count(), round.min(2));
        assert_eq!(office.sessions().count(), round.min(2));
    }
    let lost = |seen: &Recorder| {
        seen.events()
            .iter()
            .filter(|e| matches!(e, Event::Lost(_)))
            .count()
    };
    assert_eq!((lost(&trio.home_saw), lost(&trio.office_saw)), (1, 1));
    ids.dedup();
    assert_eq!(ids.len(), 3);
}

/// 4.2: more handshakes than ten a minute are not finished, and none of them harms the session.
#[tokio::test(start_paused = true)]
async fn finished_handshakes_of_one_node_are_bounded() {
    let trio = heard().await;
    let (home, office) = (&trio.home, &trio.office);
    for round in 0..12 {
        let mut outcome = home.sessions().open(&node("office")).unwrap();
        let outcome = outcome.wait_for(Option::is_some).await.unwrap().clone();
        assert_eq!(outcome.unwrap().is_ok(), round < 10, "{round}");
    }
    assert!(office.dropped(Reason::BadHello) > 0);
    assert_eq!(office.sessions().count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_denied_key_loses_its_sessions() {
    let trio = heard().await;
    let session = trio.home.open("office").await;
    say(&session, Class::Interactive, 1);
    trio.office_saw
        .until(|seen| seen.frames() == numbered([1]))
        .await;
    let key = trio.home.us.identity.public().id();
    trio.office.us.trust.deny(key).unwrap();
    trio.office.sessions().follow(&trio.office.us.trust);
    trio.office_saw
        .until(|seen| seen.events().iter().any(|e| matches!(e, Event::Lost(_))))
        .await;
    assert_eq!(trio.office.sessions().count(), 0);
    say(&session, Class::Interactive, 2);
    until("its frames mean nothing", || {
        trio.office.dropped(Reason::UnknownSession) > 0
    })
    .await;
    let again = trio.home.sessions().open(&node("office")).unwrap();
    let again = again
        .clone()
        .wait_for(Option::is_some)
        .await
        .unwrap()
        .clone();
    assert!(again.unwrap().is_err(), "nor does it get another one");
    assert_eq!(trio.office_saw.frames(), numbered([1]));
}

/// 4.5: the origin hears that its session is unknown, opens another, and learns that the other
/// process is gone.
#[tokio::test(start_paused = true)]
async fn a_restarted_node_is_met_again() {
    let mut trio = heard().await;
    let before = trio.home.open("office").await;
    say(&before, Class::Interactive, 1);
    trio.office_saw
        .until(|seen| seen.frames() == numbered([1]))
        .await;
    let office = Recorder::new();
    trio.trio.restart_office(office.clone()).await;
    say(&before, Class::Interactive, 2);
    trio.home_saw
        .until(|seen| seen.events().iter().any(|e| matches!(e, Event::Lost(_))))
        .await;
    let after = trio.home.open("office").await;
    assert_ne!(after.id(), before.id());
    assert_ne!(after.peer().boot, before.peer().boot);
    assert_eq!(
        before.send(Class::Interactive, b"{}", b""),
        Err(SendError::Gone)
    );
    say(&after, Class::Interactive, 3);
    office.until(|seen| seen.frames() == numbered([3])).await;
}

/// Idle sessions are forgotten after half an hour, old ones replaced after twelve hours.
#[tokio::test(start_paused = true)]
async fn idle_and_old_sessions_end() {
    let trio = heard().await;
    let (home, office) = (&trio.home, &trio.office);
    let first = home.open("office").await;
    tokio::time::sleep(SESSION_IDLE + 60 * SECOND).await;
    assert_eq!((home.sessions().count(), office.sessions().count()), (0, 0));
    let second = home.open("office").await;
    assert_ne!(first.id(), second.id());
    for minute in 0..13 * 60 {
        let session = home.open("office").await;
        say(&session, Class::Interactive, minute);
        assert_eq!(session.id() == second.id(), minute < 12 * 60, "{minute}");
        tokio::time::sleep(MINUTE).await;
    }
    assert_eq!(home.sessions().count(), 1);
}

/// A request that comes while a handshake is about to fail does not fail with it.
#[tokio::test(start_paused = true)]
async fn a_handshake_that_began_too_early_is_tried_again() {
    let heard = heard().await;
    heard.relay.does(|_, _| vec![]);
    assert!(heard.home.sessions().warm(&node("office")));
    tokio::time::sleep(9 * SECOND).await;
    heard.relay.obeys();
    let asked = Instant::now();
    assert!(heard.home.sessions().session(&node("office")).await.is_ok());
    assert!(asked.elapsed() < 5 * SECOND);
}
