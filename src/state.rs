//! The state folder: where it is, who holds it, and how files in it are written (protocol 2).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// End of the name of a file that is being written.
const TEMPORARY: &str = ".tmp";

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process holds it; exit code 73.
    #[error("state folder `{0}` is in use by another clawmatrix process")]
    Held(PathBuf),
    /// The system refused.
    #[error("state folder `{path}`: cannot {action}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// The state folder of one node. [`StateDir::open`] alone does not lock it: commands read it beside
/// a running node.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
}

/// Held while this process owns a state folder.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateDir {
    /// The folder at `root`, made (0700) when missing.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StateError> {
        let dir = Self { root: root.into() };
        for folder in [dir.root.clone(), dir.root.join("run")] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .map_err(|source| StateError::Io {
                    path: folder.clone(),
                    action: "create it",
                    source,
                })?;
        }
        Ok(dir)
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file in it: `pins.json`, `run/token`.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Takes the folder for this process.
    ///
    /// # Errors
    /// [`StateError::Held`] when another process has it.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let path = self.path("lock");
        let io_error = |source| StateError::Io {
            path: path.clone(),
            action: "lock it",
            source,
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error)?;
        match file.try_lock() {
            Ok(()) => {
                self.sweep();
                Ok(StateLock { _file: file })
            }
            Err(fs::TryLockError::WouldBlock) => Err(StateError::Held(self.root.clone())),
            Err(fs::TryLockError::Error(source)) => Err(io_error(source)),
        }
    }

    /// Removes what writers that were killed left behind; nobody else writes while we hold the lock.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let leftover = |n: &str| n.starts_with('.') && n.ends_with(TEMPORARY);
            if name.to_str().is_some_and(leftover) {
                // A leftover does no harm but to fill the disk.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Replaces `name` as a whole, mode 0600: a crash leaves the old or the new text, never half.
    ///
    /// # Errors
    /// [`StateError::Io`]; the old file is untouched then.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.path(name);
        write_atomic(&path, bytes).map_err(|source| StateError::Io {
            path,
            action: "write it",
            source,
        })
    }

    /// Reads `name`; none when it does not exist.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Io {
                path,
                action: "read it",
                source,
            }),
        }
    }

    /// Removes `name` if it is there.
    pub fn remove(&self, name: &str) {
        // Only run-time files are removed, and a leftover one is overwritten at the next start.
        let _ = fs::remove_file(self.path(name));
    }
}

/// Writes a file beside `path`, syncs it, renames it over `path`, syncs the folder. Mode 0600.
///
/// # Errors
/// What the system says; `path` is untouched then.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("file");
    let suffix = crate::ids::hex(&crate::ids::random_bytes::<4>());
    let temporary = folder.join(format!(".{name}.{suffix}{TEMPORARY}"));
    let result = (|| {
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    })();
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Whether anybody but the owner may read or write `path`.
///
/// # Errors
/// What the system says.
pub fn open_to_others(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o077 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_lock_is_refused_and_first_survives() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::open(temp.path()).unwrap();
        let held = dir.lock().unwrap();
        assert!(matches!(dir.lock(), Err(StateError::Held(_))));
        drop(held);
        assert!(dir.lock().is_ok());
    }

    #[test]
    fn leftovers_of_killed_writers_are_swept_by_the_next_holder() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::open(temp.path()).unwrap();
        let leftover = dir.path(".pins.json.0badcafe.tmp");
        fs::write(&leftover, b"half").unwrap();
        dir.write("pins.json", b"whole").unwrap();
        let _held = dir.lock().unwrap();
        assert!(!leftover.exists());
        assert_eq!(dir.read("pins.json").unwrap().unwrap(), b"whole");
    }

    #[test]
    fn writes_replace_whole_files_privately() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::open(temp.path()).unwrap();
        dir.write("pins.json", b"one").unwrap();
        dir.write("pins.json", b"two").unwrap();
        assert_eq!(dir.read("pins.json").unwrap().unwrap(), b"two");
        assert!(!open_to_others(&dir.path("pins.json")).unwrap());
        assert_eq!(dir.read("absent").unwrap(), None);
    }
}
