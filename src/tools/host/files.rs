//! Reading, writing, editing files and showing folders (protocol 8.2). Blocks on the disk.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::fd::OwnedFd,
    path::Path,
    sync::Mutex,
};

use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fchmod, fsync, openat, renameat, unlinkat};
use serde_json::{Value, json};

use super::place::{
    Place, Places, failed, look, missing, not_a_file, open_folder, open_parent, shown,
};
use crate::{
    ids::{hex, random_bytes},
    tools::args::{Edit, Read, invalid},
    wire::{
        code::{Code, Failure},
        limits::{TOOL_FILE_BYTES, TOOL_LIST_ENTRIES},
    },
};

/// One change at a time: of two edits of one file none may undo the other.
static CHANGES: Mutex<()> = Mutex::new(());

/// A piece of a file and what it is a piece of.
///
/// # Errors
/// `not_found`, `invalid_request`, `policy_denied`, `forbidden`; nothing was changed, as below.
pub fn read(
    places: &Places,
    real: &Path,
    ask: &Read,
    most: usize,
) -> Result<(Value, Bytes), Failure> {
    let (mut file, stat) = places.open_file(real, &ask.path)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let io = |error: io::Error| failed("read", &ask.path, &error);
    file.seek(SeekFrom::Start(ask.offset)).map_err(io)?;
    let want = ask.limit.map_or(most, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX).min(most)
    });
    let mut bytes = Vec::new();
    file.take(want as u64).read_to_end(&mut bytes).map_err(io)?;
    let truncated = ask.offset.saturating_add(bytes.len() as u64) < size;
    if truncated && bytes.len() > 4 {
        // A text is cut between characters, so that it stays one.
        let end = bytes.len() - cut_character(&bytes);
        if std::str::from_utf8(&bytes[..end]).is_ok() {
            bytes.truncate(end);
        }
    }
    let about = json!({"size": size, "offset": ask.offset, "truncated": truncated});
    Ok((about, bytes.into()))
}

/// Bytes of a character at the end that lacks some.
fn cut_character(bytes: &[u8]) -> usize {
    for back in 1..=3.min(bytes.len()) {
        let byte = bytes[bytes.len() - back];
        if byte & 0xc0 == 0x80 {
            continue;
        }
        let length = match byte {
            0xf0..=0xf7 => 4,
            0xe0..=0xef => 3,
            0xc0..=0xdf => 2,
            _ => 1,
        };
        return if length > back { back } else { 0 };
    }
    0
}

/// Puts `content` in the place of a file, all of it or nothing.
///
/// # Errors
/// As [`read`].
pub fn write(places: &Places, place: &Place, path: &str, content: &[u8]) -> Result<Value, Failure> {
    let _one = CHANGES.lock();
    let created = replace(places, &place.real, path, content)?;
    Ok(json!({"bytes": content.len(), "created": created}))
}

/// Replaces the old text by the new one, in a file that has it in one place only, or everywhere.
///
/// # Errors
/// As [`read`]; `invalid_request` when the old text is not there, or more than once.
pub fn edit(places: &Places, place: &Place, ask: &Edit, body: &[u8]) -> Result<Value, Failure> {
    let (old, new) = body
        .split_at_checked(ask.old_bytes)
        .ok_or_else(|| invalid("`oldBytes` does not fit the body"))?;
    if old.is_empty() {
        return Err(invalid("the old text is empty: write the file instead"));
    }
    if old == new {
        return Err(invalid("old and new text are the same"));
    }
    let _one = CHANGES.lock();
    let (file, stat) = places.open_file(&place.real, &ask.path)?;
    if u64::try_from(stat.st_size).unwrap_or(u64::MAX) > TOOL_FILE_BYTES as u64 {
        return Err(too_large(&ask.path));
    }
    let mut before = Vec::new();
    file.take(TOOL_FILE_BYTES as u64)
        .read_to_end(&mut before)
        .map_err(|error| failed("read", &ask.path, &error))?;
    let found: Vec<usize> = memchr::memmem::find_iter(&before, old).collect();
    match found.len() {
        0 => {
            return Err(invalid(&format!(
                "{}: the old text is not in the file; it must match exactly, spaces and line ends included",
                shown(&ask.path)
            )));
        }
        1 => {}
        _ if ask.all => {}
        count => {
            return Err(invalid(&format!(
                "{}: the old text is in the file {count} times; give more of its surroundings, or ask for all",
                shown(&ask.path)
            )));
        }
    }
    let mut after = Vec::with_capacity(before.len());
    let mut from = 0;
    for at in &found {
        after.extend_from_slice(&before[from..*at]);
        after.extend_from_slice(new);
        from = at + old.len();
    }
    after.extend_from_slice(&before[from..]);
    if after.len() > TOOL_FILE_BYTES {
        return Err(too_large(&ask.path));
    }
    replace(places, &place.real, &ask.path, &after)?;
    Ok(json!({"bytes": after.len(), "replaced": found.len()}))
}

