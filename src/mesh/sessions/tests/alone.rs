//! Sessions alone, without links. Numbers T.. are those of protocol 10.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::sync::Notify;

use super::super::live::{Keys, Live, Unopened};
use crate::{
    crypto::{seal::TAG_BYTES, secret::Secret, stretch::SecretId},
    ids::SessionId,
    mesh::{
        hops::Hops,
        session::Class,
        testkit::{node, peer},
    },
    wire::{
        frame::RoutedHeader,
        inner::Inner,
        record::{FIXED_BYTES, LENGTH_BYTES, covered},
    },
};

/// Both ends of one session.
fn ends() -> (Arc<Live>, Arc<Live>) {
    let keys = |send: u8, receive: u8, ours| Keys {
        sid: SessionId([9; 16]),
        send: Secret::new([send; 32]),
        receive: Secret::new([receive; 32]),
        ours,
        began: std::time::Duration::ZERO,
        secret: SecretId(0),
    };
    let end = |us: &str, them: &str, keys: &Keys| {
        Live::new(
            node(us),
            peer(them, 1),
            keys,
            Arc::new(Hops::default()),
            Arc::new(Notify::new()),
        )
    };
    (
        end("a", "b", &keys(1, 2, true)),
        end("b", "a", &keys(2, 1, false)),
    )
}

/// A sent frame in parts: header and body.
fn parts(frame: &BytesMut) -> (Vec<u8>, BytesMut) {
    let body = LENGTH_BYTES + covered(frame).unwrap() + TAG_BYTES;
    let header = frame[LENGTH_BYTES + FIXED_BYTES..body - TAG_BYTES].to_vec();
    (header, BytesMut::from(&frame[body..]))
}

fn number(header: &[u8]) -> u64 {
    RoutedHeader::decode(header).unwrap().n
}

#[tokio::test]
async fn frames_open_at_the_other_end_once() {
    let (a, b) = ends();
    for n in 0..3 {
        let frame = a.write(Class::Interactive, b"{\"x\":1}", b"data").unwrap();
        let (header, body) = parts(&frame);
        assert_eq!(number(&header), n);
        let mut first = body.clone();
        b.open(Class::Interactive, &header, n, &mut first).unwrap();
        let inner = Inner::decode(first.freeze()).unwrap();
        assert_eq!(
            (&inner.json[..], &inner.data[..]),
            (&b"{\"x\":1}"[..], &b"data"[..])
        );
        let again = b.open(Class::Interactive, &header, n, &mut body.clone());
        assert_eq!(again, Err(Unopened::Replay));
    }
}

/// T31 for the crypto: header, class, number and every byte of the body are bound.
#[tokio::test]
async fn whatever_a_relay_alters_does_not_open() {
    let (a, b) = ends();
    let frame = a.write(Class::Interactive, b"{}", b"data").unwrap();
    let (header, body) = parts(&frame);
    let open =
        |class, header: &[u8], n, body: &BytesMut| b.open(class, header, n, &mut body.clone());
    assert_eq!(open(Class::Bulk, &header, 0, &body), Err(Unopened::Tag));
    assert_eq!(
        open(Class::Interactive, &header, 1, &body),
        Err(Unopened::Tag)
    );
    let mut longer = header.clone();
    longer.push(b' ');
    assert_eq!(
        open(Class::Interactive, &longer, 0, &body),
        Err(Unopened::Tag)
    );
    for at in 0..body.len() {
        let mut altered = body.clone();
        altered[at] ^= 1;
        assert_eq!(
            open(Class::Interactive, &header, 0, &altered),
            Err(Unopened::Tag)
        );
    }
    // None of it used the number up.
    assert_eq!(open(Class::Interactive, &header, 0, &body), Ok(()));
}

/// T33: bulk that was overtaken by thousands of interactive frames still arrives.
#[tokio::test]
async fn each_class_has_its_own_window() {
    let (a, b) = ends();
    let late = a.write(Class::Bulk, b"{}", b"").unwrap();
    for _ in 0..10_000 {
        let frame = a.write(Class::Interactive, b"{}", b"").unwrap();
        let (header, mut body) = parts(&frame);
        b.open(Class::Interactive, &header, number(&header), &mut body)
            .unwrap();
    }
    let (header, mut body) = parts(&late);
    assert_eq!(b.open(Class::Bulk, &header, 0, &mut body), Ok(()));
}

#[tokio::test]
async fn the_responder_may_send_only_after_a_frame_of_the_initiator() {
    let (a, b) = ends();
    assert!(a.usable() && !b.usable());
    assert!(b.confirm(), "the first frame");
    assert!(b.usable() && !b.confirm());
    assert!(b.end() && !b.end() && !b.usable());
}
