//! The pure handshake: vectors, and every way in which it must not complete (protocol 10, T01-T21).

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::{
    crypto::stretch,
    ids::{hex, unhex},
};

mod hostile;

fn local(node: &str, mesh: &str, identity: &Arc<Identity>) -> Local {
    Local {
        node: node.parse().unwrap(),
        mesh: mesh.parse().unwrap(),
        identity: identity.clone(),
        params: b"{}".to_vec(),
        carrier: Carrier::Link,
    }
}

fn keys(bytes: &[u8]) -> Vec<ValidKey> {
    let key = |(id, b): (u64, &u8)| ValidKey {
        id: SecretId(id),
        key: Arc::new(MeshKey::from_bytes([*b; 32])),
    };
    (0..).zip(bytes).map(key).collect()
}

/// Two nodes that would get along.
struct Duo {
    dialer: Local,
    listener: Local,
    dialer_key: MeshKey,
    accepted: Vec<ValidKey>,
}

impl Duo {
    fn new() -> Self {
        let identity = |b| Arc::new(Identity::from_seed(&Zeroizing::new([b; 32])));
        Self {
            dialer: local("home-01", "demo", &identity(1)),
            listener: local("cloud-01", "demo", &identity(2)),
            dialer_key: MeshKey::from_bytes([7; 32]),
            accepted: keys(&[7]),
        }
    }

    /// Runs the whole handshake; `tap` alters the n-th message (1 to 4) on its way.
    fn run(
        &self,
        mut tap: impl FnMut(u8, String) -> String,
    ) -> Result<(Verified, Verified), (Side, Abort)> {
        use Side::{Dialer, Listener};
        let at = |side| move |abort| (side, abort);
        let expected = self.listener.node.clone();
        let (initiator, m1) = Initiator::hello(self.dialer.clone(), expected);
        let (responder, m2) =
            Responder::answer(self.listener.clone(), &tap(1, m1)).map_err(at(Listener))?;
        let introduced = initiator.open(&tap(2, m2)).map_err(at(Dialer))?;
        let (proving, m3) = introduced.prove(&self.dialer_key);
        let proved = responder
            .open(&tap(3, m3), &self.accepted)
            .map_err(at(Listener))?;
        let (listener, m4) = proved.accept();
        let dialer = proving.confirm(&tap(4, m4)).map_err(at(Dialer))?;
        Ok((dialer, listener))
    }

    fn honest(&self) -> Result<(Verified, Verified), (Side, Abort)> {
        self.run(|_, text| text)
    }

