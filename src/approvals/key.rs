//! The operator's key on its disk: an Ed25519 seed behind a passphrase, and the token that shows what
//! waits. It never lies in the state folder, and its passphrase is typed, never kept.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use argon2::{Algorithm, Argon2, Params, Version};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::Operator;
use crate::{
    crypto::{
        identity::{Identity, PublicKey},
        secret::Secret,
        stretch,
    },
    ids::random_bytes,
    state::open_to_others,
};

/// Longest key file that is read.
const FILE_BYTES: u64 = 4096;
/// Version of the file.
const VERSION: u8 = 1;

/// Why an operator key cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is none.
    #[error("there is no operator key `{0}`")]
    Missing(PathBuf),
    /// There is one already.
    #[error("`{0}` is there already")]
    Exists(PathBuf),
    /// Others on this machine may read it.
    #[error("`{0}` is open to others")]
    Open(PathBuf),
    /// It is no key file of ours.
    #[error("`{0}` is no operator key")]
    Damaged(PathBuf),
    /// The passphrase does not open it.
    #[error("the passphrase does not open the key")]
    Passphrase,
    /// The system refused.
    #[error("operator key `{path}`: cannot {action} it: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// `read` or `write`.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// The file, as JSON.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u8,
    key: PublicKey,
    token: String,
    salt: String,
    sealed: String,
}

/// An operator key as it lies on the disk: closed.
#[derive(Debug)]
pub struct LockedKey {
    /// Its public half.
    pub key: PublicKey,
    /// Shows what waits; approves nothing.
    pub token: Secret<String>,
    salt: [u8; 16],
    sealed: Vec<u8>,
}

impl LockedKey {
    /// A new key behind `passphrase`. Slow on purpose.
    #[must_use]
    pub fn make(passphrase: &Secret<String>) -> Self {
        let seed = Zeroizing::new(random_bytes::<32>());
        let key = Identity::from_seed(&seed).public();
        let salt = random_bytes();
        let mut sealed = seed.to_vec();
        let sealing = aead(passphrase, &salt);
        sealing
            .seal_in_place_append_tag(nonce(), Aad::from(key.0), &mut sealed)
            .expect("32 bytes can be sealed");
        Self {
            key,
            token: Secret::new(format!(
                "cmx_{}",
                URL_SAFE_NO_PAD.encode(random_bytes::<32>())
            )),
            salt,
            sealed,
        }
    }

    /// What the configuration of a node says of this operator.
    #[must_use]
    pub fn operator(&self) -> Operator {
        Operator {
            key: self.key,
            token_sha256: Some(Sha256::digest(self.token.reveal().as_bytes()).into()),
        }
    }

    /// Opens it. Slow on purpose.
    ///
    /// # Errors
    /// [`KeyError::Passphrase`].
    pub fn unlock(&self, passphrase: &Secret<String>) -> Result<Identity, KeyError> {
        let mut sealed = Zeroizing::new(self.sealed.clone());
        let opened = aead(passphrase, &self.salt)
            .open_in_place(nonce(), Aad::from(self.key.0), &mut sealed)
            .map_err(|_| KeyError::Passphrase)?;
        let seed: [u8; 32] = (&*opened).try_into().map_err(|_| KeyError::Passphrase)?;
        let identity = Identity::from_seed(&Zeroizing::new(seed));
        if identity.public() == self.key {
            Ok(identity)
        } else {
            Err(KeyError::Passphrase)
        }
    }

    /// Writes it to a file that is not there yet, for this account alone.
    ///
    /// # Errors
    /// [`KeyError::Exists`], [`KeyError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
            _ => KeyError::Io {
                path: path.to_owned(),
                action: "write",
                source,
            },
        };
        let stored = Stored {
            version: VERSION,
            key: self.key,
            token: self.token.reveal().clone(),
            salt: URL_SAFE_NO_PAD.encode(self.salt),
            sealed: URL_SAFE_NO_PAD.encode(&self.sealed),
        };
        let text = serde_json::to_string_pretty(&stored)
            .map_err(|error| failed(io::Error::other(error)))?;
        if let Some(folder) = path.parent() {
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(folder).map_err(failed)?;
        }
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.write_all(b"\n"))
            .and_then(|()| file.sync_all())
            .map_err(failed)
    }

    /// Reads one, still closed.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => KeyError::Missing(path.to_owned()),
            _ => KeyError::Io {
                path: path.to_owned(),
                action: "read",
                source,
            },
        };
        let damaged = || KeyError::Damaged(path.to_owned());
        let file = File::open(path).map_err(failed)?;
        if open_to_others(path).map_err(failed)? {
            return Err(KeyError::Open(path.to_owned()));
        }
        let mut text = Zeroizing::new(String::new());
        file.take(FILE_BYTES)
            .read_to_string(&mut text)
            .map_err(failed)?;
        let stored: Stored = serde_json::from_str(&text).map_err(|_| damaged())?;
        if stored.version != VERSION {
            return Err(damaged());
        }
        let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| damaged());
        Ok(Self {
            key: stored.key,
            token: Secret::new(stored.token),
            salt: bytes(&stored.salt)?.try_into().map_err(|_| damaged())?,
            sealed: bytes(&stored.sealed)?,
        })
    }
}

/// The key that a passphrase gives, at the price of a cluster secret's (protocol 3.3).
fn aead(passphrase: &Secret<String>, salt: &[u8; 16]) -> LessSafeKey {
    let mut key = Zeroizing::new([0; 32]);
    let params = Params::new(
        stretch::MEMORY_KIB,
        stretch::PASSES,
        stretch::LANES,
        Some(32),
    );
    Argon2::new(
        Algorithm::Argon2id,
        Version::V0x13,
        params.expect("valid by protocol 3.3"),
    )
    .hash_password_into(passphrase.reveal().as_bytes(), salt, key.as_mut())
    .expect("stretching a passphrase needs 64 MiB of memory");
    let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_ref()).expect("a key of 32 bytes fits");
    LessSafeKey::new(key)
}

/// Each salt makes a key of its own, which seals once.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}
