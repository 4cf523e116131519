use std::os::unix::fs::DirBuilderExt;

use super::*;

fn state() -> (tempfile::TempDir, StateDir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path().join("state")).unwrap();
    (temp, dir)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn key_is_made_once_and_privately() {
    let (_temp, dir) = state();
    let first = Identity::load_or_create(&dir, None).unwrap();
    let again = Identity::load_or_create(&dir, None).unwrap();
    assert_eq!(first.public(), again.public());
    let mode = fs::metadata(dir.path(FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn key_file_open_to_others_is_refused_with_the_way_out() {
    let (_temp, dir) = state();
    Identity::load_or_create(&dir, None).unwrap();
    for mode in [0o644, 0o640, 0o602, 0o610] {
        set_mode(&dir.path(FILE), mode);
        let error = Identity::load_or_create(&dir, None).unwrap_err();
        assert!(matches!(error, IdentityError::TooOpen { .. }), "{mode:o}");
        assert!(error.hint().contains("chmod 600"), "{}", error.hint());
    }
    set_mode(&dir.path(FILE), 0o600);
    assert!(Identity::load_or_create(&dir, None).is_ok());
}

#[test]
fn state_folder_open_to_others_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("wide");
    fs::DirBuilder::new().mode(0o755).create(&root).unwrap();
    set_mode(&root, 0o755);
    let dir = StateDir::open(&root).unwrap();
    let error = Identity::load_or_create(&dir, None).unwrap_err();
    assert!(error.hint().contains("chmod 700"), "{}", error.hint());
    assert!(!dir.path(FILE).exists());
}

#[test]
fn damaged_key_is_refused_and_kept() {
    let (_temp, dir) = state();
    for bytes in [&b""[..], b"short", &[7; 31], &[7; 33], &[7; 4096]] {
        dir.write(FILE, bytes).unwrap();
        let error = Identity::load_or_create(&dir, None).unwrap_err();
        assert!(matches!(error, IdentityError::Damaged(_)), "{error}");
        assert_eq!(dir.read(FILE).unwrap().unwrap(), bytes);
    }
}

#[test]
fn configured_key_file_may_be_text_and_must_exist() {
    let (temp, dir) = state();
    let path = temp.path().join("mounted.key");
    let missing = Identity::load_or_create(&dir, Some(&path)).unwrap_err();
    assert!(matches!(missing, IdentityError::Missing(_)));
    assert!(!path.exists());
    fs::write(&path, format!("{}\n", URL_SAFE_NO_PAD.encode([9; 32]))).unwrap();
    set_mode(&path, 0o600);
    let identity = Identity::load_or_create(&dir, Some(&path)).unwrap();
    let same = Identity::from_seed(&Zeroizing::new([9; 32]));
    assert_eq!(identity.public(), same.public());
    assert!(!dir.path(FILE).exists());
}

#[test]
fn a_signature_is_bound_to_its_label_and_parts() {
    let identity = Identity::generate();
    let signature = identity.sign(Label::Record, &[b"a", b"bc"]);
    let key = identity.public();
    assert!(key.verify_strict(Label::Record, &[b"ab", b"c"], &signature));
    assert!(!key.verify_strict(Label::Audit, &[b"a", b"bc"], &signature));
    assert!(!key.verify_strict(Label::Record, &[b"a", b"bd"], &signature));
    assert!(!Identity::generate().public().verify_strict(
        Label::Record,
        &[b"a", b"bc"],
        &signature
    ));
}

#[test]
fn public_keys_have_one_text_and_weak_ones_none() {
    let key = Identity::generate().public();
    assert_eq!(key.to_string().parse(), Ok(key));
    assert_eq!(key.to_string().len(), 43);
    assert!(format!("{key}=").parse::<PublicKey>().is_err());
    // The neutral element, a point of order 2, and the neutral element written as 2^255-18.
    for weak in [
        {
            let mut b = [0; 32];
            b[0] = 1;
            b
        },
        {
            let mut b = [0xff; 32];
            b[0] = 0xec;
            b[31] = 0x7f;
            b
        },
        {
            let mut b = [0xff; 32];
            b[0] = 0xee;
            b[31] = 0x7f;
            b
        },
    ] {
        assert!(URL_SAFE_NO_PAD.encode(weak).parse::<PublicKey>().is_err());
        assert!(!PublicKey(weak).verify_strict(Label::Record, &[], &[0; 64]));
    }
}

#[test]
fn debug_output_holds_no_secret() {
    let seed = [0x5a; 32];
    let text = format!("{:?}", Identity::from_seed(&Zeroizing::new(seed)));
    assert!(!text.contains(&hex(&seed)), "{text}");
}
