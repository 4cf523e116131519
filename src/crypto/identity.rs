//! The node's Ed25519 key and the names of keys (protocol 2).

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize, de};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{
    ids::{hex, random_bytes, unhex},
    state::{self, StateDir},
};

use super::transcript::PREFIX;

/// What a signature is for. Signed bytes are `P||label\0||...`, so a signature made for one use is
/// worthless for every other (protocol 2). A new use takes a new label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// The listener's half of a handshake.
    Listener,
    /// The dialer's half of a handshake.
    Dialer,
    /// A record that others pass on (protocol 6.1).
    Record,
    /// The new key's half of a key rotation.
    Rotation,
    /// A line of the audit chain.
    Audit,
    /// A person's approval.
    Approval,
}

impl Label {
    const fn text(self) -> &'static [u8] {
        match self {
            Self::Listener => b"sig L",
            Self::Dialer => b"sig D",
            Self::Record => b"rec",
            Self::Rotation => b"rot",
            Self::Audit => b"audit",
            Self::Approval => b"approval",
        }
    }

    fn message(self, parts: &[&[u8]]) -> Vec<u8> {
        let mut message = [PREFIX, self.text(), b"\0"].concat();
        for part in parts {
            message.extend_from_slice(part);
        }
        message
    }
}

/// An Ed25519 public key. Text form: base64url without padding, as in `peers[].key`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// First half of the key's SHA-256: what people compare.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let digest = Sha256::digest(self.0);
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        KeyId(id)
    }

    /// Whether `signature` over `parts` was made by this key for `label`. Strict: a key of small
    /// order, a key or signature that is not in canonical form, never verifies.
    #[must_use]
    pub fn verify_strict(&self, label: Label, parts: &[&[u8]], signature: &[u8; 64]) -> bool {
        self.is_canonical()
            && VerifyingKey::from_bytes(&self.0).is_ok_and(|key| {
                key.verify_strict(&label.message(parts), &Signature::from_bytes(signature))
                    .is_ok()
            })
    }

    /// Whether the y coordinate is below 2^255-19, so that one point has one encoding: the pins
    /// compare encodings.
    fn is_canonical(&self) -> bool {
        let [low, middle @ .., high] = &self.0;
        high & 0x7f != 0x7f || *low < 0xed || middle.iter().any(|b| *b != 0xff)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// Why a text is not a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a public key is 43 characters of base64url, as `clawmatrix identity` prints it")]
pub struct PublicKeyError;

impl FromStr for PublicKey {
    type Err = PublicKeyError;
    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| PublicKeyError)?;
        let key = Self(bytes.try_into().map_err(|_| PublicKeyError)?);
        if key.is_canonical() && VerifyingKey::from_bytes(&key.0).is_ok_and(|k| !k.is_weak()) {
            Ok(key)
        } else {
            Err(PublicKeyError)
        }
    }
}

impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: de::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}", self.id())
    }
}

/// Short name of a key, shown as eight groups of four hexadecimal digits (protocol 2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 16]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, pair) in self.0.chunks_exact(2).enumerate() {
            if i > 0 {
                f.write_str("-")?;
            }
            f.write_str(&hex(pair))?;
        }
        Ok(())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a key id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key id is eight groups of four hexadecimal digits, `ab12-…`")]
pub struct KeyIdError;

impl FromStr for KeyId {
    type Err = KeyIdError;
    fn from_str(text: &str) -> Result<Self, KeyIdError> {
        let digits: String = text
            .chars()
            .filter(|c| !matches!(c, '-' | ':' | ' '))
            .collect();
        unhex(&digits.to_ascii_lowercase())
            .map(KeyId)
            .map_err(|_| KeyIdError)
    }
}

impl Serialize for KeyId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: de::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// Name of the key file in the state folder.
const FILE: &str = "identity.key";

/// Why the node has no usable key of its own.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Others on this machine may read the key, or replace it.
    #[error("`{path}` is open to others (mode {mode:04o})")]
    TooOpen {
        /// The key file, or the state folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The configured key file does not exist.
    #[error("key file `{0}` does not exist")]
    Missing(PathBuf),
    /// The file holds something else than a key.
    #[error("key file `{0}` does not hold 32 bytes, raw or as base64url text")]
    Damaged(PathBuf),
    /// The system refused.
    #[error("key file `{path}`: cannot {action} it")]
    Io {
        /// The file.
        path: PathBuf,
        /// `read` or `write`.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl IdentityError {
    /// The way out, for the operator.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::TooOpen { path, mode } => {
                let wanted = if path.is_dir() { "700" } else { "600" };
                let remedy = format!("run `chmod {wanted} '{}'`", path.display());
                if mode & 0o022 == 0 && wanted == "700" {
                    remedy
                } else {
                    format!(
                        "{remedy}; if another account may have used it, delete the key instead: a new \
                         one is made, and each other node must then run `clawmatrix trust accept`"
                    )
                }
            }
            Self::Missing(path) => format!(
                "make one with `(umask 077; head -c 32 /dev/urandom > '{}')`, or remove \
                 `identityFile` to keep the key in the state folder",
                path.display()
            ),
            Self::Damaged(_) => {
                "restore it from a backup, or delete it: a new key is made, and each \
                 other node must then run `clawmatrix trust accept`"
                    .into()
            }
            Self::Io { path, .. } => format!(
                "the account that runs the node must own `{}` and be able to read it",
                path.display()
            ),
        }
    }
}

