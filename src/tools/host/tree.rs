//! A command and all it started, found and ended as a whole, also what left its group.
//!
//! ```text
//! look -- stop what runs --> look again, until nothing runs --> signal all of it
//! ```
//! Whatever is stopped cannot start anything while the others are found, so nothing slips through
//! between a look and a signal. What left the group and whose parent has ended, as a daemon does, is not
//! found: nothing leads to it any more. Where there is no `/proc` the group is all that is ended.

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Child;

#[cfg(target_os = "linux")]
mod linux;

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
        let group = id.and_then(Pid::from_raw);
        Self {
            group,
            #[cfg(target_os = "linux")]
            found: group.and_then(linux::Found::new),
            over: false,
        }
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

    /// Kills all of it. Blocks for some milliseconds, 300 at most.
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
