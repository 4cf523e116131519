//! What an attacker on the wire can try with the messages themselves.

use super::*;
use crate::wire::limits::HANDSHAKE_MESSAGE_BYTES;

/// T18.
#[test]
fn no_single_bit_flip_lets_the_handshake_complete() {
    let duo = Duo::new();
    let lengths = duo.capture().map(|text| text.len());
    let mut tried = 0;
    for (n, length) in (1..).zip(lengths) {
        for bit in 0..length * 8 {
            let outcome = duo.run(|which, text| {
                if which != n {
                    return text;
                }
                let mut bytes = text.into_bytes();
                bytes[bit / 8] ^= 1 << (bit % 8);
                // What is not UTF-8 cannot be a text message; the carrier refuses it.
                String::from_utf8(bytes).unwrap_or_default()
            });
            assert!(outcome.is_err(), "message {n}, bit {bit}");
            tried += 1;
        }
    }
    assert!(tried > 6000);
}

/// T09, T10: captured messages are worthless in another handshake.
#[test]
fn replayed_messages_fail_on_either_side() {
    let duo = Duo::new();
    let [m1, m2, m3, m4] = duo.capture();
    let (fresh, _) = Responder::answer(duo.listener.clone(), &m1).unwrap();
    assert_eq!(
        fresh.open(&m3, &duo.accepted).unwrap_err(),
        Abort::Altered("proof")
    );
    let (fresh, _) = Initiator::hello(duo.dialer.clone(), duo.listener.node.clone());
    assert_eq!(fresh.open(&m2).unwrap_err(), Abort::OtherMesh);
    let replayed_end = duo.run(|n, text| if n == 4 { m4.clone() } else { text });
    assert_eq!(
        replayed_end.unwrap_err(),
        (Side::Dialer, Abort::Altered("last"))
    );
}

/// T11: M1's own values come back as M2.
#[test]
fn reflected_ephemeral_or_nonce_is_refused() {
    let duo = Duo::new();
    let fresh = || Fresh::from_bytes([3; 32], [4; 32]);
    let hello = || Initiator::hello_with(duo.dialer.clone(), duo.listener.node.clone(), fresh());
    for (secret, nonce) in [([3; 32], [5; 32]), ([6; 32], [4; 32])] {
        let same = Fresh::from_bytes(secret, nonce);
        let (initiator, m1) = hello();
        // The listener would notice as well.
        assert!(matches!(
            Responder::answer_with(duo.listener.clone(), &m1, &same),
            Err(Abort::Exchange)
        ));
        let challenge = Challenge {
            version: 1,
            nonce: same.nonce,
            ek: same.public(),
            sealed: vec![0; 100],
        };
        assert_eq!(
            initiator.open(&challenge.text()).unwrap_err(),
            Abort::Exchange
        );
    }
}

/// T12: a listener without the secret sends back the dialer's own MAC.
#[test]
fn reflected_mac_is_refused() {
    let duo = Duo::new();
    let (initiator, m1) = Initiator::hello(duo.dialer.clone(), duo.listener.node.clone());
    let (responder, m2) = Responder::answer(duo.listener.clone(), &m1).unwrap();
    let (proving, m3) = initiator.open(&m2).unwrap().prove(&duo.dialer_key);
    let sealed = Sealed::read("auth", &m3).unwrap();
    let th4 = transcript::th_next(&responder.th3, &sealed);
    let opened = transcript::open(&responder.boxes.dialer, 0, &responder.th3, sealed).unwrap();
    let mut parts = Parts::of(&opened, "proof");
    parts.named().unwrap();
    parts.array::<64>().unwrap();
    let mut plain = parts.array::<32>().unwrap().to_vec();
    transcript::push_lp(&mut plain, b"{}");
    let reflected = transcript::seal(&responder.boxes.listener, 1, &th4, plain);
    let m4 = Sealed::text("auth_ok", &reflected);
    assert_eq!(proving.confirm(&m4).unwrap_err(), Abort::Proof);
}

