//! The number that grows with each start of this node (`inc`, protocol 6.1).

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{
    state::{StateDir, StateError},
    wire::limits::JSON_INTEGER_MAX,
};

const FILE: &str = "inc";

/// Takes the next incarnation and stores it. Called once at start, before anything is signed: a
/// number that was not stored could be used twice. Blocks on the disk.
///
/// # Errors
/// [`StateError`].
pub fn advance(state: &StateDir) -> Result<u64, StateError> {
    let stored = state
        .read(FILE)?
        .and_then(|bytes| String::from_utf8(bytes).ok()?.trim().parse::<u64>().ok())
        // A damaged file is as good as none: the clock is the usual source anyway.
        .unwrap_or(0);
    let unix_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64);
    let next = next(stored, unix_ms);
    state.write(FILE, format!("{next}\n").as_bytes())?;
    Ok(next)
}

/// Takes an incarnation above `seen`, which another start of this node has used, and stores it. Blocks
/// on the disk.
///
/// # Errors
/// [`StateError`].
pub fn raise(state: &StateDir, seen: u64) -> Result<u64, StateError> {
    let next = next(seen, 0);
    state.write(FILE, format!("{next}\n").as_bytes())?;
    Ok(next)
}

fn next(stored: u64, unix_ms: u64) -> u64 {
    stored.saturating_add(1).max(unix_ms).min(JSON_INTEGER_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_with_each_start_whatever_the_clock_says() {
        assert_eq!(next(10, 1000), 1000);
        assert_eq!(next(1000, 10), 1001);
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(temp.path()).unwrap();
        let first = advance(&state).unwrap();
        assert!(advance(&state).unwrap() > first);
        state.write(FILE, b"garbage").unwrap();
        assert!(advance(&state).unwrap() >= first);
    }
}