fn too_large(path: &str) -> Failure {
    Failure::not_started(
        Code::PayloadTooLarge,
        format!(
            "{}: a file is edited up to {TOOL_FILE_BYTES} bytes",
            shown(path)
        ),
    )
}

/// Writes beside the file, then renames: whoever reads sees the old content or the new one. Whether
/// the file is new.
fn replace(places: &Places, real: &Path, path: &str, content: &[u8]) -> Result<bool, Failure> {
    let io = |error: io::Error| failed("write", path, &error);
    let (folder, name) = open_parent(real, true).map_err(io)?;
    let before = look(&folder, name).map_err(io)?;
    if let Some(stat) = &before {
        places.plain(stat, path)?;
    }
    let mode = before.as_ref().map_or(Mode::RUSR | Mode::WUSR, |stat| {
        Mode::from_raw_mode(stat.st_mode)
    });
    let temporary = format!(".clawmatrix-{}.tmp", hex(&random_bytes::<8>()));
    let written = put(&folder, &temporary, content, mode).and_then(|()| {
        renameat(&folder, &*temporary, &folder, name)?;
        Ok(())
    });
    if let Err(error) = written {
        // It may not even have been made.
        let _ = unlinkat(&folder, &*temporary, AtFlags::empty());
        return Err(io(error));
    }
    sync_folder(real);
    Ok(before.is_none())
}

fn put(folder: &OwnedFd, name: &str, content: &[u8], mode: Mode) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = File::from(file);
    file.write_all(content)?;
    fchmod(&file, mode & (Mode::RWXU | Mode::RWXG | Mode::RWXO))?;
    file.sync_all()
}

/// The new name survives a power cut.
fn sync_folder(real: &Path) {
    let parent = real.parent().unwrap_or(real);
    // Some filesystems cannot sync a folder; the file itself is on the disk.
    if let Ok(folder) = File::open(parent) {
        let _ = fsync(&folder);
    }
}

/// The entries of a folder by name, each with kind and size.
///
/// # Errors
/// As [`read`].
pub fn list(real: &Path, path: &str) -> Result<Value, Failure> {
    let io = |error: io::Error| failed("list", path, &error);
    let (above, name) = match open_parent(real, false) {
        Ok((above, name)) => (above, name.to_owned()),
        // The root has no parent.
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            (open_folder(real, false).map_err(io)?, ".".into())
        }
        Err(error) => return Err(io(error)),
    };
    let stat = look(&above, &name)
        .map_err(io)?
        .ok_or_else(|| missing(path))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        let what = not_a_file(FileType::from_raw_mode(stat.st_mode)).unwrap_or("it is a file");
        return Err(invalid(&format!("{}: {what}, not a folder", shown(path))));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = openat(&above, &*name, flags, Mode::empty()).map_err(|e| io(e.into()))?;
    let mut names = Vec::new();
    let mut truncated = false;
    for entry in Dir::read_from(&folder).map_err(|e| io(e.into()))? {
        let entry = entry.map_err(|e| io(e.into()))?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        if names.len() == TOOL_LIST_ENTRIES {
            truncated = true;
            break;
        }
        names.push(entry.file_name().to_owned());
    }
    names.sort();
    let entries: Vec<Value> = names
        .iter()
        .map(|name| {
            let shown = String::from_utf8_lossy(name.to_bytes());
            let about = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).ok();
            let kind = about
                .as_ref()
                .map(|stat| FileType::from_raw_mode(stat.st_mode));
            json!({
                "name": shown,
                "type": match kind {
                    Some(FileType::RegularFile) => "file",
                    Some(FileType::Directory) => "folder",
                    Some(FileType::Symlink) => "link",
                    _ => "other",
                },
                "size": about.as_ref().map(|stat| stat.st_size),
                "modified": about.as_ref().map(|stat| stat.st_mtime),
            })
        })
        .collect();
    Ok(json!({"entries": entries, "truncated": truncated}))
}

#[cfg(test)]
mod tests;
