//! The handshake as a pure state machine (protocol 3): no I/O, no clock, no trust decisions.
//!
//! ```text
//! dialer                              listener
//! Initiator::hello        --M1-->     Responder::answer
//! Initiator::open         <--M2--
//! (trust decides)
//! Introduced::prove       --M3-->     Responder::open
//!                                     (trust decides)
//! Proving::confirm        <--M4--     Proved::accept
//! Verified                            Verified
//! ```
//!
//! Each state is consumed by its step, and only a verified M3 or M4 makes a [`Verified`]. What the
//! other side has proved so far is in the state that asks for a decision: [`Introduced`] has a name
//! and a key whose signature holds, but nothing that shows knowledge of the secret; [`Proved`] has
//! both. A caller that does not like them drops the state, and nothing was sent.
//!
//! The design is our own rather than a Noise pattern; protocol 3.6 says why.

use std::{fmt, sync::Arc};

use x25519_dalek::{PublicKey as Ephemeral, StaticSecret};
use zeroize::Zeroizing;

use crate::{
    ids::{MeshName, NodeId, SessionId, random_bytes},
    wire::limits::PARAMS_BYTES,
};

use super::{
    identity::{Identity, Label, PublicKey},
    secret::Secret,
    stretch::{MeshKey, SecretId, ValidKey},
    transcript::{self, BoxKeys, Carrier, Key, MeshSecret},
};

mod message;
#[cfg(test)]
mod tests;

use message::{Challenge, Hello, Parts, Sealed};

/// The one protocol version there is.
const VERSION: u8 = 1;

/// Why a handshake ended. For our own operator only: the other side is told `auth_failed`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Abort {
    /// A message that is not what protocol 3.2 says.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// A message of the plugin that came before this program.
    #[error("the other side speaks the protocol of the earlier plugin")]
    OldPlugin,
    /// No version in common, or one we did not offer.
    #[error("no protocol version in common")]
    Version,
    /// An ephemeral key of small order, or our own values sent back to us.
    #[error("bad key exchange values")]
    Exchange,
    /// The challenge does not open: the mesh names differ, or somebody altered it.
    #[error("the challenge does not open: mesh names differ, or it was altered on its way")]
    OtherMesh,
    /// A later box does not open.
    #[error("the {0} message was altered on its way")]
    Altered(&'static str),
    /// The proof was not made with a secret we accept.
    #[error("shared secrets differ")]
    Proof,
    /// The signature does not belong to the key.
    #[error("signature does not verify")]
    Signature,
    /// Another node than the one we dialled.
    #[error("expected node `{expected}`, found `{found}`")]
    OtherNode {
        /// The name in our configuration.
        expected: NodeId,
        /// The name it goes by.
        found: NodeId,
    },
    /// Our own key answered.
    #[error("this node reached itself")]
    OwnKey,
    /// Another key goes by our own name.
    #[error("another node, with key {key}, goes by our own name", key = .0.id())]
    OwnName(PublicKey),
}

/// What one side brings into a handshake.
#[derive(Debug, Clone)]
pub struct Local {
    /// Our name.
    pub node: NodeId,
    /// Our mesh.
    pub mesh: MeshName,
    /// Our key.
    pub identity: Arc<Identity>,
    /// Our `params` JSON, sent under encryption once we have proved ourselves.
    pub params: Vec<u8>,
    /// What carries the messages.
    pub carrier: Carrier,
}

impl Local {
    fn id(&self) -> Vec<u8> {
        transcript::id(&self.node, &self.identity.public())
    }

    /// Refuses ourselves, and whoever goes by our name.
    fn refuse_self(&self, peer: &Named) -> Result<(), Abort> {
        if peer.key == self.identity.public() {
            Err(Abort::OwnKey)
        } else if peer.node.folded() == self.node.folded() {
            Err(Abort::OwnName(peer.key))
        } else {
            Ok(())
        }
    }
}

/// The random values of one side of one handshake.
pub(crate) struct Fresh {
    secret: StaticSecret,
    nonce: [u8; 32],
}

impl Fresh {
    fn random() -> Self {
        Self::from_bytes(random_bytes(), random_bytes())
    }

