//! Relays and members that replay, forge and flood.

use super::*;
use crate::{
    crypto::handshake::Initiator,
    mesh::{
        MeshSettings,
        hub::Hub,
        testkit::{Event, carriage},
    },
};

/// T33: each frame arrives once, however often a relay says it.
#[tokio::test(start_paused = true)]
async fn replayed_frames_are_seen_once() {
    let trio = heard().await;
    let session = trio.home.open("office").await;
    for n in 0..100 {
        say(&session, Class::Interactive, n);
    }
    trio.office_saw
        .until(|seen| seen.frames() == numbered(0..100))
        .await;
    let seen = trio.relay.seen();
    let sent: Vec<Frame> = seen
        .into_iter()
        .filter(|(way, frame)| *way == Way::ToOffice && frame.kind == Kind::Routed)
        .map(|(_, frame)| frame)
        .collect();
    for n in 0..1000 {
        trio.relay.inject("office", sent[n % sent.len()].clone());
    }
    until("all replays are counted", || {
        trio.office.dropped(Reason::Replayed) == 1000
    })
    .await;
    // Outside the window nothing can be told any more, so nothing passes.
    for n in 100..100 + 5000 {
        say(&session, Class::Interactive, n);
        if n % 500 == 0 {
            trio.office_saw
                .until(|seen| seen.frames().len() == n + 1)
                .await;
        }
    }
    trio.office_saw
        .until(|seen| seen.frames().len() == 5100)
        .await;
    trio.relay.inject("office", sent[0].clone());
    until("the old one too", || {
        trio.office.dropped(Reason::Replayed) == 1001
    })
    .await;
    assert_eq!(trio.office_saw.frames(), numbered(0..5100));
}

/// T33: bulk frames that a relay lets wait behind 5,000 interactive ones all arrive, as each class
/// has its own window.
#[tokio::test(start_paused = true)]
async fn bulk_behind_a_saturating_stream_is_not_lost() {
    let trio = heard().await;
    let session = trio.home.open("office").await;
    let waiting = Arc::new(Mutex::new(Vec::new()));
    let hold = waiting.clone();
    trio.relay.does(move |_, frame| {
        if frame.kind == Kind::Routed && frame.class == Class::Bulk {
            hold.lock().unwrap().push(frame);
            return vec![];
        }
        vec![frame]
    });
    for n in 0..10 {
        say(&session, Class::Bulk, n);
    }
    for n in 10..5010 {
        say(&session, Class::Interactive, n);
        if n % 500 == 0 {
            trio.office_saw
                .until(|seen| seen.frames().len() == n - 9)
                .await;
        }
    }
    trio.office_saw
        .until(|seen| seen.frames().len() == 5000)
        .await;
    for frame in waiting.lock().unwrap().drain(..) {
        trio.relay.inject("office", frame);
    }
    trio.office_saw
        .until(|seen| seen.frames().len() == 5010)
        .await;
    assert_eq!(trio.office.dropped(Reason::Replayed), 0);
}

/// T34: with a relay that plays along, the destination still knows whose key sealed a frame.
#[tokio::test(start_paused = true)]
async fn a_member_cannot_send_in_anothers_session_nor_under_its_name() {
    let trio = heard().await;
    let honest = trio.home.open("office").await;
    say(&honest, Class::Interactive, 1);
    trio.office_saw
        .until(|seen| seen.frames() == numbered([1]))
        .await;

    // Mallory is a member too: the relay plays its part with a session of its own.
    let mallory = trio.relay.us.local(Carrier::EndToEnd);
    let (initiator, m1) = Initiator::hello(mallory, node("office"));
    let tie = initiator.tie();
    let answers = Arc::new(Mutex::new(Vec::new()));
    let hear = answers.clone();
    trio.relay.does(move |way, frame| {
        if way == Way::ToHome && frame.kind == Kind::RoutedHandshake && frame.head().s == tie {
            hear.lock().unwrap().push(frame);
            return vec![];
        }
        vec![frame]
    });
    let hello = |body: &str| Frame::plain(Kind::RoutedHandshake, "relay", "office", &tie, body);
    trio.relay.inject("office", hello(&m1));
    until("it is answered", || answers.lock().unwrap().len() == 1).await;
    let m2 = answers.lock().unwrap()[0].text();
    let key = trio.relay.us.keys.own().await;
    let (proving, m3) = initiator.open(&m2).unwrap().prove(&key.key);
    trio.relay.inject("office", hello(&m3));
    until("it is in", || answers.lock().unwrap().len() == 2).await;
    let m4 = answers.lock().unwrap()[1].text();
    let verified = proving.confirm(&m4).unwrap();
    let peer = crate::mesh::testkit::peer("office", 1);
    let own = Live::new(
        node("relay"),
        peer,
        &live::Keys {
            sid: verified.sid,
            send: verified.send_key,
            receive: verified.recv_key,
            ours: true,
            began: Duration::ZERO,
            secret: crate::crypto::stretch::SecretId(0),
        },
        Arc::default(),
        Arc::default(),
    );
    let sealed = |own: &Live| {
        let frame = own.write(Class::Interactive, b"{\"n\":666}", b"").unwrap();
        let mut buffer = frame;
        let body = buffer.split_off(LENGTH_BYTES + record::covered(&buffer).unwrap() + TAG_BYTES);
        let header = &buffer[LENGTH_BYTES + FIXED_BYTES..buffer.len() - TAG_BYTES];
        Frame::new(Kind::Routed, header, body.to_vec())
    };
    let renamed = |mut frame: Frame, f: &str, s: Option<&SessionId>| {
        let mut text = String::from_utf8(frame.header).unwrap();
        text = text.replace("\"f\":\"relay\"", &format!("\"f\":\"{f}\""));
        if let Some(s) = s {
            text = text.replace(&own.id().to_string(), &s.to_string());
        }
        frame.header = text.into_bytes();
        frame
    };
    let before = trio.office.dropped(Reason::ForeignOrigin);
    // Its own session, the victim's name.
    trio.relay
        .inject("office", renamed(sealed(&own), "home", None));
    until("the name is not believed", || {
        trio.office.dropped(Reason::ForeignOrigin) == before + 1
    })
    .await;
    // The victim's session and name, its own seal.
    trio.relay
        .inject("office", renamed(sealed(&own), "home", Some(&honest.id())));
    until("the seal is not believed", || {
        trio.office.dropped(Reason::BadBody) == 1
    })
    .await;
    assert_eq!(trio.office_saw.frames(), numbered([1]));
    // Under its own name it is heard, as itself.
    trio.relay.inject("office", sealed(&own));
    trio.office_saw
        .until(|seen| {
            let by_relay =
                |e: &Event| matches!(e, Event::Frame(from, ..) if *from == node("relay"));
            seen.events().iter().any(by_relay)
        })
        .await;
}

