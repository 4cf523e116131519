//! Which commands run, on the disk: what a killed node left behind is ended by the next one.
//!
//! One file of fixed places, each written in place: what a killed process wrote outlives it without a
//! sync, and a machine that went down left no command. A number that is used again is told by the time its
//! process started.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    sync::{Arc, Mutex, PoisonError},
};

use super::tree::{Mark, Tree};
use crate::{state::StateDir, wire::limits::TOOLS_AT_ONCE};

/// The file within the state folder.
const FILE: &str = "run/commands";
/// Bytes of a place; the first holds the name of this start of the system.
const PLACE: usize = 64;
/// The longest file that is read.
const MOST: usize = PLACE * (TOOLS_AT_ONCE + 1);

/// The commands of a node; cheap to clone. The default keeps nothing.
#[derive(Debug, Clone, Default)]
pub struct Register(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    file: File,
    /// Places nobody has.
    free: Mutex<Vec<usize>>,
}

/// A command that is written down until this is dropped.
#[derive(Debug)]
pub(super) struct Noted {
    inner: Arc<Inner>,
    place: usize,
}

impl Register {
    /// Ends what an earlier node with this state left running, and begins anew. A file that cannot be
    /// used is said in the log: it is no reason not to start. Blocks.
    #[must_use]
    pub fn open(state: &StateDir) -> Self {
        let Some(boot) = super::tree::boot() else {
            // Nothing here tells processes apart.
            return Self::default();
        };
        let path = state.path(FILE);
        match begin(&path, &boot) {
            Ok(inner) => Self(Some(Arc::new(inner))),
            Err(error) => {
                tracing::warn!(
                    %error,
                    file = FILE,
                    "running commands cannot be written down: if this node is killed, they stay"
                );
                Self::default()
            }
        }
    }

    /// Writes a command down.
    pub(super) fn note(&self, tree: &Tree) -> Option<Noted> {
        let inner = self.0.clone()?;
        let mark = tree.mark()?;
        let place = inner.free().pop()?;
        let noted = Noted { inner, place };
        noted.write(&mark.to_string());
        Some(noted)
    }
}

impl Inner {
    fn free(&self) -> std::sync::MutexGuard<'_, Vec<usize>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Noted {
    fn write(&self, text: &str) {
        // Only a killed node would have needed it.
        let _ = self
            .inner
            .file
            .write_all_at(&place_of(text), (self.place * PLACE) as u64);
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.write("");
        self.inner.free().push(self.place);
    }
}

/// A text, filled up to a place.
fn place_of(text: &str) -> Vec<u8> {
    format!("{text:<width$}\n", width = PLACE - 1).into_bytes()
}

fn begin(path: &std::path::Path, boot: &str) -> io::Result<Inner> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    let mut old = vec![0; MOST];
    let length = read(&file, &mut old)?;
    end_all(&String::from_utf8_lossy(&old[..length]), boot);
    let mut empty = place_of(boot);
    for _ in 0..TOOLS_AT_ONCE {
        empty.extend(place_of(""));
    }
    file.set_len(0)?;
    file.write_all_at(&empty, 0)?;
    Ok(Inner {
        file,
        free: Mutex::new((1..=TOOLS_AT_ONCE).collect()),
    })
}

fn read(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    loop {
        match file.read_at(&mut buffer[length..], length as u64)? {
            0 => return Ok(length),
            more => length += more,
        }
    }
}

/// Kills the commands of `text` that still run, if they are of this start of the system.
fn end_all(text: &str, boot: &str) {
    let mut lines = text.lines().map(str::trim);
    if lines.next() != Some(boot) {
        return;
    }
    for mark in lines.filter_map(|line| line.parse::<Mark>().ok()) {
        let ended = mark.kill();
        if ended > 0 {
            tracing::warn!(
                pid = mark.pid,
                processes = ended,
                "the node was killed while this command ran: it was ended now, with what it had started"
            );
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::{
        os::unix::process::CommandExt as _,
        process::{Child, Command},
    };

    use super::*;

    /// A shell with a child, in a group of its own.
    fn command() -> Child {
        Command::new("sh")
            .args(["-c", "sleep 1000; :"])
            .process_group(0)
            .spawn()
            .unwrap()
    }

    fn runs(child: &mut Child) -> bool {
        child.try_wait().unwrap().is_none()
    }

    /// What a node writes that is killed while `child` runs.
    fn left(state: &StateDir, child: &Child) {
        let running = Register::open(state);
        let tree = tree(child);
        let noted = running.note(&tree).unwrap();
        // Killed: nothing is tidied up.
        std::mem::forget((tree, noted));
    }

    fn tree(child: &Child) -> Tree {
        let pid = i32::try_from(child.id()).unwrap();
        Tree::led_by(rustix::process::Pid::from_raw(pid))
    }

    #[test]
    fn what_a_killed_node_left_is_ended_by_the_next() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(temp.path()).unwrap();
        let mut child = command();
        left(&state, &child);
        assert!(runs(&mut child));
        let _next = Register::open(&state);
        let ended = child.wait().unwrap();
        assert!(!ended.success());
        // And is forgotten.
        let text = std::fs::read_to_string(state.path(FILE)).unwrap();
        assert_eq!(text.split_whitespace().count(), 1, "{text}");
    }

    #[test]
    fn neither_another_process_nor_one_of_another_day_is_taken_for_it() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(temp.path()).unwrap();
        let mut child = command();
        left(&state, &child);
        let path = state.path(FILE);
        let good = std::fs::read_to_string(&path).unwrap();
        let start = good.split_whitespace().nth(2).unwrap();
        let boot = good.split_whitespace().next().unwrap();
        for bad in [
            good.replacen(&format!(" {start} "), " 1 ", 1),
            good.replacen(boot, "another", 1),
            format!("{boot}\n{} {start}\n-1 -1 -1\n0 0 0\nx\n", child.id()),
        ] {
            assert_ne!(bad, good);
            std::fs::write(&path, bad).unwrap();
            let _next = Register::open(&state);
            assert!(runs(&mut child));
        }
        std::fs::write(&path, good).unwrap();
        let _next = Register::open(&state);
        child.wait().unwrap();
    }

    #[test]
    fn one_that_ended_is_not_written_down_any_more() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(temp.path()).unwrap();
        let mut child = command();
        let running = Register::open(&state);
        let written = || std::fs::read_to_string(state.path(FILE)).unwrap();
        let tree = tree(&child);
        let places: Vec<_> = (0..TOOLS_AT_ONCE + 1)
            .map(|_| running.note(&tree))
            .collect();
        assert!(places[TOOLS_AT_ONCE - 1].is_some() && places[TOOLS_AT_ONCE].is_none());
        assert_eq!(written().split_whitespace().count(), 1 + 3 * TOOLS_AT_ONCE);
        drop(places);
        assert_eq!(written().split_whitespace().count(), 1);
        assert!(running.note(&tree).is_some());
        drop(tree);
        child.wait().unwrap();
    }
}
