//! The processes of a command, by what `/proc` says of their parents and groups.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    thread::sleep,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use super::Mark;

/// Looks until all of it stands still: what the system holds does not stop.
const STOPS: usize = 30;
/// Looks until nothing is left.
const KILLS: usize = 100;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// A process: numbers are used again, a number and a start time are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Process {
    pid: i32,
    /// In ticks since the system started.
    start: u64,
}

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    process: Process,
    parent: i32,
    group: i32,
    session: i32,
    state: u8,
    threads: u64,
}

impl Seen {
    fn at(pid: i32) -> Option<Self> {
        Self::read(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Of `PID (name) state parent group session …`; a name may hold anything.
    fn read(pid: i32, stat: &[u8]) -> Option<Self> {
        let end = stat.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |at: usize| fields.get(at).copied();
        Some(Self {
            process: Process {
                pid,
                start: field(19)?.parse().ok()?,
            },
            parent: field(1)?.parse().ok()?,
            group: field(2)?.parse().ok()?,
            session: field(3)?.parse().ok()?,
            state: *field(0)?.as_bytes().first()?,
            threads: field(17)?.parse().ok()?,
        })
    }

    /// Whether anything of it is left to run: the first thread may have ended before others.
    const fn lives(&self) -> bool {
        !matches!(self.state, b'Z' | b'X') || self.threads > 1
    }

    /// Whether it could start something.
    const fn runs(&self) -> bool {
        self.lives() && !matches!(self.state, b'T' | b't')
    }
}

/// What is known of a command's processes.
#[derive(Debug)]
pub(super) struct Found {
    leader: Process,
    /// Its session, and that of its whole group.
    session: i32,
    /// Those that were seen: they stay ours when their parents end.
    known: BTreeSet<Process>,
}

impl Found {
    /// Of the process `leader`, which is there or not yet waited for, and leads a group.
    pub(super) fn new(leader: Pid) -> Option<Self> {
        let seen = Seen::at(leader.as_raw_nonzero().get())?;
        Some(Self {
            leader: seen.process,
            session: seen.session,
            known: BTreeSet::new(),
        })
    }

    /// Of a command that was written down, and may have gone.
    pub(super) fn of(mark: Mark) -> Self {
        Self {
            leader: Process {
                pid: mark.pid,
                start: mark.start,
            },
            session: mark.session,
            known: BTreeSet::new(),
        }
    }

    /// How it is written down.
    pub(super) const fn mark(&self) -> Mark {
        Mark {
            pid: self.leader.pid,
            start: self.leader.start,
            session: self.session,
        }
    }

    /// Asks what is there to end; false when nothing can be seen.
    pub(super) fn ask(&mut self) -> bool {
        self.stop();
        for signal in [Signal::TERM, Signal::CONT] {
            for process in &self.known {
                send(*process, signal);
            }
        }
        !self.known.is_empty()
    }

    /// Kills what is there until nothing is left, and tells how many processes are known.
    pub(super) fn kill(&mut self) -> usize {
        self.stop();
        for _ in 0..KILLS {
            let mut left = self.look();
            left.retain(Seen::lives);
            if left.is_empty() {
                return self.known.len();
            }
            for seen in &left {
                send(seen.process, Signal::KILL);
            }
            sleep(PAUSE);
        }
        tracing::warn!(
            pid = self.leader.pid,
            "the system still holds what a command started and what was killed"
        );
        self.known.len()
    }

    /// Stops what is there until nothing runs.
    fn stop(&mut self) {
        for _ in 0..STOPS {
            let mut running = self.look();
            running.retain(Seen::runs);
            if running.is_empty() {
                return;
            }
            for seen in &running {
                send(seen.process, Signal::STOP);
            }
            sleep(PAUSE);
        }
    }

    /// What is there now.
    fn look(&mut self) -> Vec<Seen> {
        let found = members(&all(), self);
        self.known.extend(found.iter().map(|seen| seen.process));
        found
    }
}

/// Names this start of the system.
pub(in super::super) fn boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let id = id.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

/// Every process there is.
fn all() -> Vec<Seen> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Seen::at(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// The leader, its group, those known before, and what all of these started.
fn members(all: &[Seen], of: &Found) -> Vec<Seen> {
    let leader = of.leader;
    // A number that another process has now is the number of another group.
    let led = !all
        .iter()
        .any(|seen| seen.process.pid == leader.pid && seen.process != leader);
    let in_group = |seen: &Seen| {
        led && seen.group == leader.pid
            && seen.session == of.session
            && seen.process.start >= leader.start
    };
    let us = std::process::id().cast_signed();
    let mut children: HashMap<i32, Vec<&Seen>> = HashMap::new();
    let mut next: Vec<&Seen> = Vec::new();
    for seen in all.iter().filter(|seen| seen.process.pid != us) {
        children.entry(seen.parent).or_default().push(seen);
        if seen.process == leader || in_group(seen) || of.known.contains(&seen.process) {
            next.push(seen);
        }
    }
    let mut found: HashMap<i32, Seen> = HashMap::new();
    while let Some(seen) = next.pop() {
        if found.insert(seen.process.pid, *seen).is_none() {
            next.extend(children.remove(&seen.process.pid).into_iter().flatten());
        }
    }
    found.into_values().collect()
}

/// Signals exactly this process: the handle is taken before its start is looked at.
fn send(process: Process, signal: Signal) {
    let Some(pid) = Pid::from_raw(process.pid) else {
        return;
    };
    let handle = pidfd_open(pid, PidfdFlags::empty());
    if Seen::at(process.pid).is_none_or(|seen| seen.process != process) {
        return;
    }
    // It may be gone, or be another account's.
    let _ = match handle {
        Ok(handle) => pidfd_send_signal(handle, signal),
        // Before Linux 5.3, or forbidden.
        Err(_) => kill_process(pid, signal),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pid: i32, parent: i32, group: i32) -> Seen {
        Seen {
            process: Process {
                pid,
                start: u64::from(pid.unsigned_abs()) * 10,
            },
            parent,
            group,
            session: 1,
            state: b'S',
            threads: 1,
        }
    }

    fn pids(all: &[Seen], known: &[Seen]) -> Vec<i32> {
        let found = Found {
            leader: seen(100, 1, 100).process,
            session: 1,
            known: known.iter().map(|seen| seen.process).collect(),
        };
        let mut pids: Vec<i32> = members(all, &found)
            .iter()
            .map(|seen| seen.process.pid)
            .collect();
        pids.sort_unstable();
        pids
    }

    #[test]
    fn group_and_descendants_belong_to_a_command_and_nothing_else_does() {
        let all = [
            seen(1, 0, 1),
            seen(100, 1, 100),
            // Left the group, its child is in a third one.
            seen(101, 100, 101),
            seen(102, 101, 102),
            // In the group, and nobody's child.
            seen(103, 1, 100),
            seen(104, 103, 104),
            // A daemon, and a stranger.
            seen(105, 1, 105),
            seen(106, 105, 105),
        ];
        assert_eq!(pids(&all, &[]), [100, 101, 102, 103, 104]);
        // What was seen as a child stays known when its parent has gone.
        assert_eq!(pids(&all[3..], &[]), [103, 104]);
        let mut orphan = all[2];
        orphan.parent = 1;
        let later = [all[0], orphan, all[3]];
        assert_eq!(pids(&later, &[]), [0_i32; 0]);
        assert_eq!(pids(&later, &[all[2]]), [101, 102]);
    }

    #[test]
    fn a_number_that_is_used_again_is_not_taken_for_ours() {
        let mut stranger = seen(100, 1, 100);
        stranger.process.start += 1;
        let all = [stranger, seen(101, 100, 100), seen(102, 1, 102)];
        assert_eq!(pids(&all, &[]), [0_i32; 0]);
        let mut known = seen(102, 1, 102);
        known.process.start -= 1;
        assert_eq!(pids(&all, &[known]), [0_i32; 0]);
        // A group whose leader has gone: of another session, or older than ours.
        let (mut elsewhere, mut older) = (seen(101, 1, 100), seen(102, 1, 100));
        elsewhere.session = 2;
        older.process.start = 999;
        assert_eq!(pids(&[elsewhere, older, seen(103, 1, 100)], &[]), [103]);
    }

    #[test]
    fn a_line_of_proc_is_read_whatever_the_name_is() {
        let line = b"42 (a) b (c) T 7 40 3 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 123456 1 2";
        let read = Seen::read(42, line).unwrap();
        assert_eq!((read.process.start, read.parent), (123_456, 7));
        assert_eq!((read.group, read.session), (40, 3));
        assert!(read.lives() && !read.runs());
        assert_eq!(read.threads, 9);
        assert_eq!(Seen::read(42, b"42 (x) S 7"), None);
        let us = Seen::at(std::process::id().cast_signed()).unwrap();
        assert!(us.runs());
    }
}