/// T128: frames sent ahead with the victim's name and the `i` and `n` it will use. Nothing at the
/// destination is remembered by names and numbers that no key has vouched for.
#[tokio::test(start_paused = true)]
async fn frames_sent_ahead_do_not_spoil_the_true_ones() {
    let trio = heard().await;
    let session = trio.home.open("office").await;
    trio.relay.does(|way, frame| {
        if way == Way::ToOffice && frame.kind == Kind::Routed {
            let mut ahead = frame.clone();
            ahead.body.fill(0);
            let mut short = frame.clone();
            short.body.truncate(TAG_BYTES);
            return vec![ahead, short, frame];
        }
        vec![frame]
    });
    for n in 0..50 {
        say(&session, Class::Interactive, n);
    }
    trio.office_saw
        .until(|seen| seen.frames() == numbered(0..50))
        .await;
    assert_eq!(trio.office.dropped(Reason::Replayed), 0);
    assert!(trio.office.dropped(Reason::BadBody) >= 100);
    assert_eq!(trio.office.open_links(), 1);
}

/// T127: a member floods hellos under ever new names and under known ones; an honest pair still opens
/// its session within two seconds.
#[tokio::test(start_paused = true)]
async fn a_flood_of_hellos_holds_no_honest_node_up() {
    let trio = heard().await;
    let flood = trio.relay.clone();
    let local = flood.us.local(Carrier::EndToEnd);
    let flooding = trio.relay.tasks.clone();
    let stop = CancellationToken::new();
    let until_stopped = stop.clone();
    flooding.spawn(async move {
        let (_, m1) = Initiator::hello(local, node("office"));
        for n in 0_u128.. {
            if until_stopped.is_cancelled() {
                return;
            }
            // A thousand a second.
            for k in 0..10 {
                let name = format!("forged-{}", n * 10 + k);
                let tie = SessionId((n * 10 + k).to_be_bytes());
                let frame =
                    Frame::plain(Kind::RoutedHandshake, &name, "office", &tie, m1.as_bytes());
                flood.inject("office", frame);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    // The flood has used everything up that can be used up.
    tokio::time::sleep(30 * SECOND).await;
    assert!(trio.office.dropped(Reason::HelloLimited) > 10_000);
    // Home is no stranger to office.
    let key = trio.home.us.identity.public();
    trio.office
        .us
        .trust
        .pin(&node("home"), &key, Via::Link)
        .unwrap();
    let began = Instant::now();
    let session = trio.home.open("office").await;
    assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
    say(&session, Class::Interactive, 1);
    trio.office_saw
        .until(|seen| seen.frames() == numbered([1]))
        .await;
    stop.cancel();
}

/// T34: a neighbour that is no relay speaks for itself only.
#[tokio::test(start_paused = true)]
async fn a_leaf_cannot_send_in_anothers_name() {
    let seen = Recorder::new();
    let us = ourselves("office");
    let settings = MeshSettings::new(us.clone(), 1);
    let hub = Hub::new(settings, seen.clone(), Tasks::new());
    let leaf = Relay::new("mallory", false);
    let (mut ours, mut theirs) = memory::pair();
    let dialing = initiate(
        &mut ours.sink,
        &mut ours.stream,
        &leaf.us,
        &us.node_id,
        Vec::new(),
    );
    let accepting = respond(&mut theirs.sink, &mut theirs.stream, &us, Vec::new());
    let (dialed, accepted) = tokio::join!(dialing, accepting);
    let link = hub.admit(accepted.unwrap(), carriage(), (theirs.sink, theirs.stream));
    let link = link.await.unwrap();
    leaf.work(us.node_id.clone(), dialed.unwrap(), ours);
    let tie = SessionId([1; 16]);
    for kind in [Kind::RoutedHandshake, Kind::RoutedNotice, Kind::Routed] {
        let frame = Frame::plain(kind, "victim", "office", &tie, vec![0; 64]);
        leaf.inject("office", frame);
    }
    until("all are dropped", || {
        link.drops.get(Reason::ForeignOrigin) == 3
    })
    .await;
    assert!(link.is_open() && seen.events().is_empty());
}
