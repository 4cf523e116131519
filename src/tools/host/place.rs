//! Where a path that a caller names really leads, and opening exactly that (protocol 8.2).
//!
//! In two steps: [`Places::locate`] finds the real path, without links, which is then judged; the
//! open that follows walks it name by name from the root and follows no link, so that whoever puts one
//! there in between gets nothing.

use std::{
    ffi::OsStr,
    fs, io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, Stat, fstat, mkdirat, openat, statat},
    io::Errno,
};

use super::denied::{BUILT_IN, Denied, made_up};
use crate::wire::code::{Code, Failure};

/// Name of the limit to folders in refusals and in the audit record.
pub const ROOTS: &str = "toolProxy.roots";
/// Names in one path, so that a walk ends.
const DEPTH: usize = 128;

/// Whose files callers may name.
#[derive(Debug, Clone)]
pub struct Places {
    /// Folders everything must lie beneath; none = all.
    pub roots: Vec<PathBuf>,
    /// Where relative paths start.
    pub home: PathBuf,
    /// What nobody opens.
    pub denied: Denied,
}

/// What a path led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its real path.
    pub real: PathBuf,
    /// Whether something is there.
    pub exists: bool,
}

/// Whether the last name of a path may be a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// It is followed, as for reading.
    Follow,
    /// It stands for itself, as for writing.
    Keep,
}

/// Why a path is not for this caller: the rule's name and the words for him.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is wrong in itself.
    Wrong(String),
    /// A limit of this node forbids it.
    Rule(&'static str),
}

impl Refusal {
    /// As a failure of a request about `path`.
    #[must_use]
    pub fn failure(&self, path: &str) -> Failure {
        match self {
            Self::Wrong(why) => {
                Failure::not_started(Code::InvalidRequest, format!("{}: {why}", shown(path)))
            }
            Self::Rule(rule) => Failure::not_started(
                Code::PolicyDenied,
                format!("{}: denied by `{rule}` of the node", shown(path)),
            ),
        }
    }
}

/// A caller's words, safe to repeat.
#[must_use]
pub fn shown(text: &str) -> String {
    let text: String = text
        .chars()
        .take(256)
        .flat_map(char::escape_debug)
        .collect();
    format!("`{text}`")
}

impl Places {
    /// Finds where `path` leads. Blocks on the disk.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn locate(&self, path: &str, last: Last) -> Result<Place, Refusal> {
        let full = self.absolute(path)?;
        if self.denied.covers(&full) {
            return Err(Refusal::Rule(BUILT_IN));
        }
        let place = resolve(&full, last).map_err(|error| {
            Refusal::Wrong(match error.kind() {
                io::ErrorKind::PermissionDenied => "the node's account may not look there".into(),
                _ => format!("it leads nowhere ({})", error.kind()),
            })
        })?;
        self.check(&place.real)?;
        Ok(place)
    }

    /// Whether a real path is within the folders and not on the list of what nobody opens.
    ///
    /// # Errors
    /// [`Refusal::Rule`].
    pub fn check(&self, real: &Path) -> Result<(), Refusal> {
        let within = |root: &PathBuf| {
            // A root may itself be reached over a link; looked up anew, since it may be made later.
            let root = fs::canonicalize(root).unwrap_or_else(|_| root.clone());
            real.starts_with(root)
        };
        if !self.roots.is_empty() && !self.roots.iter().any(within) {
            return Err(Refusal::Rule(ROOTS));
        }
        if self.denied.covers(real) {
            return Err(Refusal::Rule(BUILT_IN));
        }
        Ok(())
    }

    /// The folder commands start in when the caller names none.
    #[must_use]
    pub fn start(&self) -> &Path {
        self.roots.first().unwrap_or(&self.home)
    }

    fn absolute(&self, path: &str) -> Result<PathBuf, Refusal> {
        if let Some(why) = wrong(path) {
            return Err(Refusal::Wrong(why.to_owned()));
        }
        if path == "~" || path.starts_with("~/") {
            return Ok(self.home.join(path[1..].trim_start_matches('/')));
        }
        if path.starts_with('/') {
            return Ok(PathBuf::from(path));
        }
        match &*self.roots {
            [] => Ok(self.home.join(path)),
            [root] => Ok(root.join(path)),
            _ => Err(Refusal::Wrong(
                "this node has several folders: give the whole path".into(),
            )),
        }
    }
}

/// What makes a text no path, before anything else is looked at.
fn wrong(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        return Some("the path is empty");
    }
    if path.len() > 4096 {
        return Some("the path is too long");
    }
    if path.contains('\0') {
        return Some("the path holds a NUL character");
    }
    if path.contains('\\') {
        return Some("the path holds a backslash; write it with `/`");
    }
    if path.contains("//") {
        return Some("the path holds an empty name");
    }
    let drive = path.as_bytes();
    if drive.len() > 1 && drive[0].is_ascii_alphabetic() && drive[1] == b':' {
        return Some("drive letters have no meaning here");
    }
    for name in path.split('/') {
        let decoded = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
        if decoded == ".." || decoded.contains('/') {
            return Some("the path goes up (`..`)");
        }
        if name.to_ascii_lowercase().contains(":$data") {
            return Some("the path names a stream of a file");
        }
    }
    (path.split('/').count() > DEPTH).then_some("the path has too many names")
}

