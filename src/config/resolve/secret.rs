//! Secrets: where they are read from, and whether they are good enough.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use super::{Check, entries};
use crate::{
    config::{
        AcceptSecret,
        problem::quote,
        raw::{self, RawConfig, SecretInput, SecretReference},
        strength::{self, Strength},
        when,
    },
    crypto::secret::Secret,
    state::open_to_others,
    wire::limits,
};

/// The longest secret file that is read; a larger one is not a secret.
const SECRET_FILE_BYTES: u64 = 4096;

/// The way to a good secret, named wherever one is missing or bad.
const MAKE_ONE: &str =
    "`clawmatrix secret new` makes a good one; every node of the mesh needs the same";

pub(super) fn cluster_secret(check: &mut Check<'_>, raw: &RawConfig) -> Option<Secret<String>> {
    let (path, secret) = match (&raw.secret, &raw.secret_file) {
        (Some(_), Some(_)) => {
            check.problem(
                "secretFile",
                "`secret` is given too",
                "keep one of `secret` and `secretFile`",
            );
            return None;
        }
        (Some(input), None) => ("secret", text(check, "secret", input)?),
        (None, Some(file)) => {
            let file = check.path(file);
            ("secretFile", secret_file(check, "secretFile", &file)?)
        }
        (None, None) => {
            if !check.wrote("secret") && !check.wrote("secretFile") {
                check.problem(
                    "secret",
                    "missing: neither `secret` nor `secretFile` is given",
                    format!("{MAKE_ONE}; `{}` does all of it", check.source.setup()),
                );
            }
            return None;
        }
    };
    match strength::judge(secret.reveal()) {
        Strength::Short => {
            check.problem(path, short(&secret), MAKE_ONE);
            return None;
        }
        Strength::Trivial if raw.allow_weak_secret != Some(true) => {
            check.problem(
                path,
                "the secret is trivial: one character repeated, a sequence, or an example from documentation",
                format!("{MAKE_ONE}; `allowWeakSecret: true` lets this one pass"),
            );
            return None;
        }
        Strength::Trivial | Strength::Weak => check.warnings.push(format!(
            "`{path}` is weak: it can be guessed by someone who listens in on a first contact; {MAKE_ONE}"
        )),
        Strength::Good => {}
    }
    Some(secret)
}

fn short(secret: &Secret<String>) -> String {
    format!(
        "the secret has {} characters, fewer than {}",
        secret.reveal().chars().count(),
        limits::SECRET_MIN_CHARS
    )
}

pub(super) fn accept_secrets(
    check: &mut Check<'_>,
    list: Option<&[Option<raw::AcceptSecret>]>,
) -> Vec<AcceptSecret> {
    let mut accepted = Vec::new();
    for (i, entry) in entries(list.unwrap_or_default()) {
        let path = format!("acceptSecrets[{i}]");
        let not_after = match &entry.not_after {
            None => Ok(None),
            Some(text) => when::parse(text).map(Some).ok_or(text),
        };
        if let Err(text) = &not_after {
            check.problem(
                format!("{path}.notAfter"),
                format!("{} is not a date", quote(text)),
                "write `2026-12-31` or `2026-12-31T18:00:00Z`",
            );
        }
        let path = format!("{path}.secret");
        let Some(secret) = entry.secret.as_ref().and_then(|s| text(check, &path, s)) else {
            continue;
        };
        if strength::judge(secret.reveal()) == Strength::Short {
            check.problem(
                path,
                short(&secret),
                "a secret this short was never accepted: remove the entry",
            );
        } else if let Ok(not_after) = not_after {
            accepted.push(AcceptSecret { secret, not_after });
        }
    }
    accepted
}

/// The secret that `input` names.
pub(super) fn text(
    check: &mut Check<'_>,
    path: &str,
    input: &SecretInput,
) -> Option<Secret<String>> {
    match input {
        SecretInput::Text(secret) => Some(secret.clone()),
        SecretInput::Reference(reference) => referred(check, path, reference),
    }
}

fn referred(
    check: &mut Check<'_>,
    path: &str,
    reference: &SecretReference,
) -> Option<Secret<String>> {
    let source = reference.source.as_deref()?;
    let id = reference.id.as_deref()?;
    if check.source.openclaw {
        check.problem(
            path,
            "OpenClaw did not resolve this secret reference",
            "check `secrets.providers` in OpenClaw's configuration with `openclaw secrets audit`",
        );
        return None;
    }
    if source != "env" {
        check.problem(
            path,
            format!("only OpenClaw can resolve a reference to {}", quote(source)),
            "without OpenClaw write the text itself, `${VAR}`, or a reference with `\"source\": \"env\"`",
        );
        return None;
    }
    variable(check, path, id)
}

