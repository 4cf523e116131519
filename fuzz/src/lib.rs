//! What is fuzzed: everything that reads bytes a stranger chose. A target must return, whatever it
//! is given; where something was accepted, it also checks that writing it again gives the same.

use std::{
    fs,
    path::Path,
    sync::{Arc, LazyLock},
};

use bytes::{Bytes, BytesMut};
use clawmatrix::{
    config::{Config, Source, TrustConfig},
    crypto::{
        handshake::{Initiator, Local, Responder},
        identity::Identity,
        seal::{Opener, Sealer},
        stretch::{MeshKey, SecretId, ValidKey},
        transcript::Carrier,
    },
    exchange,
    ids::{LinkId, MeshName, NodeId},
    mesh::{
        descriptor,
        gossip::{Comparison, Gossip, Neighbour, Out},
        linkstate::LinkState,
        signed::{self, RecordKind},
        view::{Descriptor, ModelOffer},
    },
    models::splice as body,
    policy::command,
    tools::{
        args::Call,
        frames::Frames,
        host::{
            denied::Denied,
            place::{Last, Places},
        },
    },
    trust::{Level, TrustStore},
    wire::{
        frame::{GossipHeader, LinkHeader, RoutedHeader},
        inner::{self, Inner},
        json,
        record::{self, Class, Kind, Record},
    },
};
use tokio::time::Instant;

/// One fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]),
    /// Inputs to start from: valid ones.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "record",
        run: record,
        seeds: record_seeds,
    },
    Target {
        name: "sealed",
        run: sealed,
        seeds: sealed_seeds,
    },
    Target {
        name: "inner",
        run: inner,
        seeds: inner_seeds,
    },
    Target {
        name: "message",
        run: message,
        seeds: message_seeds,
    },
    Target {
        name: "signed",
        run: signed,
        seeds: signed_seeds,
    },
    Target {
        name: "compared",
        run: compared,
        seeds: compared_seeds,
    },
    Target {
        name: "handshake",
        run: handshake,
        seeds: handshake_seeds,
    },
    Target {
        name: "config",
        run: config,
        seeds: config_seeds,
    },
    Target {
        name: "splice",
        run: splice,
        seeds: splice_seeds,
    },
    Target {
        name: "tools",
        run: tools,
        seeds: tools_seeds,
    },
    Target {
        name: "json",
        run: strict_json,
        seeds: json_seeds,
    },
];

/// Writes the seeds of `target` into `folder`.
///
/// # Panics
/// When they cannot be written.
pub fn write_seeds(target: &Target, folder: &Path) {
    fs::create_dir_all(folder).expect("the folder of seeds can be made");
    for (i, seed) in (target.seeds)().iter().enumerate() {
        fs::write(folder.join(format!("seed-{i}")), seed).expect("a seed can be written");
    }
}

/// A record's plaintext and the header inside it (protocol 5.1).
fn record(data: &[u8]) {
    let Ok(record) = Record::decode(Bytes::copy_from_slice(data)) else {
        return;
    };
    match record.kind {
        Kind::Link => {
            if let Ok(header) = LinkHeader::decode(&record.header)
                && header != LinkHeader::Unknown
            {
                let mut again = BytesMut::new();
                header.put(&mut again);
                assert_eq!(LinkHeader::decode(&again).ok(), Some(header));
            }
        }
        Kind::Gossip => {
            if let Ok(header) = GossipHeader::decode(&record.header) {
                let mut again = BytesMut::new();
                header.put(&mut again);
                assert_eq!(GossipHeader::decode(&again).ok(), Some(header));
            }
        }
        Kind::Routed | Kind::RoutedHandshake | Kind::RoutedNotice => {
            let _ = RoutedHeader::decode(&record.header);
        }
    }
}