/// The real path, as far as it exists; what does not exist yet stands behind it as it is written.
fn resolve(full: &Path, last: Last) -> io::Result<Place> {
    let plain: PathBuf = full
        .components()
        .filter(|part| *part != Component::CurDir)
        .collect();
    if last == Last::Follow {
        match fs::canonicalize(&plain) {
            Ok(real) => return Ok(Place { real, exists: true }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let mut missing = Vec::new();
    let mut above = plain.as_path();
    loop {
        let (Some(parent), Some(name)) = (above.parent(), above.file_name()) else {
            // The root itself.
            return Ok(Place {
                real: plain,
                exists: true,
            });
        };
        missing.push(name.to_owned());
        match fs::canonicalize(parent) {
            Ok(mut real) => {
                real.extend(missing.iter().rev());
                let exists = missing.len() == 1 && fs::symlink_metadata(&real).is_ok();
                return Ok(Place { real, exists });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A link that leads nowhere is no folder that could be made.
                if fs::symlink_metadata(parent).is_ok() {
                    return Err(error);
                }
                above = parent;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Flags for a folder on the way: only to go on from it.
#[cfg(target_os = "linux")]
const ON_THE_WAY: OFlags = OFlags::PATH;
#[cfg(not(target_os = "linux"))]
const ON_THE_WAY: OFlags = OFlags::RDONLY;

/// Opens a folder by its real path, name by name, following no link. With `make`, missing ones are
/// made.
///
/// # Errors
/// As the system says; `ELOOP` or `ENOTDIR` for a link.
pub fn open_folder(real: &Path, make: bool) -> io::Result<OwnedFd> {
    let flags = ON_THE_WAY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut folder = rustix::fs::open(
        "/",
        ON_THE_WAY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    for part in real.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        folder = match openat(&folder, name, flags, Mode::empty()) {
            Err(Errno::NOENT) if make => {
                match mkdirat(&folder, name, Mode::RWXU | Mode::RWXG | Mode::RWXO) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                openat(&folder, name, flags, Mode::empty())?
            }
            opened => opened?,
        };
    }
    Ok(folder)
}

/// A file's folder, open, and its name in it.
///
/// # Errors
/// As [`open_folder`]; the root is no file.
pub fn open_parent(real: &Path, make: bool) -> io::Result<(OwnedFd, &OsStr)> {
    let (Some(parent), Some(name)) = (real.parent(), real.file_name()) else {
        return Err(io::ErrorKind::IsADirectory.into());
    };
    Ok((open_folder(parent, make)?, name))
}

/// What is at `name`, without following a link; none if nothing is.
///
/// # Errors
/// As the system says.
pub fn look(folder: &OwnedFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match statat(folder, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Why something that is there is not opened.
#[must_use]
pub fn not_a_file(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::RegularFile => None,
        FileType::Directory => Some("it is a folder"),
        FileType::Symlink => Some("it is a link; name the file it leads to"),
        FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => Some("it is no plain file"),
    }
}

impl Places {
    /// Opens a plain file to read it. Looks first what it is, so that no device or pipe is opened.
    ///
    /// # Errors
    /// A failure in the words for the caller, who wrote `path`.
    pub fn open_file(&self, real: &Path, path: &str) -> Result<(fs::File, Stat), Failure> {
        let failed = |error: io::Error| failed("read", path, &error);
        let (folder, name) = open_parent(real, false).map_err(failed)?;
        let Some(before) = look(&folder, name).map_err(failed)? else {
            return Err(missing(path));
        };
        self.plain(&before, path)?;
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = openat(&folder, name, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        let stat = fstat(&file).map_err(|e| failed(e.into()))?;
        self.plain(&stat, path)?;
        let system = rustix::fs::fstatfs(&file).map_err(|e| failed(e.into()))?;
        if u64::try_from(system.f_type).is_ok_and(made_up) {
            return Err(Refusal::Rule(BUILT_IN).failure(path));
        }
        Ok((file.into(), stat))
    }

    /// Whether what is there is a plain file that is not, by another name, on the list.
    ///
    /// # Errors
    /// As [`Places::open_file`].
    pub fn plain(&self, stat: &Stat, path: &str) -> Result<(), Failure> {
        if let Some(why) = not_a_file(FileType::from_raw_mode(stat.st_mode)) {
            return Err(Refusal::Wrong(why.into()).failure(path));
        }
        if stat.st_nlink > 1 && self.denied.holds(stat) {
            return Err(Refusal::Rule(BUILT_IN).failure(path));
        }
        Ok(())
    }
}

/// Nothing is there.
#[must_use]
pub fn missing(path: &str) -> Failure {
    Failure::not_started(
        Code::NotFound,
        format!("{}: no such file or folder on the node", shown(path)),
    )
}

/// What the system says to an attempt to `what` a file, before anything was changed.
#[must_use]
pub fn failed(what: &str, path: &str, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::NotFound => return missing(path),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Code::Forbidden,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::UpstreamError,
        _ => Code::InvalidRequest,
    };
    Failure {
        retryable: false,
        ..Failure::not_started(
            code,
            format!(
                "{}: the node cannot {what} it: {}",
                shown(path),
                error.kind()
            ),
        )
    }
}
