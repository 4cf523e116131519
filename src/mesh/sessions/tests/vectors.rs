//! The bytes of every kind of frame, as another implementation writes them (protocol 4.1, 4.3, 4.4,
//! 5.1, 6.1).

use serde_json::Value;

use super::*;
use crate::{
    crypto::identity::PublicKey,
    ids::unhex,
    mesh::{descriptor, signed, testkit::peer},
    wire::{frame::GossipHeader, inner},
};

fn fixture() -> Value {
    let text = include_str!("../../../../tests/fixtures/wire/v1.json");
    serde_json::from_str(text).unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}

fn bytes(value: &Value, key: &str) -> Vec<u8> {
    let digits = text(value, key).as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

fn key(value: &Value, name: &str) -> [u8; 32] {
    bytes(value, name).try_into().unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap()
}

fn class(value: &Value) -> Class {
    [Class::Control, Class::Interactive, Class::Bulk][value["class"].as_u64().unwrap() as usize]
}

#[test]
fn inner_frames_are_those_of_the_fixture() {
    for case in list(&fixture(), "inner") {
        let mut buffer = BytesMut::new();
        inner::put(
            &mut buffer,
            text(case, "json").as_bytes(),
            &bytes(case, "data"),
        )
        .unwrap();
        assert_eq!(buffer, bytes(case, "inner"));
    }
}

/// Every link record, its key changed after each fourth, written and read.
#[test]
fn link_records_are_those_of_the_fixture() {
    let all = fixture();
    let after = all["rekey_after"].as_u64().unwrap();
    let mut sealer = Sealer::with_rekey(&key(&all, "link_key"), after);
    let mut opener = Opener::with_rekey(&key(&all, "link_key"), after);
    let kinds = [
        Kind::Link,
        Kind::Routed,
        Kind::Gossip,
        Kind::RoutedHandshake,
        Kind::RoutedNotice,
    ];
    let mut met = std::collections::HashSet::new();
    for case in list(&all, "records") {
        let header = text(case, "header");
        let frame = Frame {
            kind: kinds[case["kind"].as_u64().unwrap() as usize],
            ttl: 8,
            class: class(case),
            header: header.into(),
            body: [bytes(case, "body"), bytes(case, "rest")].concat(),
        };
        met.insert(frame.kind);
        let record = bytes(case, "record");
        assert_eq!(frame.seal(&mut sealer), record, "{header}");
        let opened = opener.open(BytesMut::from(&record[..])).unwrap();
        assert_eq!(Frame::read(opened), frame);
        // Our writers make the same headers.
        let mut again = BytesMut::new();
        match frame.kind {
            Kind::Link => LinkHeader::decode(header.as_bytes())
                .unwrap()
                .put(&mut again),
            Kind::Gossip => GossipHeader::decode(header.as_bytes())
                .unwrap()
                .put(&mut again),
            _ => {
                let head = frame.head();
                let (f, t) = (node(&head.f), node(&head.t));
                put_routed(&mut again, head.i, &f, &t, &head.s, head.n);
            }
        }
        assert_eq!(again, header.as_bytes());
    }
    assert_eq!(met.len(), kinds.len(), "every kind has a record");
}

#[tokio::test]
async fn sealed_bodies_of_the_fixture_open_and_no_altered_one() {
    let all = fixture();
    let receiver = Live::new(
        node("office-01"),
        peer("home-01", 1),
        &live::Keys {
            sid: SessionId(unhex(text(&all, "sid")).unwrap()),
            send: crate::crypto::secret::Secret::new([0; 32]),
            receive: crate::crypto::secret::Secret::new(key(&all, "session_key")),
            ours: false,
            began: Duration::ZERO,
            secret: crate::crypto::stretch::SecretId(0),
        },
        Arc::default(),
        Arc::default(),
    );
    for case in list(&all, "sealed") {
        let (header, n) = (text(case, "header"), case["n"].as_u64().unwrap());
        let sealed = BytesMut::from(&bytes(case, "body")[..]);
        let open = |header: &str, mut body: BytesMut| {
            let opened = receiver.open(class(case), header.as_bytes(), n, &mut body);
            opened.map(|()| body)
        };
        let other = header.replace("home-01", "home-02");
        assert_eq!(open(&other, sealed.clone()), Err(Unopened::Tag));
        assert_eq!(open(header, sealed).unwrap(), bytes(case, "inner"));
    }
}

#[test]
fn the_signed_record_of_the_fixture_is_believed() {
    let all = fixture();
    let (record, name) = (&all["gossip"], node("office-01"));
    let (header, body) = (text(record, "header").as_bytes(), bytes(record, "body"));
    let key = PublicKey(key(record, "key"));
    let claim = signed::claim(header).unwrap();
    assert_eq!((&claim.node, claim.key), (&name, key));
    let payload = signed::verify(&claim, header, &body).unwrap();
    assert_eq!(payload, text(record, "payload").as_bytes());
    let descriptor = descriptor::read(payload).unwrap();
    assert_eq!(descriptor.software, "clawmatrix/9");
    for bit in [0, 16, 20, body.len() * 8 - 20] {
        let mut forged = body.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert!(signed::verify(&claim, header, &forged).is_err());
    }
}
