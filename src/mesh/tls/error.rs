//! What can be wrong with the files of a certificate, and the way out.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::civil;

/// What is wrong with a certificate or a key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("cannot read `{}`: {}", path.display(), reason(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is no PEM file, or holds nothing of that kind.
    #[error("`{}` holds no {what} in PEM form", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// `certificate`, `private key`.
        what: &'static str,
    },
    /// A passphrase would be needed.
    #[error("the key in `{}` is encrypted", .0.display())]
    Encrypted(PathBuf),
    /// Not a key that TLS can use.
    #[error("the key in `{}` is not of a kind that can be used", .0.display())]
    Key(PathBuf),
    /// Not a certificate that TLS can use.
    #[error("the certificate in `{}` cannot be used", .0.display())]
    Certificate(PathBuf),
    /// They do not belong together.
    #[error("the key in `{}` does not belong to the certificate in `{}`", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// Nobody would accept it any more.
    #[error("the certificate in `{}` has expired on {}", path.display(), civil::utc(*not_after))]
    Expired {
        /// The file.
        path: PathBuf,
        /// Its last second, since 1970.
        not_after: u64,
    },
    /// Nobody would accept it yet.
    #[error("the certificate in `{}` is not valid yet", .0.display())]
    TooEarly(PathBuf),
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}

impl TlsError {
    /// The way out.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read { .. } => "the account that runs the node must be able to read it",
            Self::Missing { .. } => "it must begin with a line like `-----BEGIN …-----`",
            Self::Encrypted(_) => {
                "a node starts without a person: `openssl pkey -in KEY -out NEW` takes the passphrase off"
            }
            Self::Key(_) => "use an RSA, ECDSA (P-256, P-384) or Ed25519 key",
            Self::Certificate(_) => "it must be an X.509 certificate, version 3",
            Self::Mismatch { .. } => {
                "name the files of one pair; in the certificate file the node's own comes first"
            }
            Self::Expired { .. } => "renew it; the node takes new files by itself while it runs",
            Self::TooEarly(_) => "look at the clock of this machine",
        }
    }

    /// The file that is to blame.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Read { path, .. }
            | Self::Missing { path, .. }
            | Self::Expired { path, .. }
            | Self::Mismatch { key: path, .. }
            | Self::Encrypted(path)
            | Self::Key(path)
            | Self::Certificate(path)
            | Self::TooEarly(path) => path,
        }
    }
}