/// The node's own key pair. The secret half is wiped on drop and never shown.
pub struct Identity {
    key: SigningKey,
    public: PublicKey,
}

impl Identity {
    /// A new key that is stored nowhere.
    #[must_use]
    pub fn generate() -> Self {
        Self::from_seed(&Zeroizing::new(random_bytes()))
    }

    /// The key with this 32-byte seed.
    #[must_use]
    pub fn from_seed(seed: &Zeroizing<[u8; 32]>) -> Self {
        let key = SigningKey::from_bytes(seed);
        let public = PublicKey(key.verifying_key().to_bytes());
        Self { key, public }
    }

    /// The key in the state folder, made when there is none; or the one in `file`, which must exist:
    /// a mistyped path must not turn the node into a stranger. Blocks on the disk.
    ///
    /// # Errors
    /// [`IdentityError`]; nothing is changed then.
    pub fn load_or_create(dir: &StateDir, file: Option<&Path>) -> Result<Self, IdentityError> {
        if let Some(path) = file {
            return Self::read(path)?.ok_or_else(|| IdentityError::Missing(path.to_owned()));
        }
        refuse_open(dir.root(), &metadata(dir.root())?)?;
        let path = dir.path(FILE);
        if let Some(identity) = Self::read(&path)? {
            return Ok(identity);
        }
        Self::store(dir, &Zeroizing::new(random_bytes()))
    }

    /// Puts another key in the place of that in the state folder, as a whole. Blocks on the disk.
    ///
    /// # Errors
    /// [`IdentityError::Io`]; the old key is in its place then.
    pub fn store(dir: &StateDir, seed: &Zeroizing<[u8; 32]>) -> Result<Self, IdentityError> {
        let path = dir.path(FILE);
        match state::write_atomic(&path, seed.as_ref()) {
            Ok(()) => Ok(Self::from_seed(seed)),
            Err(source) => Err(IdentityError::Io {
                path,
                action: "write",
                source,
            }),
        }
    }

    /// The key in `path`; none when there is no such file.
    fn read(path: &Path) -> Result<Option<Self>, IdentityError> {
        let failed = |source| IdentityError::Io {
            path: path.to_owned(),
            action: "read",
            source,
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        // Judged on the open file: what is checked is what is read.
        refuse_open(path, &file.metadata().map_err(failed)?)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(128));
        file.take(128).read_to_end(&mut bytes).map_err(failed)?;
        let seed = seed_of(&bytes).ok_or_else(|| IdentityError::Damaged(path.to_owned()))?;
        Ok(Some(Self::from_seed(&seed)))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs `P||label\0||parts`.
    #[must_use]
    pub fn sign(&self, label: Label, parts: &[&[u8]]) -> [u8; 64] {
        self.key.sign(&label.message(parts)).to_bytes()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "identity {}", self.public.id())
    }
}

/// The seed as the file holds it: 32 raw bytes, or base64url text, which secret stores can carry.
fn seed_of(bytes: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    if let Ok(raw) = <[u8; 32]>::try_from(bytes) {
        return Some(Zeroizing::new(raw));
    }
    let decoded = Zeroizing::new(URL_SAFE_NO_PAD.decode(bytes.trim_ascii()).ok()?);
    <[u8; 32]>::try_from(decoded.as_slice())
        .ok()
        .map(Zeroizing::new)
}

fn metadata(path: &Path) -> Result<fs::Metadata, IdentityError> {
    fs::metadata(path).map_err(|source| IdentityError::Io {
        path: path.to_owned(),
        action: "read",
        source,
    })
}

fn refuse_open(path: &Path, metadata: &fs::Metadata) -> Result<(), IdentityError> {
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        Ok(())
    } else {
        Err(IdentityError::TooOpen {
            path: path.to_owned(),
            mode,
        })
    }
}

#[cfg(test)]
mod tests;