/// T14, T15.
#[test]
fn versions_cannot_be_stripped_altered_or_invented() {
    let duo = Duo::new();
    let with = |n: u8, from: &'static str, to: &'static str| {
        duo.run(move |which, text| {
            if which == n {
                assert!(text.contains(from));
                text.replace(from, to)
            } else {
                text
            }
        })
        .unwrap_err()
    };
    // The dialer's transcript holds what it offered, so it cannot open the challenge.
    for list in ["\"v\":[1,2]", "\"v\":[2,1]", "\"v\":[1,1]"] {
        assert_eq!(
            with(1, "\"v\":[1]", list),
            (Side::Dialer, Abort::OtherMesh),
            "{list}"
        );
    }
    for list in ["\"v\":[2]", "\"v\":[0]"] {
        assert_eq!(with(1, "\"v\":[1]", list), (Side::Listener, Abort::Version));
    }
    for version in ["\"v\":2", "\"v\":0"] {
        assert_eq!(with(2, "\"v\":1", version), (Side::Dialer, Abort::Version));
    }
}

/// The points of small order in every encoding that X25519 takes for one of them.
const SMALL_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

/// T16. The listener fails inside the first step, which is the one that would sign.
#[test]
fn ephemerals_of_small_order_are_refused() {
    let duo = Duo::new();
    for point in SMALL_ORDER {
        for high_bit in [0, 0x80] {
            let mut ek = unhex::<32>(point).unwrap();
            ek[31] |= high_bit;
            let hello = Hello {
                versions: vec![1],
                nonce: [9; 32],
                ek,
            };
            assert!(
                matches!(
                    Responder::answer(duo.listener.clone(), &hello.text()),
                    Err(Abort::Exchange)
                ),
                "{point}"
            );
            let challenge = Challenge {
                version: 1,
                nonce: [9; 32],
                ek,
                sealed: vec![0; 100],
            };
            let (initiator, _) = Initiator::hello(duo.dialer.clone(), duo.listener.node.clone());
            assert_eq!(
                initiator.open(&challenge.text()).unwrap_err(),
                Abort::Exchange
            );
        }
    }
}

/// Builds M3 as an attacker who knows the secret can: any key, any signature.
fn forged_proof(duo: &Duo, responder: &Responder, key: PublicKey, signature: [u8; 64]) -> String {
    let id_d = transcript::id(&duo.dialer.node, &key);
    let id_l = duo.listener.id();
    let mesh_secret = MeshSecret::new(&duo.dialer_key, &responder.dh);
    let mac = mesh_secret.mac_dialer(&responder.th3, &id_l, &id_d, &signature);
    let mut plain = [&id_d[..], &signature, &mac].concat();
    transcript::push_lp(&mut plain, b"{}");
    Sealed::text(
        "auth",
        &transcript::seal(&responder.boxes.dialer, 0, &responder.th3, plain),
    )
}

