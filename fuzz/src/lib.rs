//! What is fuzzed: everything that reads bytes a stranger chose. A target must return, whatever it
//! is given; where something was accepted, it also checks that writing it again gives the same.

use std::{fs, path::Path};

use bytes::{Bytes, BytesMut};
use clawmatrix::{
    crypto::seal::{Opener, Sealer},
    wire::{
        frame::{GossipHeader, LinkHeader, RoutedHeader},
        inner::{self, Inner},
        json,
        record::{self, Class, Kind, Record},
    },
};

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
        record(&opened.plain);
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