/// The value of an environment variable that the operator names.
pub(super) fn variable(check: &mut Check<'_>, path: &str, name: &str) -> Option<Secret<String>> {
    let value = (check.source.env)(name).filter(|v| !v.is_empty());
    if value.is_none() {
        check.problem(
            path,
            format!("environment variable {} is not set", quote(name)),
            "set it for the process that runs the node",
        );
    }
    value.map(Secret::new)
}

/// Whether others may use the file. In the folder of systemd's credentials only this service may
/// enter, and there the bit that lets the group read is the mask of the list that names its account.
pub(super) fn open_here(check: &Check<'_>, file: &Path) -> io::Result<bool> {
    let credential = (check.source.env)("CREDENTIALS_DIRECTORY")
        .is_some_and(|dir| !dir.is_empty() && file.parent() == Some(Path::new(&dir)));
    if credential {
        return Ok(fs::metadata(file)?.permissions().mode() & 0o037 != 0);
    }
    open_to_others(file)
}

fn secret_file(check: &mut Check<'_>, path: &str, file: &Path) -> Option<Secret<String>> {
    let shown = file.display();
    match open_here(check, file) {
        Err(error) => {
            let hint = if error.kind() == io::ErrorKind::NotFound {
                format!("make it: `clawmatrix secret new > {shown} && chmod 600 {shown}`")
            } else {
                "the account that runs the node must be able to read it".to_owned()
            };
            check.problem(
                path,
                format!("cannot read `{shown}`: {}", reason(&error)),
                hint,
            );
            return None;
        }
        Ok(true) => {
            check.problem(
                path,
                format!("`{shown}` can be read or written by other accounts"),
                format!("`chmod 600 {shown}`"),
            );
            return None;
        }
        Ok(false) => {}
    }
    let mut text = String::new();
    let read =
        File::open(file).and_then(|f| f.take(SECRET_FILE_BYTES + 1).read_to_string(&mut text));
    match read {
        Err(error) => {
            check.problem(
                path,
                format!("cannot read `{shown}`: {}", reason(&error)),
                "it must be a text file that the account of the node can read",
            );
            None
        }
        Ok(bytes) if bytes as u64 > SECRET_FILE_BYTES => {
            check.problem(
                path,
                format!("`{shown}` is longer than a secret can be"),
                "it must hold the secret and nothing else",
            );
            None
        }
        Ok(_) => {
            // Editors and `echo` end the file with a line break that is not part of the secret.
            text.truncate(text.trim_end_matches(['\r', '\n']).len());
            Some(Secret::new(text))
        }
    }
}

/// What the system says, without its number.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::InvalidData => "it is not text".into(),
        _ => error.to_string(),
    }
}

/// Where the node's key is.
pub(super) enum IdentitySource {
    /// In this file.
    File(PathBuf),
    /// Here.
    Seed(Secret<[u8; 32]>),
}

/// The node's key elsewhere than in the state folder: a file, or the key itself where a secret
/// reference was resolved to it. Whether the file holds a key is told when it is read.
pub(super) fn identity(
    check: &mut Check<'_>,
    input: Option<&SecretInput>,
) -> Option<IdentitySource> {
    let input = input?;
    let secret = text(check, "identityFile", input)?;
    let value = secret.reveal().trim();
    let referred = matches!(input, SecretInput::Reference(_));
    // No path looks like this: 43 characters without a folder or an ending.
    let seed = URL_SAFE_NO_PAD.decode(value).ok().map(Zeroizing::new);
    let seed = seed.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok());
    match seed {
        Some(seed) if referred || check.source.openclaw => {
            return Some(IdentitySource::Seed(Secret::new(seed)));
        }
        None if referred => {
            check.problem(
                "identityFile",
                "the secret referred to is not a key",
                "it must be the 32 bytes of a key as base64url text, 43 characters",
            );
            return None;
        }
        Some(_) | None => {}
    }
    if value.is_empty() {
        check.problem(
            "identityFile",
            "is empty",
            "give the path of the key file, or leave it out",
        );
        return None;
    }
    let file = check.path(value);
    if open_here(check, &file).is_ok_and(|open| open) {
        let shown = file.display();
        check.problem(
            "identityFile",
            format!("`{shown}` can be read or written by other accounts"),
            format!("`chmod 600 {shown}`"),
        );
        return None;
    }
    Some(IdentitySource::File(file))
}