    /// Chosen values, for test vectors only.
    pub(crate) fn from_bytes(secret: [u8; 32], nonce: [u8; 32]) -> Self {
        Self {
            secret: StaticSecret::from(secret),
            nonce,
        }
    }

    fn public(&self) -> [u8; 32] {
        Ephemeral::from(&self.secret).to_bytes()
    }

    /// `dh`, unless the other values are unfit: of small order, or our own.
    fn exchange(&self, ek: &[u8; 32], nonce: &[u8; 32]) -> Result<Key, Abort> {
        if *ek == self.public() || *nonce == self.nonce {
            return Err(Abort::Exchange);
        }
        let shared = self.secret.diffie_hellman(&Ephemeral::from(*ek));
        if shared.was_contributory() {
            Ok(Zeroizing::new(shared.to_bytes()))
        } else {
            Err(Abort::Exchange)
        }
    }
}

/// A name and the key that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    node: NodeId,
    key: PublicKey,
    /// `ID_x` as it stood in the box.
    id: Vec<u8>,
}

/// The outcome: who is there, and the keys of the session.
#[derive(Debug)]
pub struct Verified {
    /// The other node.
    pub node: NodeId,
    /// Its key.
    pub key: PublicKey,
    /// Its `params`, authentic but not yet read.
    pub params: Vec<u8>,
    /// Seals what we send.
    pub send_key: Secret<[u8; 32]>,
    /// Opens what we receive.
    pub recv_key: Secret<[u8; 32]>,
    /// The session's name.
    pub sid: SessionId,
    _made_here: MadeHere,
}

/// Keeps [`Verified`] from being made anywhere else.
#[derive(Debug)]
struct MadeHere;

macro_rules! opaque_debug {
    ($($name:ident)*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )*};
}
// Keys and ephemerals are in them.
opaque_debug! { Initiator Introduced Proving Responder Proved }

// -- dialer --------------------------------------------------------------------------------------

/// The dialer after M1.
pub struct Initiator {
    local: Local,
    expected: NodeId,
    fresh: Fresh,
    m1: Vec<u8>,
}

/// The dialer after M2: the listener has shown a key that signs for its name, and nothing more.
pub struct Introduced {
    local: Local,
    peer: Named,
    dh: Key,
    boxes: BoxKeys,
    th3: [u8; 32],
}

/// The dialer after M3.
pub struct Proving {
    peer: Named,
    id_d: Vec<u8>,
    boxes: BoxKeys,
    mesh_secret: MeshSecret,
    th4: [u8; 32],
}

impl Initiator {
    /// What ties the four messages together end to end: the first half of our nonce (protocol 4.2).
    #[must_use]
    pub fn tie(&self) -> SessionId {
        let mut tie = [0; 16];
        tie.copy_from_slice(&self.fresh.nonce[..16]);
        SessionId(tie)
    }

    /// Begins a handshake with the node that is expected to go by `expected`; gives M1.
    #[must_use]
    pub fn hello(local: Local, expected: NodeId) -> (Self, String) {
        Self::hello_with(local, expected, Fresh::random())
    }

    pub(crate) fn hello_with(local: Local, expected: NodeId, fresh: Fresh) -> (Self, String) {
        let hello = Hello {
            versions: vec![VERSION],
            nonce: fresh.nonce,
            ek: fresh.public(),
        };
        let (m1, text) = (hello.bytes(), hello.text());
        let state = Self {
            local,
            expected,
            fresh,
            m1,
        };
        (state, text)
    }

    /// Reads M2. End to end the attempt goes on after a message that does not verify, so nothing is
    /// used up.
    ///
    /// # Errors
    /// [`Abort`]. Nothing that depends on the secret has been computed.
    pub fn open(&self, m2: &str) -> Result<Introduced, Abort> {
        let challenge = Challenge::read(m2)?;
        if challenge.version != VERSION {
            return Err(Abort::Version);
        }
        let dh = self.fresh.exchange(&challenge.ek, &challenge.nonce)?;
        let th2 = transcript::th2(
            self.local.carrier,
            &self.local.mesh,
            &self.m1,
            &challenge.bytes(),
        );
        let boxes = transcript::box_keys(&th2, &dh);
        let th3 = transcript::th_next(&th2, &challenge.sealed);
        let opened =
            transcript::open(&boxes.listener, 0, &th2, challenge.sealed).ok_or(Abort::OtherMesh)?;
        let mut parts = Parts::of(&opened, "challenge");
        let peer = parts.named()?;
        let signature = parts.array()?;
        parts.end()?;
        if !peer
            .key
            .verify_strict(Label::Listener, &[&th2, &peer.id], &signature)
        {
            return Err(Abort::Signature);
        }
        // Our own key under another name than the expected one is still ourselves: say that.
        if peer.node != self.expected && peer.key != self.local.identity.public() {
            return Err(Abort::OtherNode {
                expected: self.expected.clone(),
                found: peer.node,
            });
        }
        self.local.refuse_self(&peer)?;
        Ok(Introduced {
            local: self.local.clone(),
            peer,
            dh,
            boxes,
            th3,
        })
    }
}

