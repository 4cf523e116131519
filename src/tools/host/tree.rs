//! A command and all it started, found and ended as a whole, also what left its group.
//!
//! ```text
//! look -- stop what runs --> look again, until nothing runs --> signal all of it
//! ```
//! Whatever is stopped cannot start anything while the others are found, so nothing slips through
//! between a look and a signal. What left the group and whose parent has ended, as a daemon does, is not
//! found: nothing leads to it any more. Where there is no `/proc` the group is all that is ended.

use std::{fmt, str::FromStr};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Child;

#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "linux")]
pub(super) use self::linux::boot;

/// Names this start of the system, within which a [`Mark`] holds; none where there is no `/proc`.
#[cfg(not(target_os = "linux"))]
pub(super) const fn boot() -> Option<String> {
    None
}

/// A command as it is written down: its number alone could be another process's by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// Its number, and its group's.
    pub(super) pid: i32,
    /// When it started, in ticks since the system did.
    start: u64,
    /// The session it is in, as long as it leads a group.
    session: i32,
}

impl Mark {
    /// Kills what is left of it and tells how many processes that were. Blocks as [`Tree::kill`].
    pub(super) fn kill(self) -> usize {
        #[cfg(target_os = "linux")]
        return linux::Found::of(self).kill();
        #[cfg(not(target_os = "linux"))]
        0
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.pid, self.start, self.session)
    }
}

impl FromStr for Mark {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split(' ');
        let mut next = || words.next().ok_or(());
        let (pid, start, session) = (next()?, next()?, next()?);
        let mark = Self {
            pid: pid.parse().map_err(drop)?,
            start: start.parse().map_err(drop)?,
            session: session.parse().map_err(drop)?,
        };
        // 0 and 1 are no command of anybody.
        (mark.pid > 1 && words.next().is_none())
            .then_some(mark)
            .ok_or(())
    }
}

/// What belongs to one command. Dropped before its command has ended by itself, it is killed.
#[derive(Debug)]
pub(super) struct Tree {
    /// The group's number, which is that of the command itself.
    group: Option<Pid>,
    #[cfg(target_os = "linux")]
    found: Option<linux::Found>,
    /// The command has ended by itself.
    over: bool,
}

impl Tree {
    /// That of a command that was just started in a group of its own.
    pub(super) fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self::led_by(id.and_then(Pid::from_raw))
    }

    /// That of a process which leads a group.
    pub(super) fn led_by(group: Option<Pid>) -> Self {
        Self {
            group,
            #[cfg(target_os = "linux")]
            found: group.and_then(linux::Found::new),
            over: false,
        }
    }

    /// How it is written down; none where nothing can be known of it.
    pub(super) fn mark(&self) -> Option<Mark> {
        #[cfg(target_os = "linux")]
        return self.found.as_ref().map(linux::Found::mark);
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// The command itself.
    pub(super) const fn leader(&self) -> Option<Pid> {
        self.group
    }

    /// Asks all of it to end. Blocks for some milliseconds.
    pub(super) fn ask(&mut self) {
        #[cfg(target_os = "linux")]
        if self.found.as_mut().is_some_and(linux::Found::ask) {
            return;
        }
        self.signal_group(Signal::TERM);
    }

    /// Kills all of it. Blocks for some milliseconds, where the system holds some of it for less than a
    /// second.
    pub(super) fn kill(&mut self) {
        #[cfg(target_os = "linux")]
        if let Some(found) = &mut self.found {
            found.kill();
        }
        self.signal_group(Signal::KILL);
    }

    /// The command has ended by itself: what is left of its group goes, and what left the group stays.
    pub(super) fn leave(mut self) {
        self.over = true;
    }

    fn signal_group(&self, signal: Signal) {
        if let Some(group) = self.group {
            // It may be gone.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if self.over {
            self.signal_group(Signal::KILL);
        } else {
            self.kill();
        }
    }
}
