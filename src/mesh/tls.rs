//! Certificate and key of the listener (protocol 3.1): checked at the start, and followed when they
//! are renewed.
//!
//! TLS is an outer coat: who is at the other end, and what may be read on the way, is decided by
//! the mesh's own handshake and records. So nothing here asks for a client's certificate.

mod error;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    CertificateError, Error as RustlsError, InconsistentKeys, RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject as _},
    },
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

pub use self::error::TlsError;
use crate::{
    civil,
    wire::limits::{CERTIFICATE_FILE_BYTES, CERTIFICATE_LOOK, CERTIFICATE_WARN},
};

/// The only protocol over TLS.
pub(super) const ALPN: &[u8] = b"http/1.1";
/// Later than any certificate ends: the year 10000.
const FAR: Duration = Duration::from_secs(253_402_300_800);

/// Where certificate and key of the listener lie, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, the node's own certificate first.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// What a listener needs from its files.
#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// The certificate's last second, since 1970.
    not_after: Option<u64>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Reads a PEM file, of which nobody needs a large one.
fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(CERTIFICATE_FILE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

/// The certificates in a PEM file.
///
/// # Errors
/// [`TlsError`] when it cannot be read or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(TlsError::Missing {
            path: path.to_owned(),
            what: "certificate",
        }),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = zeroize::Zeroizing::new(read(path)?);
    if memchr::memmem::find(&text, b"ENCRYPTED").is_some() {
        return Err(TlsError::Encrypted(path.to_owned()));
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::Missing {
            path: path.to_owned(),
            what: "private key",
        },
        _ => TlsError::Key(path.to_owned()),
    })
}

/// Whether a certificate could be accepted at a time, whoever signed it.
fn judge(certificate: &CertificateDer<'_>, at: Duration) -> Result<(), CertificateError> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .expect("there are roots and no revocation lists");
    let name = ServerName::try_from("localhost").expect("a name");
    let at = UnixTime::since_unix_epoch(at);
    match verifier.verify_server_cert(certificate, &[], &name, &[], at) {
        Err(RustlsError::InvalidCertificate(error)) => Err(error),
        // Chain and name are judged by who dials.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The last second of a certificate.
fn not_after(certificate: &CertificateDer<'_>) -> Option<u64> {
    match judge(certificate, FAR) {
        Err(CertificateError::ExpiredContext { not_after, .. }) => Some(not_after.as_secs()),
        Ok(()) | Err(_) => None,
    }
}

/// Reads and checks both files.
fn load(files: &TlsFiles, now: Duration) -> Result<Loaded, TlsError> {
    let chain = certificates(&files.cert)?;
    let key = private_key(&files.key)?;
    let own = chain.first().cloned().unwrap_or_else(|| Vec::new().into());
    let path = || files.cert.clone();
    match judge(&own, now) {
        Err(CertificateError::ExpiredContext { not_after, .. }) => {
            return Err(TlsError::Expired {
                path: path(),
                not_after: not_after.as_secs(),
            });
        }
        Err(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            return Err(TlsError::TooEarly(path()));
        }
        Err(CertificateError::BadEncoding) => return Err(TlsError::Certificate(path())),
        Ok(()) | Err(_) => {}
    }
    let not_after = not_after(&own);
    let certified =
        CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            RustlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::Mismatch {
                cert: files.cert.clone(),
                key: files.key.clone(),
            },
            RustlsError::InvalidCertificate(_) => TlsError::Certificate(path()),
            _ => TlsError::Key(files.key.clone()),
        })?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Nodes link rarely: a resumed handshake would save nothing, and strangers leave nothing behind.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Loaded {
        config: Arc::new(config),
        not_after,
    })
}

/// Checks both files without keeping them.
///
/// # Errors
/// [`TlsError`].
pub fn check(files: &TlsFiles) -> Result<(), TlsError> {
    load(files, unix_now()).map(drop)
}

fn unix_now() -> Duration {
    // Before 1970 no certificate is valid, which is then said.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// What changes when somebody writes to a file, renames another over it or mends its mode.
type Print = (u64, u64, i64, i64, i64);

type Prints = [Option<Print>; 2];

/// What both files look like from outside; a file that is not there looks like nothing.
fn fingerprint(files: &TlsFiles) -> Prints {
    [&files.cert, &files.key].map(|path| {
        let meta = fs::metadata(path).ok()?;
        Some((
            meta.ino(),
            meta.size(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
        ))
    })
}

#[derive(Debug)]
struct State {
    loaded: Loaded,
    /// Why newer files are not in use.
    trouble: Option<String>,
}

/// The listener's certificate, always the newest that was good. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ListenerTls {
    files: Arc<TlsFiles>,
    /// What the files looked like when they were read first.
    first: Prints,
    // Held for an exchange of pointers, never across an await.
    state: Arc<Mutex<State>>,
}

impl ListenerTls {
    /// Reads and checks the files. Blocks on them.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let first = fingerprint(&files);
        let loaded = load(&files, unix_now())?;
        Ok(Self {
            first,
            files: Arc::new(files),
            state: Arc::new(Mutex::new(State {
                loaded,
                trouble: None,
            })),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For one connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.state().loaded.config.clone().into()
    }

    /// What the operator should do soon.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let state = self.state();
        let shown = self.files.cert.display();
        let ends = state.loaded.not_after.and_then(|end| {
            let left = Duration::from_secs(end).checked_sub(unix_now());
            match left {
                None => Some(format!(
                    "the certificate in `{shown}` has expired on {}: nodes that dial `wss://` are refused by it; renew it",
                    civil::utc(end)
                )),
                Some(left) if left < CERTIFICATE_WARN => Some(format!(
                    "the certificate in `{shown}` expires on {}: renew it",
                    civil::utc(end)
                )),
                Some(_) => None,
            }
        });
        ends.into_iter().chain(state.trouble.clone()).collect()
    }

    /// Puts renewed files in force for new connections, for as long as it runs. Files that do not fit
    /// one another are given one more look before it is said: a renewal writes one after the other.
    pub(crate) async fn follow(self) {
        let mut in_use = self.first;
        let mut bad = None;
        let mut told = None;
        loop {
            sleep(CERTIFICATE_LOOK).await;
            let files = self.files.clone();
            // Files on a slow disk must not hold up the links.
            let look = move || {
                let seen = fingerprint(&files);
                (seen != in_use).then(|| (seen, load(&files, unix_now())))
            };
            let Ok(found) = tokio::task::spawn_blocking(look).await else {
                return;
            };
            match found {
                None => self.state().trouble = None,
                Some((seen, Ok(loaded))) => {
                    let ends = loaded.not_after.map(civil::utc);
                    tracing::info!(cert = %self.files.cert.display(), ends, "certificate renewed");
                    *self.state() = State {
                        loaded,
                        trouble: None,
                    };
                    in_use = seen;
                }
                Some((seen, Err(error))) if bad == Some(seen) => {
                    if told != Some(seen) {
                        let trouble = format!(
                            "the renewed certificate is not in use: {error}; {}",
                            error.hint()
                        );
                        tracing::warn!(trouble, "listener");
                        self.state().trouble = Some(trouble);
                        told = Some(seen);
                    }
                }
                Some((seen, Err(_))) => bad = Some(seen),
            }
        }
    }
}