fn record_seeds() -> Vec<Vec<u8>> {
    let of = |kind, header: &[u8], body: &[u8]| {
        let mut buffer = BytesMut::new();
        record::begin(&mut buffer, kind, Class::Interactive);
        buffer.extend_from_slice(header);
        record::end_header(&mut buffer);
        buffer.extend_from_slice(body);
        // The room for the length is the link's, not the record's.
        buffer[record::LENGTH_BYTES..].to_vec()
    };
    vec![
        of(Kind::Link, br#"{"y":"ping","n":7}"#, b""),
        of(Kind::Link, br#"{"y":"goaway","why":"restart","ms":5000}"#, b""),
        of(
            Kind::Routed,
            br#"{"i":"01J9ZK3QW7X8Y2V4T6R0M1N5PC","f":"home-01","t":"office-01","s":"00112233445566778899aabbccddeeff","n":123}"#,
            b"body",
        ),
        of(
            Kind::Gossip,
            br#"{"k":"desc","node":"home-01","key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","inc":1,"ver":2}"#,
            &[0, 2, 1, 1, b'{', b'}'],
        ),
    ]
}

/// A link record as it comes from the socket (protocol 4.1). The key is known to the fuzzer's seeds.
fn sealed(data: &[u8]) {
    if let Ok(opened) = Opener::with_rekey(&KEY, 16).open(BytesMut::from(data)) {
        record(opened.plain());
        inner(&opened.rest);
    }
}

const KEY: [u8; 32] = [7; 32];

fn sealed_seeds() -> Vec<Vec<u8>> {
    record_seeds()
        .into_iter()
        .filter_map(|plain| {
            let mut buffer = BytesMut::zeroed(record::LENGTH_BYTES);
            buffer.extend_from_slice(&plain);
            Sealer::with_rekey(&KEY, 16).seal(&mut buffer).ok()?;
            Some(buffer.to_vec())
        })
        .collect()
}

/// A node's record about itself (protocol 6.1): u16 length of the header, header, body.
fn signed(data: &[u8]) {
    let Some((length, rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let at = usize::from(u16::from_be_bytes(*length)).min(rest.len());
    let (header, body) = rest.split_at(at);
    // Without the signature, so that what lies behind it is reached too.
    if let Some(offered) = descriptor::read(body) {
        // What was cleaned is clean.
        assert_eq!(descriptor::clean(offered.clone()), offered);
    }
    if let Some(links) = LinkState::read(body) {
        let again = LinkState::read(&links.payload());
        assert_eq!(again, Some(links), "what was read can be written");
    }
    if let Ok(claim) = signed::claim(header) {
        let _ = signed::verify(&claim, header, body);
    }
}

static SIGNER: LazyLock<(NodeId, Identity)> = LazyLock::new(|| {
    let node = "office-01".parse().expect("a name");
    (node, Identity::generate())
});

fn signed_seeds() -> Vec<Vec<u8>> {
    let (node, key) = &*SIGNER;
    let descriptor = Descriptor {
        software: "clawmatrix/1".into(),
        tags: vec!["a".into(), "b".into()],
        models: vec![ModelOffer::default()],
        ..Descriptor::default()
    };
    let links = LinkState {
        relay: true,
        leaves: vec![([1; 8], 20)],
        ..LinkState::default()
    };
    let seed = |kind, payload: &[u8]| {
        let record = signed::sign(key, node, kind, (1, 2), payload);
        let length = (record.header.len() as u16).to_be_bytes();
        [
            [&length[..], &record.header, &record.body].concat(),
            [&length[..], &record.header, payload].concat(),
        ]
    };
    [
        seed(RecordKind::Descriptor, &descriptor::payload(&descriptor)),
        seed(RecordKind::LinkState, &links.payload()),
        seed(RecordKind::Leave, b""),
    ]
    .concat()
}

/// What neighbours tell one another to find what differs (protocol 6.4): which message, its body.
fn compared(data: &[u8]) {
    let Some((which, body)) = data.split_first() else {
        return;
    };
    let message = match which % 5 {
        0 => Comparison::Digest(true, body),
        1 => Comparison::Digest(false, body),
        2 => Comparison::Vector(true, body),
        3 => Comparison::Vector(false, body),
        _ => Comparison::Want(body),
    };
    let (mut gossip, now) = (lone_gossip(), Instant::now());
    let _ = gossip.message(LINK, message, now);
    gossip.drain(now, |_| 64, |_, _| {});
}

const LINK: LinkId = LinkId(1);

fn lone_gossip() -> Gossip {
    let (node, key) = &*GOSSIP_SIGNER;
    let trust = TrustStore::in_memory(&TrustConfig::default(), &[]).expect("no keys, no conflict");
    let now = Instant::now();
    let mut gossip = Gossip::new(node, key.clone(), trust, 1, true, now);
    let about = Neighbour {
        node: "home-01".parse().expect("a name"),
        level: Level::Pinned,
        relay: true,
        dialed: true,
    };
    gossip.link_up(LINK, about, now);
    gossip
}

static GOSSIP_SIGNER: LazyLock<(NodeId, Arc<Identity>)> = LazyLock::new(|| {
    let node = "office-01".parse().expect("a name");
    (node, Arc::new(Identity::generate()))
});

fn compared_seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![
        [&[3][..], &[0xff; 8], &[0; 33]].concat(),
        [&[4][..], &[1; 17], &[0; 17]].concat(),
    ];
    lone_gossip().drain(
        Instant::now(),
        |_| 64,
        |_, out| {
            if let Out::Digest(_, body) = out {
                seeds.push([&[0][..], &body].concat());
            }
        },
    );
    seeds
}

/// What an exchange reads (protocol 4.4).
fn inner(data: &[u8]) {
    let Ok(frame) = Inner::decode(Bytes::copy_from_slice(data)) else {
        return;
    };
    let mut again = BytesMut::new();
    if inner::put(&mut again, &frame.json, &frame.data).is_ok() {
        assert_eq!(Inner::decode(again.freeze()).as_ref(), Ok(&frame));
    }
    let _ = json::check(&frame.json);
}

fn inner_seeds() -> Vec<Vec<u8>> {
    let of = |json: &[u8], data: &[u8]| {
        let mut buffer = BytesMut::new();
        inner::put(&mut buffer, json, data).expect("a seed fits");
        buffer.to_vec()
    };
    vec![
        of(br#"{"type":"noop"}"#, b""),
        of(
            br#"{"type":"cancel","rid":"00112233445566778899aabbccddeeff","reason":"client"}"#,
            b"",
        ),
        of(
            br#"{"type":"chunk","rid":"00112233445566778899aabbccddeeff","dir":"down","seq":3}"#,
            b"data: {}\n\n",
        ),
        of(
            br#"{"type":"ack","a":[["00112233445566778899aabbccddeeff","up",1,262144]]}"#,
            b"",
        ),
    ]
}

/// The JSON of an inner frame, as an exchange reads it (protocol 5.3).
fn message(data: &[u8]) {
    let _ = exchange::is_message(data);
}

fn message_seeds() -> Vec<Vec<u8>> {
    [
        r#"{"type":"noop"}"#,
        r#"{"type":"model_req","rid":"00112233445566778899aabbccddeeff","model":"m","path":"/v1/chat/completions","hdr":{},"stream":true,"dl":60000,"blen":12,"hops":[],"actor":"user"}"#,
        r#"{"type":"accept","rid":"00112233445566778899aabbccddeeff","seq":0,"queue":1,"phase":"accepted"}"#,
        r#"{"type":"head","rid":"00112233445566778899aabbccddeeff","seq":0,"status":200,"meta":{"content_type":"text/event-stream"},"fin":true,"ok":true}"#,
        r#"{"type":"chunk","rid":"00112233445566778899aabbccddeeff","dir":"down","seq":3}"#,
        r#"{"type":"end","rid":"00112233445566778899aabbccddeeff","seq":9,"ok":true,"usage":{"in":1}}"#,
        r#"{"type":"error","rid":"00112233445566778899aabbccddeeff","seq":1,"code":"overloaded","message":"m","retryable":true,"stage":"not_started","retry_after_ms":1000}"#,
        r#"{"type":"ack","a":[["00112233445566778899aabbccddeeff","up",1,262144]]}"#,
        r#"{"type":"cancel","rid":"00112233445566778899aabbccddeeff","reason":"cancelled"}"#,
        r#"{"type":"query","rid":"00112233445566778899aabbccddeeff"}"#,
        r#"{"type":"state","rid":"00112233445566778899aabbccddeeff","phase":"running","next":3}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// One whole handshake in which one message was replaced or damaged on its way (protocol 3).
///
/// The first byte says which message and how: 0-3 replaces M1 to M4 by the rest of the input, 4-7
/// takes triples of (place, bits) from it and flips those bits of the true message. One that was
/// damaged in a single place must not end well: no byte of the four messages is without meaning.
fn handshake(data: &[u8]) {
    let Some((&how, change)) = data.split_first() else {
        return;
    };
    let (place, flips) = (how % 4, how % 8 >= 4);
    let mut damaged = false;
    let mut on_its_way = |number: u8, text: String| -> String {
        if number != place {
            return text;
        }
        let altered = if flips {
            let mut bytes = text.clone().into_bytes();
            for triple in change.chunks_exact(3) {
                let at = usize::from(u16::from_be_bytes([triple[0], triple[1]])) % bytes.len();
                bytes[at] ^= triple[2];
            }
            String::from_utf8_lossy(&bytes).into_owned()
        } else {
            String::from_utf8_lossy(change).into_owned()
        };
        damaged = altered != text;
        altered
    };
    let parties = &*PARTIES;
    let (dialer, m1) = Initiator::hello(parties.home.clone(), parties.office.node.clone());
    let Ok((listener, m2)) = Responder::answer(parties.office.clone(), &on_its_way(0, m1)) else {
        return;
    };
    let Ok(introduced) = dialer.open(&on_its_way(1, m2)) else {
        return;
    };
    let (proving, m3) = introduced.prove(&parties.key[0].key);
    let Ok(proved) = listener.open(&on_its_way(2, m3), &parties.key) else {
        return;
    };
    let (_, m4) = proved.accept();
    let ended = proving.confirm(&on_its_way(3, m4)).is_ok();
    let one_place = flips && change.len() < 6;
    assert!(
        !(ended && damaged && one_place),
        "a damaged handshake ended well"
    );
}

struct Parties {
    home: Local,
    office: Local,
    key: Vec<ValidKey>,
}

static PARTIES: LazyLock<Parties> = LazyLock::new(|| {
    let local = |name: &str| Local {
        node: name.parse::<NodeId>().expect("a name"),
        mesh: "demo".parse::<MeshName>().expect("a name"),
        identity: Arc::new(Identity::generate()),
        params: b"{}".to_vec(),
        carrier: Carrier::Link,
    };
    Parties {
        home: local("home-01"),
        office: local("office-01"),
        key: vec![ValidKey {
            id: SecretId(0),
            key: Arc::new(MeshKey::from_bytes([3; 32])),
        }],
    }
});

fn handshake_seeds() -> Vec<Vec<u8>> {
    let parties = &*PARTIES;
    let (_, m1) = Initiator::hello(parties.home.clone(), parties.office.node.clone());
    let m2 = Responder::answer(parties.office.clone(), &m1).map(|(_, m2)| m2);
    let replace = |number: u8, text: &str| [&[number], text.as_bytes()].concat();
    vec![
        replace(0, &m1),
        replace(1, &m2.expect("M1 is well formed")),
        replace(2, r#"{"type":"auth","box":"AAAA"}"#),
        replace(3, r#"{"type":"auth_ok","box":"AAAA"}"#),
        vec![4, 0, 30, 1],
        vec![5, 0, 30, 1],
        vec![6, 0, 30, 1],
        vec![7, 0, 30, 1],
    ]
}

/// A configuration file: from a person, but a person's mistakes are no reason to panic.
fn config(data: &[u8]) {
    let source = Source {
        openclaw: data.len() % 2 == 1,
        folder: Path::new("/nonexistent"),
        env: &|_| None,
    };
    let _ = Config::from_text(data, &source);
}

fn config_seeds() -> Vec<Vec<u8>> {
    [
        r#"{"nodeId":"home-01","secret":"kU9-real-parts-7Qe2vX0s","peers":[{"nodeId":"office-01","url":"ws://office:19000"}]}"#,
        r#"{"nodeId":"office-01","secret":"kU9-real-parts-7Qe2vX0s","listen":true,"listenHost":"::","listenPort":0,"models":[{"id":"a/b","baseUrl":"http://127.0.0.1:1/v1","allow":["home-*","label:x"]},"auto"],"agents":[{"id":"main"}],"toolProxy":{"enabled":true,"allow":["*"]},"trust":{"mode":"explicit","nodes":{}},"acceptSecrets":[{"secret":"0123456789abcdefXY","notAfter":"2027-01-01T00:00:00Z"}],"proxyModels":[{"id":"m","nodeId":"x"}],"tags":["t"],"limits":{}}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// The scanner that finds and replaces `model` in a request body.
fn splice(data: &[u8]) {
    if let Ok(found) = body::scan(data) {
        let bytes = Bytes::copy_from_slice(data);
        let again: Vec<u8> = body::splice(&bytes, &found.span, "other/model \"q\"").concat();
        let second = body::scan(&again).expect("a replaced model is found again");
        assert_eq!(second.model, "other/model \"q\"");
        assert_eq!(second.stream, found.stream);
    }
    let _ = body::ends_event(data);
}

fn splice_seeds() -> Vec<Vec<u8>> {
    [
        r#"{"model":"office-01/m","messages":[{"role":"user","content":"a \"model\": b"}],"stream":true}"#,
        r#" { "a" : {"model":1}, "mod\u0065l" : "x\u00e9\/y" , "stream":false}"#,
        "data: x\n\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// What a request for a tool is read with (protocol 8): commands, paths, arguments, the answer's frames. A
/// path that leads anywhere leads beneath its root.
fn tools(data: &[u8]) {
    static PLACES: LazyLock<Places> = LazyLock::new(|| {
        let root = std::env::temp_dir().join("clawmatrix-fuzz-root");
        fs::create_dir_all(root.join("sub")).expect("the root can be made");
        let root = fs::canonicalize(root).expect("the root is there");
        Places {
            roots: vec![root],
            home: "/nonexistent".into(),
            denied: Denied::new(Path::new("/nonexistent"), &[]),
        }
    });
    let _ = Frames::default().feed(data);
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some(words) = command::words(text) {
        let quoted: Vec<String> = words
            .iter()
            .map(|word| format!("'{}'", word.replace('\'', "'\\''")))
            .collect();
        let again = command::words(&quoted.join(" "));
        assert_eq!(again.as_deref(), Some(&*words));
    }
    let _ = command::hidden(text);
    let _ = command::forbidden_variable(text);
    for last in [Last::Follow, Last::Keep] {
        if let Ok(place) = PLACES.locate(text, last) {
            assert!(place.real.starts_with(&PLACES.roots[0]), "{place:?}");
        }
    }
    if let Ok(args) = serde_json::from_str::<serde_json::Value>(text) {
        for tool in ["exec", "read", "write", "edit", "list", "other"] {
            let _ = Call::read(tool, args.clone());
        }
    }
}

fn tools_seeds() -> Vec<Vec<u8>> {
    [
        "ls -la 'a b' \"c\\\"d\" e\\ f",
        "A=1 ls | wc",
        "sub/../x",
        "./sub/a.txt",
        "/tmp/clawmatrix-fuzz-root/sub/%2e%2e/x",
        r#"{"argv":["ls","-l"],"workdir":"sub","timeout":1.5,"env":{"TZ":"x"}}"#,
        r#"{"path":"sub","offset":1,"limit":2}"#,
        "\u{1}\0\0\0\u{3}abc",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// The strict JSON check of protocol 5.2: what it accepts, serde_json accepts.
fn strict_json(data: &[u8]) {
    if json::check(data).is_ok() {
        assert!(std::str::from_utf8(data).is_ok());
    }
}

fn json_seeds() -> Vec<Vec<u8>> {
    [
        r#"{"a":[1,-2,0.5,9007199254740991],"b":{"c":null,"d":"\u00e9\n"}}"#,
        r#"{"a":1,"a":2}"#,
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
