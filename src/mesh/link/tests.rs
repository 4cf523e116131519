//! Two links over memory, and one link against a hostile neighbour. Numbers T.. are those of
//! protocol 10.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::Instant;

use super::*;
use crate::{
    mesh::{
        drops::Reason,
        memory::Direction,
        testkit::{Event, Plain, Puppet, SID, linked, node, puppet, routed_frame},
        transport::Message,
    },
    wire::{
        frame::{Ulid, put_routed},
        limits::{FLOW_QUEUE_BYTES, REKEY_RECORDS},
    },
};

fn pass(_: Direction, message: Message) -> Vec<Message> {
    vec![message]
}

#[tokio::test(start_paused = true)]
async fn frames_cross_in_order_and_the_end_is_last() {
    let (a, b, tasks) = linked(REKEY_RECORDS, pass);
    for n in 0..50 {
        let json = format!("{{\"n\":{n}}}");
        a.link
            .send(Class::Interactive, json.as_bytes(), b"data")
            .unwrap();
    }
    b.link.send(Class::Control, b"{}", b"").unwrap();
    b.seen.until(|seen| seen.frames().len() == 50).await;
    a.seen.until(|seen| seen.frames().len() == 1).await;
    let expected: Vec<String> = (0..50).map(|n| format!("{{\"n\":{n}}}")).collect();
    assert_eq!(b.seen.frames(), expected);
    a.link.end(CloseCode::Normal, "test");
    b.seen.until(|seen| seen.ending().is_some()).await;
    assert_eq!(
        b.seen.events().last(),
        Some(&Event::Ended(Ending::Theirs { code: 1000 }))
    );
    assert_eq!(a.link.send(Class::Bulk, b"{}", b""), Err(SendError::Gone));
    tasks.close(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn round_trip_is_measured_at_once() {
    let (a, b, _tasks) = linked(REKEY_RECORDS, pass);
    for side in [&a, &b] {
        side.seen
            .until(|seen| seen.events().contains(&Event::Measured))
            .await;
        assert!(side.link.rtt().is_some());
    }
}

/// T28: what a flipped bit of a record does outside the body that is sealed end to end, and in its
/// tail.
#[tokio::test(start_paused = true)]
async fn flipped_bits_close_the_link_and_deliver_nothing() {
    let frame = routed_frame(("a", "b"), SID, 0, Class::Interactive, b"{}", b"payload");
    let covered = LENGTH_BYTES + record::covered(&frame).unwrap() + TAG_BYTES;
    let tail = frame.len() - TAG_BYTES..frame.len();
    for bit in (0..covered * 8)
        .chain(tail.start * 8..tail.end * 8)
        .step_by(3)
    {
        let armed = Arc::new(AtomicBool::new(false));
        let flip = armed.clone();
        let (a, b, _tasks) = linked(REKEY_RECORDS, move |direction, mut message| {
            if let (Direction::Forward, Message::Binary(record)) = (direction, &mut message)
                && flip.load(Ordering::Relaxed)
                && bit / 8 < record.len()
            {
                record[bit / 8] ^= 1 << (bit % 8);
            }
            vec![message]
        });
        a.seen
            .until(|seen| seen.events().contains(&Event::Measured))
            .await;
        armed.store(true, Ordering::Relaxed);
        a.link.send(Class::Interactive, b"{}", b"payload").unwrap();
        a.seen.until(|seen| seen.ending().is_some()).await;
        assert_eq!(
            a.seen.ending(),
            Some(Ending::Theirs { code: 4403 }),
            "bit {bit}"
        );
        assert_eq!(b.seen.frames(), Vec::<String>::new(), "bit {bit}");
        assert_eq!(b.link.drops.get(Reason::Misbehaviour), 1);
    }
}

/// T29.
#[tokio::test(start_paused = true)]
async fn lost_repeated_or_swapped_records_close_the_link() {
    for trick in ["drop", "repeat", "swap"] {
        let armed = Arc::new(AtomicBool::new(false));
        let on = armed.clone();
        let held = Mutex::new(None);
        let (a, b, _tasks) = linked(REKEY_RECORDS, move |direction, message| {
            if direction == Direction::Back || !on.load(Ordering::Relaxed) {
                return vec![message];
            }
            let mut held = held.lock().unwrap();
            match (trick, held.take()) {
                ("repeat", _) => vec![message.clone(), message],
                ("drop", None) => {
                    *held = Some(message);
                    vec![]
                }
                ("swap", None) => {
                    *held = Some(message);
                    vec![]
                }
                ("swap", Some(first)) => vec![message, first],
                (_, Some(_)) => vec![message],
                (_, None) => vec![message],
            }
        });
        a.seen
            .until(|seen| seen.events().contains(&Event::Measured))
            .await;
        armed.store(true, Ordering::Relaxed);
        a.link.send(Class::Interactive, b"{\"n\":1}", b"").unwrap();
        a.link.send(Class::Interactive, b"{\"n\":2}", b"").unwrap();
        a.seen.until(|seen| seen.ending().is_some()).await;
        assert_eq!(
            a.seen.ending(),
            Some(Ending::Theirs { code: 4403 }),
            "{trick}"
        );
        assert!(b.seen.frames().len() <= usize::from(trick == "repeat"));
    }
}

/// T30 with 2^4 records to a key.
#[tokio::test(start_paused = true)]
async fn key_changes_leave_the_stream_intact() {
    let (a, b, _tasks) = linked(16, pass);
    for n in 0..500 {
        let json = format!("{{\"n\":{n}}}");
        a.link
            .send(Class::Interactive, json.as_bytes(), b"")
            .unwrap();
        b.link
            .send(Class::Interactive, json.as_bytes(), b"")
            .unwrap();
    }
    for side in [&a, &b] {
        side.seen.until(|seen| seen.frames().len() == 500).await;
        assert!(side.link.is_open());
    }
}

/// T28, the bits of the body: dropped and counted, and only too many of them end the link.
#[tokio::test(start_paused = true)]
async fn altered_bodies_are_dropped_and_counted() {
    let frame = routed_frame(("a", "b"), SID, 0, Class::Interactive, b"{}", &[7; 300]);
    let body = LENGTH_BYTES + record::covered(&frame).unwrap() + TAG_BYTES;
    let bodies = body * 8..(frame.len() - TAG_BYTES) * 8;
    let bits: Vec<usize> = bodies.step_by(41).take(17).collect();
    let flips = Mutex::new(bits.clone().into_iter());
    let (a, b, _tasks) = linked(REKEY_RECORDS, move |direction, mut message| {
        if let (Direction::Forward, Message::Binary(record)) = (direction, &mut message)
            && record.len() == frame.len()
            && let Some(bit) = flips.lock().unwrap().next()
        {
            record[bit / 8] ^= 1 << (bit % 8);
        }
        vec![message]
    });
    for _ in 0..16 {
        a.link.send(Class::Interactive, b"{}", &[7; 300]).unwrap();
    }
    a.link.send(Class::Control, b"{\"n\":1}", b"").unwrap();
    b.seen.until(|seen| seen.frames() == ["{\"n\":1}"]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(b.seen.frames().len(), 1);
    assert!(b.link.is_open());
    a.link.send(Class::Interactive, b"{}", &[7; 300]).unwrap();
    a.seen.until(|seen| seen.ending().is_some()).await;
    assert_eq!(a.seen.ending(), Some(Ending::Theirs { code: 4403 }));
    assert_eq!(bits.len(), 17);
}

/// T44: what a relay does to a frame, over three links in turn. Fields of a later version in the
/// header and everything in the body arrive as they were sent; only the hops are fewer.
#[test]
fn unknown_fields_survive_three_relays() {
    let mut frame = BytesMut::new();
    record::begin(&mut frame, Kind::Routed, Class::Bulk);
    let header = br#"{"later":{"x":[1,"\u00e9"]},"i":"01ARYZ6S4100000000000004HM","f":"a","t":"b" , "s":"00000000000000000000000000000000","n":7}"#;
    frame.extend_from_slice(header);
    record::end_header(&mut frame);
    let body: Vec<u8> = (0..=255).cycle().take(5000).collect();
    frame.extend_from_slice(&[0; TAG_BYTES]);
    frame.extend_from_slice(&body);
    for link in 0..4u8 {
        let covered = record::covered(&frame).unwrap();
        crate::crypto::seal::Sealer::new(&[link; 32])
            .seal_before_rest(&mut frame, covered)
            .unwrap();
        let opened = crate::crypto::seal::Opener::new(&[link; 32])
            .open(frame)
            .unwrap();
        let fixed = Fixed::read(opened.plain()).unwrap();
        assert_eq!(fixed.ttl, crate::wire::limits::TTL - link);
        let arrived = Arrived {
            fixed,
            record: opened,
        };
        assert_eq!(arrived.header(), header);
        assert_eq!(arrived.record.rest, body);
        frame = arrived.record.into_record();
        assert!(record::take_hop(&mut frame));
    }
}

async fn closed_with(act: impl AsyncFnOnce(&mut Puppet)) -> u16 {
    let (mut puppet, side, _tasks) = puppet();
    act(&mut puppet).await;
    let code = puppet.close_code().await;
    side.seen.until(|seen| seen.ending().is_some()).await;
    assert_eq!(side.seen.frames(), Vec::<String>::new());
    code
}

/// T42, T43, T23: what a verified neighbour may not send.
#[tokio::test(start_paused = true)]
async fn malformed_records_close_with_the_right_code() {
    let plain: &[(&[u8], &str)] = &[
        (&[2, 0, 8, 0, 0, 0, 0, 0], "record version"),
        (&[1, 9, 8, 0, 0, 0, 0, 0], "kind"),
        (&[1, 0, 8, 7, 0, 0, 0, 0], "class"),
        (&[1, 0, 8, 0, 0, 0, 0, 1], "reserved"),
        (&[1, 0, 8, 0, 0, 1, 0, 0], "hlen beyond the end"),
        (&[1, 0, 8, 0, 0, 0, 0, 0], "empty header"),
    ];
    for (bytes, what) in plain {
        let code = closed_with(async |p| p.send_plain(bytes).await).await;
        assert_eq!(code, 4400, "{what}");
    }
    let deep = format!("{{\"y\":\"x\",\"d\":{}{}}}", "[".repeat(32), "]".repeat(32));
    let headers: &[&[u8]] = &[
        br#"{"y":"ping","n":1,"n":2}"#,
        br#"{"y":"ping","n":9007199254740992}"#,
        br#"{"y":"x","d":"\ud800"}"#,
        b"{\"y\":\"x\",\"d\":\"\xc0\xaf\"}",
        br#"{"y":"ping"}"#,
        br#"{"y":7}"#,
        b"[]",
        deep.as_bytes(),
    ];
    for header in headers {
        let code = closed_with(async |p| p.send_record(Kind::Link, header, b"").await).await;
        assert_eq!(code, 4400, "{}", String::from_utf8_lossy(header));
    }
    let code = closed_with(async |p| p.send_record(Kind::Routed, b"{}", b"").await).await;
    assert_eq!(code, 4400);
    let long = [&[1, 0, 8, 0, 2, 1, 0, 0][..], &[b' '; 600]].concat();
    assert_eq!(closed_with(async |p| p.send_plain(&long).await).await, 4400);
    let code = closed_with(async |p| p.send(Message::Text("{}".into())).await).await;
    assert_eq!(code, 4400, "text after M4");
    let code = closed_with(async |p| {
        p.send(Message::Binary(BytesMut::from(&[0; 25][..]))).await;
    })
    .await;
    assert_eq!(code, 4403, "25 bytes");
    let code = closed_with(async |p| {
        p.send(Message::Binary(BytesMut::from(&vec![0; 65_537][..])))
            .await;
    })
    .await;
    assert_eq!(code, 4403, "65,537 bytes");
}

#[tokio::test(start_paused = true)]
async fn unsealed_rest_is_refused_or_counted() {
    let sealed = |p: &mut Puppet, kind: Kind, header: &[u8]| {
        let mut buffer = BytesMut::new();
        record::begin(&mut buffer, kind, Class::Interactive);
        buffer.extend_from_slice(header);
        record::end_header(&mut buffer);
        let covered = buffer.len() - record::LENGTH_BYTES;
        buffer.extend_from_slice(&[0; TAG_BYTES + 64]);
        p.sealer.seal_before_rest(&mut buffer, covered).unwrap();
        Message::Binary(buffer)
    };
    let code = closed_with(async |p| {
        let message = sealed(p, Kind::Link, br#"{"y":"ping","n":1}"#);
        p.send(message).await;
    })
    .await;
    assert_eq!(code, 4400);
    let code = closed_with(async |p| {
        let mut header = BytesMut::new();
        put_routed(&mut header, Ulid(1), &node("a"), &node("b"), &SID, 0);
        for _ in 0..17 {
            let message = sealed(p, Kind::Routed, &header);
            p.send(message).await;
        }
    })
    .await;
    assert_eq!(code, 4403, "above 16 in 60 s");
}

/// T45 for link messages; the inner frame's `type` is the exchange's to answer.
#[tokio::test(start_paused = true)]
async fn unknown_types_and_fields_leave_the_link_up() {
    let (mut puppet, side, _tasks) = puppet();
    puppet
        .send_record(Kind::Link, br#"{"y":"later","x":{"a":[]}}"#, b"body")
        .await;
    puppet
        .send_record(Kind::Link, br#"{"y":"ping","n":5,"later":true}"#, b"")
        .await;
    loop {
        let record = puppet.record().await.unwrap();
        if LinkHeader::decode(&record.header) == Ok(LinkHeader::Pong { n: 5 }) {
            break;
        }
    }
    assert_eq!(side.link.drops.get(Reason::UnknownLinkType), 1);
    assert!(side.link.is_open());
}

/// T52, the part that the record layer sees.
#[tokio::test(start_paused = true)]
async fn flood_of_link_messages_ends_the_link() {
    let code = closed_with(async |p| {
        for n in 0..20_000 {
            p.send_link(&LinkHeader::Pong { n }).await;
        }
    })
    .await;
    assert_eq!(code, 4429);
}

#[tokio::test(start_paused = true)]
async fn silence_kills_an_idle_link_after_three_heartbeats() {
    let (_puppet, side, _tasks) = puppet();
    let began = Instant::now();
    side.seen.until(|seen| seen.ending().is_some()).await;
    assert_eq!(began.elapsed().as_secs(), 45, "T78: at most 50 s");
    assert!(matches!(
        side.seen.ending(),
        Some(Ending::Ours {
            code: CloseCode::Timeout,
            ..
        })
    ));
}

/// T78 with a waiting request.
#[tokio::test(start_paused = true)]
async fn waiting_request_finds_a_dead_link_in_ten_seconds() {
    let cut = Arc::new(AtomicBool::new(false));
    let is_cut = cut.clone();
    let (a, _b, _tasks) = linked(REKEY_RECORDS, move |_, message| {
        if is_cut.load(Ordering::Relaxed) {
            vec![]
        } else {
            vec![message]
        }
    });
    a.seen
        .until(|seen| seen.events().contains(&Event::Measured))
        .await;
    cut.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let began = Instant::now();
    a.link.send(Class::Interactive, b"{}", b"").unwrap();
    a.seen.until(|seen| seen.ending().is_some()).await;
    assert!(
        began.elapsed() <= Duration::from_secs(11),
        "{:?}",
        began.elapsed()
    );
}

/// T77: time passes while this process stands still.
#[tokio::test(start_paused = true)]
async fn own_pause_of_a_minute_kills_no_link() {
    let (a, b, _tasks) = linked(REKEY_RECORDS, pass);
    for side in [&a, &b] {
        side.seen
            .until(|seen| seen.events().contains(&Event::Measured))
            .await;
    }
    tokio::time::advance(Duration::from_secs(60)).await;
    a.link.send(Class::Interactive, b"{\"n\":1}", b"").unwrap();
    b.seen.until(|seen| seen.frames().len() == 1).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(a.link.is_open() && b.link.is_open());
    assert!(!a.link.suspect());
}

#[tokio::test(start_paused = true)]
async fn neighbour_that_takes_nothing_is_given_up() {
    let (puppet, side, _tasks) = puppet();
    let began = Instant::now();
    let mut refused = None;
    for _ in 0..1000 {
        if let Err(error) = side.link.send(Class::Bulk, b"{}", &vec![0; 60_000]) {
            refused = Some(error);
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(refused, Some(SendError::Full));
    assert!(lock(&side.link.queue).bytes() < FLOW_QUEUE_BYTES + 65_536);
    // The room that never comes ends with the link.
    side.link.some_room(Class::Bulk).await;
    assert!(!side.link.is_open());
    assert_eq!(began.elapsed().as_secs(), 30);
    drop(puppet);
}

#[tokio::test(start_paused = true)]
async fn room_comes_back_and_nothing_is_lost() {
    let (a, b, _tasks) = linked(REKEY_RECORDS, pass);
    let mut waits = 0;
    for n in 0..400 {
        let json = format!("{{\"n\":{n}}}");
        while a.link.send(Class::Bulk, json.as_bytes(), &[7; 30_000]) == Err(SendError::Full) {
            waits += 1;
            a.link.some_room(Class::Bulk).await;
        }
    }
    b.seen.until(|seen| seen.frames().len() == 400).await;
    let expected: Vec<String> = (0..400).map(|n| format!("{{\"n\":{n}}}")).collect();
    assert_eq!(b.seen.frames(), expected);
    assert!(waits > 0);
}

#[tokio::test(start_paused = true)]
async fn drained_link_delivers_what_waits_in_both_directions() {
    let (a, b, _tasks) = linked(REKEY_RECORDS, pass);
    for n in 0..200 {
        let json = format!("{{\"n\":{n}}}");
        a.link
            .send(Class::Interactive, json.as_bytes(), b"")
            .unwrap();
        b.link
            .send(Class::Interactive, json.as_bytes(), b"")
            .unwrap();
    }
    a.link.drain(CloseCode::DuplicateLink, "test");
    assert_eq!(
        a.link.send(Class::Control, b"{}", b""),
        Err(SendError::Gone)
    );
    for side in [&a, &b] {
        side.seen.until(|seen| seen.ending().is_some()).await;
    }
    assert_eq!(b.seen.frames().len(), 200);
    assert_eq!(a.seen.frames().len(), 200);
    assert_eq!(b.seen.ending(), Some(Ending::Theirs { code: 4409 }));
}

#[tokio::test(start_paused = true)]
async fn goaway_is_told_once() {
    let (a, b, _tasks) = linked(REKEY_RECORDS, pass);
    a.link.send_goaway("shutting down", Duration::from_secs(30));
    a.link.send_goaway("shutting down", Duration::from_secs(30));
    a.link.send(Class::Interactive, b"{}", b"").unwrap();
    b.seen.until(|seen| seen.frames().len() == 1).await;
    let told = b
        .seen
        .events()
        .iter()
        .filter(|e| **e == Event::Goaway)
        .count();
    assert_eq!(told, 1);
    assert!(b.link.going_away());
}

/// Rule of performance.md in test form: what waits leaves in few flushes.
#[tokio::test(start_paused = true)]
async fn waiting_records_leave_together() {
    struct Counting(Arc<AtomicUsize>);
    impl MessageSink for Counting {
        async fn feed(&mut self, _: Message) -> Result<(), crate::mesh::transport::TransportError> {
            Ok(())
        }
        async fn flush(&mut self) -> Result<(), crate::mesh::transport::TransportError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        async fn close(&mut self, _: u16, _: &str) {}
    }
    let setup = crate::mesh::testkit::setup(true, REKEY_RECORDS);
    let link = Link::new(&setup);
    for _ in 0..1000 {
        link.send(Class::Interactive, b"{}", &[0; 200]).unwrap();
    }
    let flushes = Arc::new(AtomicUsize::new(0));
    let seen = crate::mesh::testkit::Recorder::new();
    let (_far, near) = crate::mesh::memory::pair();
    let tasks = Tasks::new();
    let sink = Counting(flushes.clone());
    link.run(&setup, (sink, near.stream), seen, &tasks);
    link.drain(CloseCode::Normal, "test");
    link.stopped().await;
    // 1,000 records of 560 bytes in batches of 16 KiB, then 32, then 64.
    assert!(flushes.load(Ordering::Relaxed) <= 18, "{flushes:?}");
}
