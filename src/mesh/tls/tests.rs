//! Files of a certificate as people and renewals leave them.

use std::os::unix::fs::PermissionsExt as _;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::drain::Tasks;

const DAY: u64 = 24 * 3600;

/// A folder with `cert.pem` and `key.pem`.
struct Pair {
    dir: TempDir,
    files: TlsFiles,
}

impl Pair {
    /// A certificate whose life begins and ends so many days from now.
    fn new(from: i64, to: i64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles {
            cert: dir.path().join("cert.pem"),
            key: dir.path().join("key.pem"),
        };
        let pair = Self { dir, files };
        pair.renew(from, to);
        pair
    }

    fn renew(&self, from: i64, to: i64) {
        let (cert, key) = made(from, to);
        self.write("cert.pem", cert.as_bytes());
        self.write("key.pem", key.as_bytes());
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn load(&self) -> Result<Loaded, TlsError> {
        load(&self.files, unix_now())
    }
}

fn made(from: i64, to: i64) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
    let at = |days: i64| {
        let now = i64::try_from(unix_now().as_secs()).unwrap();
        let date = civil::utc(u64::try_from(now + days * DAY as i64).unwrap());
        let part = |range: std::ops::Range<usize>| date[range].parse::<i32>().unwrap();
        let (month, day) = (part(5..7) as u8, part(8..10) as u8);
        rcgen::date_time_ymd(part(0..4), month, day)
    };
    (params.not_before, params.not_after) = (at(from), at(to));
    let cert = params.self_signed(&key).unwrap();
    (cert.pem(), key.serialize_pem())
}

#[test]
fn good_pair_is_taken_with_its_end() {
    let loaded = Pair::new(-1, 90).load().unwrap();
    let left = loaded.not_after.unwrap() - unix_now().as_secs();
    assert!((88 * DAY..=90 * DAY).contains(&left), "{left}");
    assert_eq!(loaded.config.alpn_protocols, [b"http/1.1"]);
}

#[test]
fn each_fault_is_named_with_its_file() {
    let pair = Pair::new(-1, 90);
    let (cert, key) = made(-1, 90);
    let (good_cert, good_key) = (
        fs::read(&pair.files.cert).unwrap(),
        fs::read(&pair.files.key).unwrap(),
    );
    let encrypted =
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let no_der = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let no_key = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let cases: [(&[u8], &[u8], &str, bool); 8] = [
        (&good_cert, key.as_bytes(), "does not belong", true),
        (cert.as_bytes(), &good_key, "does not belong", true),
        (b"", &good_key, "holds no certificate", false),
        (&good_key, &good_key, "holds no certificate", false),
        (no_der, &good_key, "cannot be used", false),
        (&good_cert, &good_cert, "holds no private key", true),
        (&good_cert, encrypted, "is encrypted", true),
        (&good_cert, no_key, "not of a kind", true),
    ];
    for (cert, key, says, in_key) in cases {
        pair.write("cert.pem", cert);
        pair.write("key.pem", key);
        let error = pair.load().unwrap_err();
        assert!(error.to_string().contains(says), "{error} / {says}");
        assert_eq!(error.path() == pair.files.key, in_key, "{error}");
        assert!(!error.hint().is_empty());
    }
    fs::remove_file(&pair.files.key).unwrap();
    let error = pair.load().unwrap_err().to_string();
    assert!(error.contains("there is no such file"), "{error}");
}

#[test]
fn dates_are_looked_at() {
    let past = Pair::new(-90, -2).load().unwrap_err();
    assert!(matches!(past, TlsError::Expired { .. }), "{past}");
    let future = Pair::new(2, 90).load().unwrap_err();
    assert!(matches!(future, TlsError::TooEarly(_)), "{future}");
    let soon = ListenerTls::open(Pair::new(-1, 5).files.clone()).unwrap();
    assert!(
        soon.warnings()[0].contains("expires on"),
        "{:?}",
        soon.warnings()
    );
    let late = ListenerTls::open(Pair::new(-1, 90).files.clone()).unwrap();
    assert_eq!(late.warnings(), Vec::<String>::new());
}

/// Waits, looking as often as the listener does.
async fn until(good: impl Fn() -> bool) {
    let began = Instant::now();
    while !good() {
        assert!(began.elapsed() < 20 * CERTIFICATE_LOOK, "never happened");
        sleep(CERTIFICATE_LOOK / 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn renewed_files_are_taken_and_bad_ones_are_not() {
    let pair = Pair::new(-1, 90);
    let tls = ListenerTls::open(pair.files.clone()).unwrap();
    let in_use = || Arc::as_ptr(&tls.state().loaded.config);
    let first = in_use();
    let tasks = Tasks::new();
    tasks.spawn(tls.clone().follow());
    // Half of a renewal: the old one stays, and it is said.
    let (cert, key) = made(-1, 60);
    pair.write("cert.pem", cert.as_bytes());
    until(|| !tls.warnings().is_empty()).await;
    assert!(
        tls.warnings()[0].contains("does not belong"),
        "{:?}",
        tls.warnings()
    );
    assert_eq!(in_use(), first);
    // The other half.
    pair.write("key.pem", key.as_bytes());
    until(|| in_use() != first).await;
    assert_eq!(tls.warnings(), Vec::<String>::new());
    let second = in_use();
    // Nothing changes: nothing is read.
    sleep(4 * CERTIFICATE_LOOK).await;
    assert_eq!(in_use(), second);
    pair.renew(-1, 3);
    until(|| in_use() != second).await;
    assert!(
        tls.warnings()[0].contains("expires on"),
        "{:?}",
        tls.warnings()
    );
}