impl Introduced {
    /// The listener's name; it is the expected one.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.peer.node
    }

    /// The listener's key.
    #[must_use]
    pub fn key(&self) -> &PublicKey {
        &self.peer.key
    }

    /// Gives M3. To be called only when the key is one we believe for this name: whoever receives
    /// M3 holds a value on which guesses at the secret can be tested (protocol 3.6).
    #[must_use]
    pub fn prove(self, mesh_key: &MeshKey) -> (Proving, String) {
        let Self {
            local,
            peer,
            dh,
            boxes,
            th3,
        } = self;
        let id_d = local.id();
        let mesh_secret = MeshSecret::new(mesh_key, &dh);
        let signature = local.identity.sign(Label::Dialer, &[&th3, &peer.id, &id_d]);
        let mac = mesh_secret.mac_dialer(&th3, &peer.id, &id_d, &signature);
        let mut plain = [&id_d[..], &signature, &mac].concat();
        transcript::push_lp(&mut plain, &local.params);
        let sealed = transcript::seal(&boxes.dialer, 0, &th3, plain);
        let th4 = transcript::th_next(&th3, &sealed);
        let state = Proving {
            peer,
            id_d,
            boxes,
            mesh_secret,
            th4,
        };
        (state, Sealed::text("auth", &sealed))
    }
}

impl Proving {
    /// Reads M4.
    ///
    /// # Errors
    /// [`Abort`].
    pub fn confirm(&self, m4: &str) -> Result<Verified, Abort> {
        let sealed = Sealed::read("auth_ok", m4)?;
        let th5 = transcript::th_next(&self.th4, &sealed);
        let opened = transcript::open(&self.boxes.listener, 1, &self.th4, sealed)
            .ok_or(Abort::Altered("last"))?;
        let mut parts = Parts::of(&opened, "last message");
        let mac = parts.array()?;
        let expected = self
            .mesh_secret
            .mac_listener(&self.th4, &self.id_d, &self.peer.id);
        if !transcript::mac_equal(&mac, &expected) {
            return Err(Abort::Proof);
        }
        let params = parts.prefixed(PARAMS_BYTES)?.to_vec();
        parts.end()?;
        let keys = self.mesh_secret.session(&th5);
        Ok(Verified {
            node: self.peer.node.clone(),
            key: self.peer.key,
            params,
            send_key: Secret::new(*keys.dialer_to_listener),
            recv_key: Secret::new(*keys.listener_to_dialer),
            sid: SessionId(keys.sid),
            _made_here: MadeHere,
        })
    }
}

// -- listener ------------------------------------------------------------------------------------

/// The listener after M2.
pub struct Responder {
    local: Local,
    dh: Key,
    boxes: BoxKeys,
    th3: [u8; 32],
}

/// The listener after M3: the dialer has shown the secret, its name and its key.
pub struct Proved {
    local: Local,
    peer: Named,
    params: Vec<u8>,
    secret: SecretId,
    boxes: BoxKeys,
    mesh_secret: MeshSecret,
    th4: [u8; 32],
}

impl Responder {
    /// Reads M1, gives M2.
    ///
    /// # Errors
    /// [`Abort`].
    pub fn answer(local: Local, m1: &str) -> Result<(Self, String), Abort> {
        Self::answer_with(local, m1, &Fresh::random())
    }

