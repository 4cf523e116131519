//! The files of the record: `00000001.jsonl` and on. A full file is followed by the next, whose first
//! line names the last line of the one before; the oldest goes when there are too many.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::Entry;
use crate::{
    crypto::identity::{Identity, Label, PublicKey},
    ids::hex,
    wire::limits::{AUDIT_FILE_BYTES, AUDIT_FILES},
};

/// End of the files' names.
const SUFFIX: &str = ".jsonl";

/// What a line says.
#[derive(Debug)]
pub(super) enum Content {
    /// One entry, and how many such there were.
    Entry(Box<Entry>, u64),
    /// The chain as it stands, signed.
    Head(Arc<Identity>),
}

/// A line of an entry (protocol 8.6), in its order.
#[derive(Serialize)]
struct EntryLine<'a> {
    seq: u64,
    /// Wall clock, Unix ms.
    ts: u64,
    /// Clock of the process, ms: what a changed wall clock cannot reorder.
    mono: u64,
    dir: &'static str,
    from: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a str>,
    key: String,
    rid: String,
    action: &'a str,
    args_sha256: String,
    rule: &'a str,
    level: u8,
    decision: &'static str,
    result: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    prev: String,
}

/// A line that signs all before it.
#[derive(Serialize)]
struct HeadLine {
    seq: u64,
    ts: u64,
    mono: u64,
    signer: PublicKey,
    signature: String,
    prev: String,
}

/// The open record.
#[derive(Debug)]
pub(super) struct Chain {
    folder: PathBuf,
    pub(super) file: File,
    number: u64,
    /// Length of the file up to the end of the last whole line.
    pub(super) good: u64,
    /// A failed write may have left a piece behind `good`.
    torn: bool,
    seq: u64,
    head: [u8; 32],
    begun: Instant,
}

impl Chain {
    /// Opens the record in `folder`, made (0700) when missing, behind its last whole line: a piece
    /// behind it is what a crash left of a line nobody relied on.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        let present = files(folder)?;
        let number = present.last().map_or(1, |(number, _)| *number);
        let file = open_file(folder, number)?;
        let mut chain = Self {
            folder: folder.to_owned(),
            file,
            number,
            good: 0,
            torn: false,
            seq: 0,
            head: [0; 32],
            begun: Instant::now(),
        };
        let mut last = true;
        for (_, path) in present.iter().rev() {
            let mut bytes = Vec::new();
            File::open(path)?.read_to_end(&mut bytes)?;
            let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
            if last {
                chain.good = whole as u64;
                if whole < bytes.len() {
                    chain.file.set_len(chain.good)?;
                }
                last = false;
            }
            let lines: Vec<&[u8]> = bytes[..whole]
                .split(|b| *b == b'\n')
                .filter(|line| !line.is_empty())
                .collect();
            let Some(end) = lines.last() else {
                // Just begun when the node stopped: the chain ends in the file before.
                continue;
            };
            chain.head = Sha256::digest(end).into();
            // A damaged line is for `audit verify` to name; the record goes on behind it.
            let known = lines.iter().rev().zip(0_u64..);
            chain.seq = known
                .filter_map(|(line, behind)| Some(sequence(line)? + behind))
                .next()
                .unwrap_or(0);
            break;
        }
        Ok(chain)
    }

    /// Appends all lines, or none.
    pub(super) fn append(&mut self, contents: &[Content]) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.good)?;
            self.torn = false;
        }
        if self.good >= AUDIT_FILE_BYTES {
            self.rotate()?;
        }
        let ts = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, millis);
        let mono = millis(self.begun.elapsed());
        let (mut seq, mut head) = (self.seq, self.head);
        let mut bytes = Vec::new();
        for content in contents {
            seq += 1;
            let begin = bytes.len();
            write_line(&mut bytes, content, (seq, ts, mono), &head)?;
            head = Sha256::digest(&bytes[begin..]).into();
            bytes.push(b'\n');
        }
        if let Err(error) = self.file.write_all(&bytes) {
            self.torn = self.file.set_len(self.good).is_err();
            return Err(error);
        }
        self.good += bytes.len() as u64;
        (self.seq, self.head) = (seq, head);
        Ok(())
    }

    /// Waits until the disk has it.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.file = open_file(&self.folder, self.number + 1)?;
        self.number += 1;
        self.good = 0;
        let present = files(&self.folder)?;
        let surplus = present.len().saturating_sub(AUDIT_FILES);
        for (_, path) in &present[..surplus] {
            fs::remove_file(path)?;
        }
        File::open(&self.folder)?.sync_all()
    }
}

/// The record's files in order, with their numbers.
///
/// # Errors
/// What the system says; a missing folder has no files.
pub fn files(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_suffix(SUFFIX)?.parse().ok());
        found.extend(number.map(|number| (number, path)));
    }
    found.sort();
    Ok(found)
}

fn open_file(folder: &Path, number: u64) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(folder.join(format!("{number:08}{SUFFIX}")))
}

fn sequence(line: &[u8]) -> Option<u64> {
    let line: serde_json::Value = serde_json::from_slice(line).ok()?;
    line["seq"].as_u64()
}

fn write_line(
    out: &mut Vec<u8>,
    content: &Content,
    (seq, ts, mono): (u64, u64, u64),
    head: &[u8; 32],
) -> io::Result<()> {
    let prev = hex(head);
    let written = match content {
        Content::Entry(entry, count) => serde_json::to_writer(
            out,
            &EntryLine {
                seq,
                ts,
                mono,
                dir: entry.direction.as_str(),
                to: entry.to.as_ref().map(|to| to.as_str()),
                from: entry.from.as_str(),
                key: entry.key.to_string(),
                rid: hex(&entry.rid.0),
                action: &entry.action,
                args_sha256: hex(&entry.args),
                rule: &entry.rule,
                level: entry.level,
                decision: entry.decision.as_str(),
                result: &entry.result,
                ms: entry
                    .ended
                    .map(|ended| millis(ended.duration_since(entry.begun))),
                count: (*count > 1).then_some(*count),
                prev,
            },
        ),
        Content::Head(identity) => serde_json::to_writer(
            out,
            &HeadLine {
                seq,
                ts,
                mono,
                signer: identity.public(),
                signature: hex(&identity.sign(Label::Audit, &[&seq.to_be_bytes(), head])),
                prev,
            },
        ),
    };
    written.map_err(io::Error::other)
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
