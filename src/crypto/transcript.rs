//! The values both sides of a handshake compute from what was said (protocol 3.3).
//!
//! Every function here is a formula of that section, under its name there. Who may compute which
//! value when is the business of [`super::handshake`].

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::ids::{MeshName, NodeId};

use super::{identity::PublicKey, stretch::MeshKey};

/// `P`: what every hash, label and signature of this protocol begins with.
pub const PREFIX: &[u8] = b"clawmatrix/1 ";

/// A 32-byte key that is wiped when dropped.
pub(super) type Key = Zeroizing<[u8; 32]>;

/// What carries the handshake. In the transcript, so that messages of one carrier are worthless on
/// the other (T19).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Carrier {
    /// A WebSocket link (`ctx=1`).
    Link = 1,
    /// Routed frames between origin and destination (`ctx=2`).
    EndToEnd = 2,
}

/// Appends `lp(bytes)`: a u16 length, then the bytes.
///
/// # Panics
/// Above 65,535 bytes; nothing that reaches this is longer than a handshake message.
pub fn push_lp(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).expect("length-prefixed parts are shorter than 64 KiB");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// `lp(bytes)`.
fn lp(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + bytes.len());
    push_lp(&mut out, bytes);
    out
}

/// `ID_x = lp(nodeId_x) || ik_x`.
pub(super) fn id(node: &NodeId, key: &PublicKey) -> Vec<u8> {
    let mut out = lp(node.as_str().as_bytes());
    out.extend_from_slice(&key.0);
    out
}

/// The salt of `K_mesh`: the first half of `SHA-256(P||"mesh\0"||mesh)`.
pub(super) fn mesh_salt(mesh: &MeshName) -> [u8; 16] {
    let digest = Sha256::new()
        .chain_update(PREFIX)
        .chain_update(b"mesh\0")
        .chain_update(mesh.as_str())
        .finalize();
    let mut salt = [0; 16];
    salt.copy_from_slice(&digest[..16]);
    salt
}

/// `TH2`.
pub(super) fn th2(carrier: Carrier, mesh: &MeshName, m1: &[u8], m2: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(PREFIX)
        .chain_update(b"hs\0")
        .chain_update([carrier as u8])
        .chain_update(lp(mesh.as_str().as_bytes()))
        .chain_update(lp(m1))
        .chain_update(lp(m2))
        .finalize()
        .into()
}

/// `TH(n+1) = SHA-256(TH(n) || lp(box))`.
pub(super) fn th_next(th: &[u8; 32], sealed: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(th)
        .chain_update(lp(sealed))
        .finalize()
        .into()
}

/// `HKDF-Extract(salt, ikm)`.
fn extract(salt: &[u8], ikm: &[u8]) -> Key {
    let (prk, _) = Hkdf::<Sha256>::extract(Some(salt), ikm);
    Zeroizing::new(prk.into())
}

/// `Expand(prk, info, N)`.
fn expand<const N: usize>(prk: &Key, info: &[&[u8]]) -> Zeroizing<[u8; N]> {
    let mut out = Zeroizing::new([0; N]);
    Hkdf::<Sha256>::from_prk(prk.as_ref())
        .expect("32 bytes are a valid HKDF-SHA256 key")
        .expand_multi_info(info, out.as_mut())
        .expect("32 bytes are within what HKDF-SHA256 gives");
    out
}

/// `kL` and `kD`: the keys of the boxes, known to whoever took part in the exchange of ephemerals.
#[derive(Clone)]
pub(super) struct BoxKeys {
    /// `kL`: seals box2 and box4.
    pub(super) listener: Key,
    /// `kD`: seals box3.
    pub(super) dialer: Key,
}

/// `hs`, `kL`, `kD`.
pub(super) fn box_keys(th2: &[u8; 32], dh: &[u8; 32]) -> BoxKeys {
    let hs = extract(th2, dh);
    BoxKeys {
        listener: expand(&hs, &[PREFIX, b"hs L2D"]),
        dialer: expand(&hs, &[PREFIX, b"hs D2L"]),
    }
}

/// `ms`: what only holders of the secret who took part in the exchange know.
pub(super) struct MeshSecret(Key);

impl MeshSecret {
    /// `ms = HKDF-Extract(salt=K_mesh, ikm=dh)`.
    pub(super) fn new(mesh_key: &MeshKey, dh: &[u8; 32]) -> Self {
        Self(extract(mesh_key.bytes(), dh))
    }

    /// `macD`.
    pub(super) fn mac_dialer(
        &self,
        th3: &[u8; 32],
        id_l: &[u8],
        id_d: &[u8],
        sig_d: &[u8; 64],
    ) -> [u8; 32] {
        let key = expand::<32>(&self.0, &[PREFIX, b"proof D", th3]);
        mac(&key, &[th3, id_l, id_d, sig_d])
    }

    /// `macL`.
    pub(super) fn mac_listener(&self, th4: &[u8; 32], id_d: &[u8], id_l: &[u8]) -> [u8; 32] {
        let key = expand::<32>(&self.0, &[PREFIX, b"proof L", th4]);
        mac(&key, &[th4, id_d, id_l])
    }

    /// `K_D2L`, `K_L2D` and `sid`.
    pub(super) fn session(&self, th5: &[u8; 32]) -> SessionKeys {
        SessionKeys {
            dialer_to_listener: expand(&self.0, &[PREFIX, b"data D2L", th5]),
            listener_to_dialer: expand(&self.0, &[PREFIX, b"data L2D", th5]),
            sid: *expand(&self.0, &[PREFIX, b"sid", th5]),
        }
    }
}

/// What a completed handshake leaves.
pub(super) struct SessionKeys {
    pub(super) dialer_to_listener: Key,
    pub(super) listener_to_dialer: Key,
    pub(super) sid: [u8; 16],
}

/// HMAC-SHA256 over the parts.
fn mac(key: &Key, parts: &[&[u8]]) -> [u8; 32] {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key.as_ref()).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Whether two MACs are equal, in time that does not depend on where they differ.
pub(super) fn mac_equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.ct_eq(b).into()
}

/// `AEAD(key, n, aad, plaintext)`.
pub(super) fn seal(key: &Key, n: u64, aad: &[u8; 32], plaintext: Vec<u8>) -> Vec<u8> {
    let mut buffer = plaintext;
    aead(key)
        .seal_in_place_append_tag(nonce(n), Aad::from(aad), &mut buffer)
        .expect("handshake boxes are far below the cipher's limit");
    buffer
}

/// Opens what [`seal`] made; none when any bit of box, `n` or `aad` differs.
pub(super) fn open(
    key: &Key,
    n: u64,
    aad: &[u8; 32],
    mut sealed: Vec<u8>,
) -> Option<Zeroizing<Vec<u8>>> {
    let len = aead(key)
        .open_in_place(nonce(n), Aad::from(aad), &mut sealed)
        .ok()?
        .len();
    sealed.truncate(len);
    Some(Zeroizing::new(sealed))
}

fn aead(key: &Key) -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_ref())
        .expect("ChaCha20-Poly1305 keys are 32 bytes");
    LessSafeKey::new(key)
}

/// Four zero bytes, then `n`. Each box key seals with an `n` once: box2 0, box3 0, box4 1.
fn nonce(n: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&n.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}