    pub(crate) fn answer_with(
        local: Local,
        m1: &str,
        fresh: &Fresh,
    ) -> Result<(Self, String), Abort> {
        let hello = Hello::read(m1)?;
        if !hello.versions.contains(&VERSION) {
            return Err(Abort::Version);
        }
        let dh = fresh.exchange(&hello.ek, &hello.nonce)?;
        let mut challenge = Challenge {
            version: VERSION,
            nonce: fresh.nonce,
            ek: fresh.public(),
            sealed: Vec::new(),
        };
        let th2 = transcript::th2(
            local.carrier,
            &local.mesh,
            &hello.bytes(),
            &challenge.bytes(),
        );
        let boxes = transcript::box_keys(&th2, &dh);
        let mut plain = local.id();
        let signature = local.identity.sign(Label::Listener, &[&th2, &plain]);
        plain.extend_from_slice(&signature);
        challenge.sealed = transcript::seal(&boxes.listener, 0, &th2, plain);
        let th3 = transcript::th_next(&th2, &challenge.sealed);
        let text = challenge.text();
        let state = Self {
            local,
            dh,
            boxes,
            th3,
        };
        Ok((state, text))
    }

    /// Reads M3; `keys` are the secrets accepted now.
    ///
    /// # Errors
    /// [`Abort`]. The proof is checked before the signature, so nobody without the secret can make
    /// us verify one.
    pub fn open(&self, m3: &str, keys: &[ValidKey]) -> Result<Proved, Abort> {
        let sealed = Sealed::read("auth", m3)?;
        let th4 = transcript::th_next(&self.th3, &sealed);
        let opened = transcript::open(&self.boxes.dialer, 0, &self.th3, sealed)
            .ok_or(Abort::Altered("proof"))?;
        let mut parts = Parts::of(&opened, "proof");
        let peer = parts.named()?;
        let signature = parts.array()?;
        let mac = parts.array()?;
        let params = parts.prefixed(PARAMS_BYTES)?.to_vec();
        parts.end()?;

        let id_l = self.local.id();
        let mut matched = None;
        // All of them are tried, so that time does not tell which one matched.
        for valid in keys {
            let mesh_secret = MeshSecret::new(&valid.key, &self.dh);
            let expected = mesh_secret.mac_dialer(&self.th3, &id_l, &peer.id, &signature);
            if transcript::mac_equal(&mac, &expected) && matched.is_none() {
                matched = Some((valid.id, mesh_secret));
            }
        }
        let (secret, mesh_secret) = matched.ok_or(Abort::Proof)?;
        if !peer
            .key
            .verify_strict(Label::Dialer, &[&self.th3, &id_l, &peer.id], &signature)
        {
            return Err(Abort::Signature);
        }
        self.local.refuse_self(&peer)?;
        Ok(Proved {
            local: self.local.clone(),
            peer,
            params,
            secret,
            boxes: self.boxes.clone(),
            mesh_secret,
            th4,
        })
    }
}

impl Proved {
    /// The dialer's name.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.peer.node
    }

    /// The dialer's key.
    #[must_use]
    pub fn key(&self) -> &PublicKey {
        &self.peer.key
    }

    /// The secret that it was proved with.
    #[must_use]
    pub fn secret(&self) -> SecretId {
        self.secret
    }

    /// The dialer's `params`, to be read before it is accepted.
    #[must_use]
    pub fn params(&self) -> &[u8] {
        &self.params
    }

    /// Gives M4. To be called only when the key is one we believe for this name.
    #[must_use]
    pub fn accept(self) -> (Verified, String) {
        let mac = self
            .mesh_secret
            .mac_listener(&self.th4, &self.peer.id, &self.local.id());
        let mut plain = mac.to_vec();
        transcript::push_lp(&mut plain, &self.local.params);
        let sealed = transcript::seal(&self.boxes.listener, 1, &self.th4, plain);
        let th5 = transcript::th_next(&self.th4, &sealed);
        let keys = self.mesh_secret.session(&th5);
        let verified = Verified {
            node: self.peer.node,
            key: self.peer.key,
            params: self.params,
            send_key: Secret::new(*keys.listener_to_dialer),
            recv_key: Secret::new(*keys.dialer_to_listener),
            sid: SessionId(keys.sid),
            _made_here: MadeHere,
        };
        (verified, Sealed::text("auth_ok", &sealed))
    }
}
