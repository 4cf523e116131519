//! Checks a record: each line names the hash of the one before, numbers go up by one, signatures are
//! this node's. What is cut off at the end shows only against a signed head kept elsewhere.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::files;
use crate::{
    crypto::identity::{Label, PublicKey},
    ids::unhex,
};

/// The file every record begins with.
const FIRST_FILE: &str = "00000001.jsonl";
/// A longer line is none of ours.
const LINE_BYTES: u64 = 64 << 10;

/// What a sound record holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sound {
    /// Number of its first line; above 1 when older files are gone.
    pub first: u64,
    /// Number of its last line; 0 for none.
    pub last: u64,
    /// Number of the last signed line; 0 for none.
    pub signed: u64,
    /// Hash of the last line: what to keep elsewhere.
    pub head: String,
}

/// Why a record is not sound.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A file cannot be read.
    #[error("cannot read `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line is not as it was written.
    #[error("`{path}` line {line}: {why}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line of it, from 1.
        line: u64,
        /// What is wrong.
        why: String,
    },
}

/// The fields the check needs.
#[derive(Deserialize)]
struct Fields {
    seq: u64,
    prev: String,
    #[serde(default)]
    signer: Option<PublicKey>,
    #[serde(default)]
    signature: Option<String>,
}

/// A line and where it stands.
struct Line {
    path: PathBuf,
    number: u64,
    bytes: Vec<u8>,
}

impl Line {
    fn broken(&self, why: impl Into<String>) -> Broken {
        Broken::Line {
            path: self.path.clone(),
            line: self.number,
            why: why.into(),
        }
    }

    fn fields(&self) -> Result<Fields, Broken> {
        serde_json::from_slice(&self.bytes).map_err(|_| self.broken("it is no line of a record"))
    }

    fn hash(&self) -> [u8; 32] {
        Sha256::digest(&self.bytes).into()
    }
}

/// Checks the record in `folder`; `ours` are the keys its heads may be signed with; none = any.
///
/// # Errors
/// The first line that is broken.
pub fn verify(folder: &Path, ours: &[PublicKey]) -> Result<Sound, Broken> {
    let mut sound = Sound::default();
    let mut before: Option<(Line, [u8; 32])> = None;
    let mut lines = lines(folder)?.peekable();
    while let Some(line) = lines.next() {
        let line = line?;
        let fields = line.fields()?;
        let prev: [u8; 32] = unhex(&fields.prev).map_err(|_| line.broken("`prev` is no hash"))?;
        match &before {
            None => {
                sound.first = fields.seq;
                // Files go as a whole, so the first file there ever was begins with the first line.
                let begins = fields.seq == 1 && prev == [0; 32];
                let eldest = line.path.file_name() == Some(OsStr::new(FIRST_FILE));
                if begins != eldest {
                    return Err(
                        line.broken("it is not the first line: those before it were removed")
                    );
                }
            }
            Some((last, hash)) => {
                if fields.seq != sound.last + 1 {
                    return Err(line.broken(format!(
                        "it has number {} where {} belongs: lines were removed or moved",
                        fields.seq,
                        sound.last + 1
                    )));
                }
                if prev != *hash {
                    // Who is it? The next line vouches for this one if that one is intact.
                    let vouched = match lines.peek() {
                        Some(Ok(next)) => next
                            .fields()
                            .is_ok_and(|next| unhex::<32>(&next.prev) == Ok(line.hash())),
                        Some(Err(_)) | None => true,
                    };
                    return Err(if vouched {
                        last.broken(format!("it was changed: line {} names another", fields.seq))
                    } else {
                        line.broken("it was changed: it does not follow the one before")
                    });
                }
            }
        }
        if let Some(signature) = &fields.signature {
            let signed = unhex::<64>(signature).ok().zip(fields.signer).is_some_and(
                |(signature, signer)| {
                    (ours.is_empty() || ours.contains(&signer))
                        && signer.verify_strict(
                            Label::Audit,
                            &[&fields.seq.to_be_bytes(), &prev],
                            &signature,
                        )
                },
            );
            if !signed {
                return Err(line.broken("its signature is not this node's"));
            }
            sound.signed = fields.seq;
        }
        sound.last = fields.seq;
        let hash = line.hash();
        before = Some((line, hash));
    }
    if let Some((_, hash)) = before {
        sound.head = crate::ids::hex(&hash);
    }
    Ok(sound)
}

/// All lines of all files, in order.
fn lines(folder: &Path) -> Result<impl Iterator<Item = Result<Line, Broken>>, Broken> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Broken::Io { path, source }
    };
    let present = files(folder).map_err(failed(folder))?;
    let each = present.into_iter().map(move |(_, path)| {
        let file = File::open(&path).map_err(failed(&path))?;
        Ok((path, BufReader::new(file)))
    });
    Ok(each.flat_map(|opened| {
        let mut state = Some(opened);
        let mut number = 0;
        std::iter::from_fn(move || {
            let (path, mut reader) = match state.take()? {
                Ok(opened) => opened,
                Err(error) => return Some(Err(error)),
            };
            number += 1;
            let mut bytes = Vec::new();
            match (&mut reader).take(LINE_BYTES).read_until(b'\n', &mut bytes) {
                Ok(0) => None,
                Ok(_) => {
                    let whole = bytes.pop_if(|b| *b == b'\n').is_some();
                    let line = Line {
                        path: path.clone(),
                        number,
                        bytes,
                    };
                    if !whole {
                        // A line being written; in an older file the next number tells it.
                        return None;
                    }
                    state = Some(Ok((path, reader)));
                    Some(Ok(line))
                }
                Err(source) => Some(Err(Broken::Io { path, source })),
            }
        })
    }))
}