/// T17.
#[test]
fn weak_identity_keys_and_malleated_signatures_are_refused() {
    let duo = Duo::new();
    let answer = || {
        let (_, m1) = Initiator::hello(duo.dialer.clone(), duo.listener.node.clone());
        Responder::answer(duo.listener.clone(), &m1).unwrap().0
    };
    let honest = |responder: &Responder| {
        let id_d = duo.dialer.id();
        let parts = [&responder.th3[..], &duo.listener.id(), &id_d];
        duo.dialer.identity.sign(Label::Dialer, &parts)
    };
    let key = duo.dialer.identity.public();

    // The builder itself is sound: with an honest signature it is accepted.
    let responder = answer();
    let m3 = forged_proof(&duo, &responder, key, honest(&responder));
    assert!(responder.open(&m3, &duo.accepted).is_ok());

    // s + L: the same equation, other bytes.
    let responder = answer();
    let mut signature = honest(&responder);
    let order = unhex::<32>("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
    let mut carry = 0_u16;
    for (byte, add) in signature[32..].iter_mut().zip(order.unwrap()) {
        carry += u16::from(*byte) + u16::from(add);
        *byte = carry.to_le_bytes()[0];
        carry >>= 8;
    }
    let m3 = forged_proof(&duo, &responder, key, signature);
    assert_eq!(
        responder.open(&m3, &duo.accepted).unwrap_err(),
        Abort::Signature
    );

    // Keys of order 1, 2, 4, 8, canonical or not: R = neutral, s = 0 satisfies the plain equation.
    let weak = [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    let mut signature = [0; 64];
    signature[0] = 1;
    for point in weak {
        let responder = answer();
        let key = PublicKey(unhex(point).unwrap());
        let m3 = forged_proof(&duo, &responder, key, signature);
        assert_eq!(
            responder.open(&m3, &duo.accepted).unwrap_err(),
            Abort::Signature,
            "{point}"
        );
    }
}

/// The order of checks of protocol 3.3: without the secret nobody makes us verify a signature, nor
/// learns anything about names.
#[test]
fn proof_is_judged_before_signature_and_name() {
    let duo = Duo::new();
    let (_, m1) = Initiator::hello(duo.dialer.clone(), duo.listener.node.clone());
    for (node, key) in [
        ("cloud-01", duo.listener.identity.public()),
        ("home-01", PublicKey([0; 32])),
    ] {
        let mut outsider = Duo::new();
        outsider.dialer_key = MeshKey::from_bytes([0; 32]);
        outsider.dialer.node = node.parse().unwrap();
        let (responder, _) = Responder::answer(duo.listener.clone(), &m1).unwrap();
        let m3 = forged_proof(&outsider, &responder, key, [0; 64]);
        assert_eq!(
            responder.open(&m3, &duo.accepted).unwrap_err(),
            Abort::Proof
        );
    }
}

/// T19.
#[test]
fn end_to_end_messages_do_not_pass_on_a_link() {
    let duo = Duo::new();
    let mut routed = Duo::new();
    routed.dialer.carrier = Carrier::EndToEnd;
    routed.listener.carrier = Carrier::EndToEnd;
    assert!(routed.honest().is_ok());
    let mut mixed = Duo::new();
    mixed.listener.carrier = Carrier::EndToEnd;
    assert_eq!(
        mixed.honest().unwrap_err(),
        (Side::Dialer, Abort::OtherMesh)
    );
    for (from, onto) in [(&routed, &duo), (&duo, &routed)] {
        let captured = from.capture();
        for n in 1..=4 {
            let outcome = onto.run(|which, text| {
                if which == n {
                    captured[usize::from(n) - 1].clone()
                } else {
                    text
                }
            });
            assert!(outcome.is_err(), "message {n}");
        }
    }
}

/// T20.
#[test]
fn unknown_duplicate_and_oversize_fields_are_refused() {
    let duo = Duo::new();
    let refused = |n: u8, change: &dyn Fn(&str) -> String| {
        let outcome = duo.run(|which, text| if which == n { change(&text) } else { text });
        let (_, abort) = outcome.unwrap_err();
        assert!(matches!(abort, Abort::Malformed(_)), "message {n}: {abort}");
    };
    for n in 1..=4 {
        refused(n, &|text| text.replacen('{', r#"{"extra":1,"#, 1));
        refused(n, &|text| {
            let kind = &text[1..text.find(',').unwrap()];
            text.replacen('{', &format!("{{{kind},"), 1)
        });
        refused(n, &|text| {
            let padding = " ".repeat(HANDSHAKE_MESSAGE_BYTES);
            text.replacen('}', &format!("{padding}}}"), 1)
        });
        refused(n, &|text| format!("{text}{text}"));
        refused(n, &|text| text.replace("auth", "\\u0061uth"));
        refused(n, &|text| text.replace("\"}", "=\"}"));
        refused(n, &|text| format!("[{text}]"));
        refused(n, &|_| String::new());
    }
    // An array in the order of the fields, which serde by itself takes for the struct.
    refused(3, &|text| {
        let message: Value = serde_json::from_str(text).unwrap();
        format!("[\"auth\",{}]", message["box"])
    });
    refused(1, &|text| {
        text.replace("[1]", &format!("[{}1]", "1,".repeat(16)))
    });
    refused(1, &|text| text.replace("[1]", "[]"));
    refused(1, &|text| text.replace("[1]", "[257]"));
}

#[test]
fn boxes_hold_exactly_their_parts() {
    const NAME_START: usize = 2;
    let duo = Duo::new();
    let (initiator, m1) = Initiator::hello(duo.dialer.clone(), duo.listener.node.clone());
    let (responder, m2) = Responder::answer(duo.listener.clone(), &m1).unwrap();
    let (_, m3) = initiator.open(&m2).unwrap().prove(&duo.dialer_key);
    let reseal = |edit: fn(&mut Vec<u8>)| {
        let sealed = Sealed::read("auth", &m3).unwrap();
        let mut plain =
            transcript::open(&responder.boxes.dialer, 0, &responder.th3, sealed).unwrap();
        edit(&mut plain);
        let sealed = transcript::seal(&responder.boxes.dialer, 0, &responder.th3, plain.to_vec());
        Sealed::text("auth", &sealed)
    };
    let edits: [fn(&mut Vec<u8>); 5] = [
        |plain| plain.push(0),
        |plain| plain.truncate(plain.len() - 1),
        Vec::clear,
        |plain| plain[NAME_START] = b'/',
        |plain| plain[0] = 0xff,
    ];
    for edit in edits {
        let responder = Responder {
            local: responder.local.clone(),
            dh: responder.dh.clone(),
            boxes: BoxKeys {
                listener: responder.boxes.listener.clone(),
                dialer: responder.boxes.dialer.clone(),
            },
            th3: responder.th3,
        };
        assert_eq!(
            responder.open(&reseal(edit), &duo.accepted).unwrap_err(),
            Abort::Malformed("proof")
        );
    }
}

/// T21.
#[test]
fn proofs_of_two_dialers_cannot_be_swapped() {
    let duo = Duo::new();
    let start = || {
        let (initiator, m1) = Initiator::hello(duo.dialer.clone(), duo.listener.node.clone());
        let (responder, m2) = Responder::answer(duo.listener.clone(), &m1).unwrap();
        let (_, m3) = initiator.open(&m2).unwrap().prove(&duo.dialer_key);
        (responder, m3)
    };
    let ((first, m3_first), (second, m3_second)) = (start(), start());
    for (responder, m3) in [(first, m3_second), (second, m3_first)] {
        assert_eq!(
            responder.open(&m3, &duo.accepted).unwrap_err(),
            Abort::Altered("proof")
        );
    }
}

/// What an observer has of one handshake: every value on the wire, every hash over them.
struct Recording {
    boxes: Vec<Vec<u8>>,
    hashes: Vec<[u8; 32]>,
    fields: Vec<Vec<u8>>,
}

impl Recording {
    fn of(captured: &[String; 4], mesh: &MeshName) -> Self {
        let hello = Hello::read(&captured[0]).unwrap();
        let challenge = Challenge::read(&captured[1]).unwrap();
        let boxes = vec![
            challenge.sealed.clone(),
            Sealed::read("auth", &captured[2]).unwrap(),
            Sealed::read("auth_ok", &captured[3]).unwrap(),
        ];
        let mut hashes = vec![transcript::th2(
            Carrier::Link,
            mesh,
            &hello.bytes(),
            &challenge.bytes(),
        )];
        for sealed in &boxes {
            let next = transcript::th_next(hashes.last().unwrap(), sealed);
            hashes.push(next);
        }
        let mut fields = boxes.clone();
        for value in [hello.nonce, hello.ek, challenge.nonce, challenge.ek] {
            fields.push(value.to_vec());
        }
        fields.extend(hashes.iter().map(|hash| hash.to_vec()));
        Self {
            boxes,
            hashes,
            fields,
        }
    }

    fn contains(&self, value: &[u8; 32]) -> bool {
        let half = &value[..16];
        let in_field = |field: &Vec<u8>| field.windows(16).any(|window| window == half);
        self.fields.iter().any(in_field)
    }

    /// Opens every box with `key` under every hash.
    fn opened<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = Vec<u8>> + 'a {
        let tries = move |sealed: &'a Vec<u8>| {
            let under = move |(hash, n)| transcript::open(key, n, hash, sealed.clone());
            let hashes = self.hashes.iter();
            hashes
                .flat_map(|hash| [(hash, 0), (hash, 1)])
                .filter_map(under)
        };
        let plain = |opened: Zeroizing<Vec<u8>>| opened.to_vec();
        self.boxes.iter().flat_map(tries).map(plain)
    }

    /// Whether anything on the wire, or inside a box that opens, confirms this secret, for an
    /// observer who takes `dh` for the exchanged value.
    fn confirms(&self, duo: &Duo, mesh_key: &MeshKey, dh: &[u8; 32]) -> bool {
        let mesh_secret = MeshSecret::new(mesh_key, dh);
        let (id_d, id_l) = (duo.dialer.id(), duo.listener.id());
        let mut values = vec![*mesh_key.bytes()];
        let mut opened = Vec::new();
        for hash in &self.hashes {
            let (boxes, session) = (transcript::box_keys(hash, dh), mesh_secret.session(hash));
            opened.extend(self.opened(&boxes.listener));
            opened.extend(self.opened(&boxes.dialer));
            for key in [session.dialer_to_listener, session.listener_to_dialer] {
                opened.extend(self.opened(&key));
                values.push(*key);
            }
            values.push(mesh_secret.mac_listener(hash, &id_d, &id_l));
        }
        for plain in &opened {
            for signature in plain.windows(64) {
                let signature = signature.try_into().unwrap();
                let hash = &self.hashes[1];
                values.push(mesh_secret.mac_dialer(hash, &id_l, &id_d, signature));
            }
        }
        let inside = |value: &[u8; 32]| opened.iter().any(|p| p.windows(32).any(|w| w == value));
        values
            .iter()
            .any(|value| self.contains(value) || inside(value))
    }
}

/// T05: with the whole transcript and the true secret, but without `dh`, nothing can be checked.
#[test]
fn a_recording_gives_no_way_to_test_guesses_at_the_secret() {
    let duo = Duo::new();
    let (fresh_d, fresh_l) = (
        Fresh::from_bytes([3; 32], [4; 32]),
        Fresh::from_bytes([5; 32], [6; 32]),
    );
    let dh = fresh_d.exchange(&fresh_l.public(), &fresh_l.nonce).unwrap();
    let (initiator, m1) =
        Initiator::hello_with(duo.dialer.clone(), duo.listener.node.clone(), fresh_d);
    let (responder, m2) = Responder::answer_with(duo.listener.clone(), &m1, &fresh_l).unwrap();
    let (_, m3) = initiator.open(&m2).unwrap().prove(&duo.dialer_key);
    let (_, m4) = responder.open(&m3, &duo.accepted).unwrap().accept();
    let recording = Recording::of(&[m1, m2, m3, m4], &duo.dialer.mesh);

    let mut guesses = vec![[0; 32], *duo.dialer_key.bytes()];
    let whole = |field: &Vec<u8>| <[u8; 32]>::try_from(&field[..]).ok();
    guesses.extend(recording.fields.iter().filter_map(whole));
    for guess in &guesses {
        assert!(!recording.confirms(&duo, &duo.dialer_key, guess));
    }
    // The harness is able to see a match: with `dh` it tells the true secret from another.
    assert!(recording.confirms(&duo, &duo.dialer_key, &dh));
    assert!(!recording.confirms(&duo, &MeshKey::from_bytes([8; 32]), &dh));
}