    /// The four messages of an honest run.
    fn capture(&self) -> [String; 4] {
        let mut seen = Vec::new();
        self.run(|_, text| {
            seen.push(text.clone());
            text
        })
        .unwrap();
        seen.try_into().unwrap()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Dialer,
    Listener,
}

/// T01: every value of the reference vectors, bit for bit, `K_mesh` included.
fn reproduces(text: &str, carrier: Carrier) {
    let vector: Value = serde_json::from_str(text).unwrap();
    let get = |name: &str| vector[name].as_str().unwrap().to_owned();
    let bytes = |name: &str| unhex::<32>(&get(name)).unwrap();
    let side = |node: &str, seed: &str| Local {
        carrier,
        ..local(
            &get(node),
            &get("mesh"),
            &Arc::new(Identity::from_seed(&Zeroizing::new(bytes(seed)))),
        )
    };
    let (dialer, listener) = (side("dialer", "seedD"), side("listener", "seedL"));
    let mesh_key = stretch::stretch(&Secret::new(get("secret")), &dialer.mesh);
    assert_eq!(hex(mesh_key.bytes()), get("K_mesh"));
    let accepted = [ValidKey {
        id: SecretId(0),
        key: Arc::new(mesh_key.clone()),
    }];

    let fresh = Fresh::from_bytes(bytes("ekD"), bytes("nD"));
    let (initiator, m1) = Initiator::hello_with(dialer, listener.node.clone(), fresh);
    assert_eq!(m1, get("M1"));
    let fresh = Fresh::from_bytes(bytes("ekL"), bytes("nL"));
    let (responder, m2) = Responder::answer_with(listener, &m1, &fresh).unwrap();
    assert_eq!(m2, get("M2"));
    let introduced = initiator.open(&m2).unwrap();
    assert_eq!(hex(introduced.dh.as_ref()), get("dh"));
    assert_eq!(hex(&introduced.th3), get("TH3"));
    let (proving, m3) = introduced.prove(&mesh_key);
    assert_eq!(m3, get("M3"));
    assert_eq!(hex(&proving.th4), get("TH4"));
    let mac = proving
        .mesh_secret
        .mac_listener(&proving.th4, &proving.id_d, &proving.peer.id);
    assert_eq!(hex(&mac), get("macL"));
    let (listener, m4) = responder.open(&m3, &accepted).unwrap().accept();
    assert_eq!(m4, get("M4"));
    let dialer = proving.confirm(&m4).unwrap();
    assert_eq!(hex(dialer.send_key.reveal()), get("K_D2L"));
    assert_eq!(hex(dialer.recv_key.reveal()), get("K_L2D"));
    assert_eq!(hex(listener.send_key.reveal()), get("K_L2D"));
    assert_eq!(hex(listener.recv_key.reveal()), get("K_D2L"));
    assert_eq!(dialer.sid.to_string(), get("sid"));
    assert_eq!(listener.sid, dialer.sid);
}

#[test]
fn link_vector_is_reproduced() {
    reproduces(
        include_str!("../../../tests/fixtures/handshake/v1.json"),
        Carrier::Link,
    );
}

#[test]
fn end_to_end_vector_is_reproduced() {
    reproduces(
        include_str!("../../../tests/fixtures/handshake/v1-end-to-end.json"),
        Carrier::EndToEnd,
    );
}

/// T01, T03, T15, T16, T18, T19: messages of the other implementation that must end the handshake, each
/// in place of the true one, and why.
#[test]
fn refused_vectors_are_refused() {
    let read = |text| serde_json::from_str::<Value>(text).unwrap();
    let vector = read(include_str!("../../../tests/fixtures/handshake/v1.json"));
    let refused = read(include_str!(
        "../../../tests/fixtures/handshake/v1-refused.json"
    ));
    let get = |name: &str| vector[name].as_str().unwrap().to_owned();
    let bytes = |name: &str| unhex::<32>(&get(name)).unwrap();
    let side = |node: &str, seed: &str| {
        let identity = Identity::from_seed(&Zeroizing::new(bytes(seed)));
        local(&get(node), &get("mesh"), &Arc::new(identity))
    };
    let (dialer, listener) = (side("dialer", "seedD"), side("listener", "seedL"));
    let key = MeshKey::from_bytes(bytes("K_mesh"));
    let accepted = [ValidKey {
        id: SecretId(0),
        key: Arc::new(key.clone()),
    }];
    let run = |n: u64, message: &str| -> Result<(), Abort> {
        let said = |which: u64| match which == n {
            true => message.to_owned(),
            false => get(&format!("M{which}")),
        };
        let fresh = Fresh::from_bytes(bytes("ekD"), bytes("nD"));
        let (initiator, _) = Initiator::hello_with(dialer.clone(), listener.node.clone(), fresh);
        let fresh = Fresh::from_bytes(bytes("ekL"), bytes("nL"));
        let (responder, _) = Responder::answer_with(listener.clone(), &said(1), &fresh)?;
        let (proving, _) = initiator.open(&said(2))?.prove(&key);
        responder.open(&said(3), &accepted)?;
        proving.confirm(&said(4)).map(|_| ())
    };
    assert_eq!(run(0, ""), Ok(()), "the vector itself");
    let cases = refused.as_array().unwrap();
    assert_eq!(cases.len(), 14);
    for case in cases {
        let message = case["message"].as_str().unwrap();
        let abort = run(case["n"].as_u64().unwrap(), message).unwrap_err();
        let expected = case["abort"].as_str().unwrap();
        assert!(
            format!("{abort:?}").starts_with(expected),
            "{case}: {abort:?}"
        );
    }
}

/// T02.
#[test]
fn honest_sides_agree_on_names_and_mirrored_keys() {
    let duo = Duo::new();
    let (dialer, listener) = duo.honest().unwrap();
    assert_eq!(dialer.node, duo.listener.node);
    assert_eq!(listener.node, duo.dialer.node);
    assert_eq!(dialer.key, duo.listener.identity.public());
    assert_eq!(listener.key, duo.dialer.identity.public());
    assert_eq!(dialer.sid, listener.sid);
    assert_eq!(dialer.send_key, listener.recv_key);
    assert_eq!(dialer.recv_key, listener.send_key);
    assert_ne!(dialer.send_key, dialer.recv_key);
    let (again, _) = duo.honest().unwrap();
    assert_ne!(again.sid, dialer.sid);
}

/// T03.
#[test]
fn wrong_secret_ends_at_the_listener() {
    let mut duo = Duo::new();
    duo.dialer_key = MeshKey::from_bytes([8; 32]);
    assert_eq!(duo.honest().unwrap_err(), (Side::Listener, Abort::Proof));
}

/// T03: with another mesh the dialer stops before it has made a proof.
#[test]
fn wrong_mesh_ends_at_the_dialer_before_any_proof() {
    let mut duo = Duo::new();
    duo.listener.mesh = "other".parse().unwrap();
    let mut messages = 0;
    let outcome = duo.run(|n, text| {
        messages = n;
        text
    });
    assert_eq!(outcome.unwrap_err(), (Side::Dialer, Abort::OtherMesh));
    assert_eq!(messages, 2);
}

/// T24, T25 as far as one handshake shows them.
#[test]
fn listener_takes_any_accepted_secret_and_says_which() {
    let mut duo = Duo::new();
    duo.accepted = keys(&[1, 2, 7, 3]);
    let (initiator, m1) = Initiator::hello(duo.dialer.clone(), duo.listener.node.clone());
    let (responder, m2) = Responder::answer(duo.listener.clone(), &m1).unwrap();
    let (_, m3) = initiator.open(&m2).unwrap().prove(&duo.dialer_key);
    let proved = responder.open(&m3, &duo.accepted).unwrap();
    assert_eq!(proved.secret(), SecretId(2));
    assert!(duo.honest().is_ok());
    duo.accepted = keys(&[1, 2, 3]);
    assert_eq!(duo.honest().unwrap_err().1, Abort::Proof);
    duo.accepted = Vec::new();
    assert_eq!(duo.honest().unwrap_err().1, Abort::Proof);
}

/// T13.
#[test]
fn a_node_that_reaches_itself_notices_at_both_ends() {
    let mut duo = Duo::new();
    duo.dialer = duo.listener.clone();
    assert_eq!(duo.honest().unwrap_err(), (Side::Dialer, Abort::OwnKey));
    // Under another name, as with a copied state folder.
    duo.dialer.node = "home-01".parse().unwrap();
    assert_eq!(duo.honest().unwrap_err(), (Side::Dialer, Abort::OwnKey));
    // A dialer that does not look is stopped by the listener.
    let (initiator, m1) = Initiator::hello(duo.dialer.clone(), duo.listener.node.clone());
    let (responder, m2) = Responder::answer(duo.listener.clone(), &m1).unwrap();
    let mut blind = initiator;
    blind.local.identity = Arc::new(Identity::generate());
    let mut introduced = blind.open(&m2).unwrap();
    introduced.local.identity = duo.listener.identity.clone();
    let (_, m3) = introduced.prove(&duo.dialer_key);
    assert_eq!(
        responder.open(&m3, &duo.accepted).unwrap_err(),
        Abort::OwnKey
    );
}

#[test]
fn another_key_under_our_own_name_is_refused_whatever_its_case() {
    let mut duo = Duo::new();
    duo.dialer.node = "Cloud-01".parse().unwrap();
    let (side, abort) = duo.honest().unwrap_err();
    assert_eq!(side, Side::Dialer);
    assert!(matches!(abort, Abort::OwnName(_)), "{abort}");
}

/// T07, T08: the dialer learns the key before it proves anything.
#[test]
fn another_node_than_the_expected_one_gets_no_proof() {
    let mut duo = Duo::new();
    let (initiator, m1) = Initiator::hello(duo.dialer.clone(), duo.listener.node.clone());
    duo.listener.node = "attic-01".parse().unwrap();
    let (_, m2) = Responder::answer(duo.listener.clone(), &m1).unwrap();
    let abort = initiator.open(&m2).unwrap_err();
    assert!(
        matches!(abort, Abort::OtherNode { ref found, .. } if found.as_str() == "attic-01"),
        "{abort}"
    );
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,300}") {
        prop_assert!(!completes_with(&text));
    }

    #[test]
    fn damaged_messages_never_panic_nor_complete(
        which in 0_usize..4,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let duo = Duo::new();
        let outcome = duo.run(|n, text| {
            if usize::from(n) != which + 1 {
                return text;
            }
            let mut bytes = text.clone().into_bytes();
            for (place, byte) in &edits {
                let place = place.index(bytes.len());
                bytes[place] = *byte;
            }
            let damaged = String::from_utf8_lossy(&bytes).into_owned();
            if damaged == text { String::new() } else { damaged }
        });
        prop_assert!(outcome.is_err());
    }
}

/// Gives `text` to all four readers.
fn completes_with(text: &str) -> bool {
    let duo = Duo::new();
    (1..=4).any(|place| {
        duo.run(
            |n, honest| {
                if n == place { text.to_owned() } else { honest }
            },
        )
        .is_ok()
    })
}
