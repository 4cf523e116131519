//! What a command may use of the machine, and where its files end (protocol 8.3).
//!
//! Where something must be in place before the first instruction of a command (folders it is confined
//! to, limits the operator chose), the node starts itself anew as a small helper, which takes all of that
//! upon itself and then becomes the command:
//!
//! ```text
//! node --spawn--> helper: dies with the node, Landlock -- hears that it may --> limits --exec--> the command
//!        <-- says what went wrong, or nothing --'
//! ```
//! It waits for the word, so that it can be started while the audit record is written, and runs nothing
//! when that fails. The helper is the one way to do this without `unsafe` code between fork and exec. It
//! costs a second start of a program, so the usual limits alone are set from outside, right after the start.

use std::{
    ffi::OsString,
    fs::File,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::PathBuf,
    process::{Command, ExitCode},
    sync::LazyLock,
    time::Duration,
};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::wire::code::{Code, Failure};

/// First argument of the helper. Not a verb for people.
pub const HELPER: &str = "confined";
/// This program, even when its file was replaced by an upgrade.
pub const OURSELVES: &str = "/proc/self/exe";
/// Name of the setting, where a rule is named.
pub const CONFINE: &str = "toolProxy.confine";
/// Whether a process can be limited here as operators want it.
pub const LIMITS: bool = cfg!(target_os = "linux");
/// What tells the helper to become the command.
pub(super) const GO: [u8; 1] = *b"!";
/// Name of the setting, where a rule is named.
pub const MAX_PROCESSES: &str = "toolProxy.maxProcesses";
/// Processes of the account while a command runs, unless the configuration says otherwise.
pub const PROCESSES: u64 = 4096;
/// Asked for once: the answer takes reading the files of control groups.
static PROCESSORS: LazyLock<u64> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u64));
/// How long the helper may take until the command begins.
pub(super) const HELPER_TIMEOUT: Duration = Duration::from_secs(10);

/// What every command of this node is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Address space of each process, in bytes; none: as much as the system gives.
    pub memory: Option<u64>,
    /// Processes of the account.
    pub processes: u64,
    /// Starts commands where the operator chose any of this; none: with the usual limits, from outside.
    pub helper: Option<Helper>,
}

/// What starts a command that is bound from its first instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    /// The program.
    pub program: PathBuf,
    /// Folders a command and all it starts are confined to; none: the account's rights.
    pub roots: Option<Vec<PathBuf>>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            memory: None,
            processes: PROCESSES,
            helper: None,
        }
    }
}

/// Limits of one process.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Limits {
    /// Processor time in seconds.
    cpu: u64,
    processes: u64,
    memory: Option<u64>,
}

impl Limits {
    /// Those of a command that may run for `time`: no core file, no more processor time than all
    /// processors have in its time (which binds what left its group), the rest as configured.
    pub(super) fn of(bounds: &Bounds, time: Duration) -> Self {
        Self {
            cpu: (time.as_secs() + 1).saturating_mul(*PROCESSORS),
            processes: bounds.processes,
            memory: bounds.memory,
        }
    }
}

/// What the helper is told.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    /// Process id of the node.
    node: i32,
    roots: Option<Vec<PathBuf>>,
    limits: Limits,
}

/// What the helper says when the command does not begin.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fault {
    /// It could not be confined.
    Confine(String),
    /// It could not be bound otherwise.
    Bind(String),
    /// It is bound and cannot be started.
    Start(String),
}

/// The helper's arguments before the program and its words.
///
/// # Errors
/// A folder whose name is no text.
pub(super) fn helper_args(helper: &Helper, limits: Limits) -> std::io::Result<[OsString; 2]> {
    let task = Task {
        node: std::process::id().cast_signed(),
        roots: helper.roots.clone(),
        limits,
    };
    Ok([HELPER.into(), serde_json::to_string(&task)?.into()])
}

/// What the helper's last words mean for whoever asked; none: it has become the command.
pub(super) fn fault(said: &[u8]) -> Option<Failure> {
    if said.is_empty() {
        return None;
    }
    Some(match serde_json::from_slice(said) {
        Ok(Fault::Start(why)) => Failure::not_started(
            Code::InvalidRequest,
            format!("the command cannot be started: {why}"),
        ),
        Ok(Fault::Confine(why)) => {
            tracing::error!(why, "commands cannot be confined here, so none runs");
            cannot()
        }
        Ok(Fault::Bind(why)) => {
            tracing::error!(why, "commands cannot be bound here, so none runs");
            cannot_bind()
        }
        Err(_) => cannot_bind(),
    })
}

/// The same, where limits are what it cannot do.
pub(super) fn cannot_bind() -> Failure {
    Failure::not_started(
        Code::PolicyDenied,
        "the node is to limit commands and cannot, so it runs none",
    )
}

/// The refusal of a node that cannot do what its configuration asks for.
pub(super) fn cannot() -> Failure {
    Failure::not_started(
        Code::PolicyDenied,
        format!("the node is to confine commands (`{CONFINE}`) and cannot, so it runs none"),
    )
}

/// The helper: `confined TASK PROGRAM NAME ARGS…`, with the command's environment and folder, and as
/// standard input a socket to the node. Comes back only when the command did not begin.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    // The copy is closed by the start of the command; the node reads the end of it then.
    let Ok(line) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else {
        return ExitCode::FAILURE;
    };
    let mut line = Line(line);
    if let Some(fault) = begin(args, &mut line) {
        // A node that has gone needs no answer.
        let _ = serde_json::to_writer(line, &fault);
    }
    ExitCode::FAILURE
}

/// Where the helper hears the node and answers it.
struct Line(OwnedFd);

impl std::io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(rustix::io::write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Line {
    /// Waits until the command may begin; false when it may not.
    fn hear(&self) -> bool {
        loop {
            let mut word = [0];
            match rustix::io::read(&self.0, &mut word) {
                Ok(1) => return word == GO,
                Ok(_) => return false,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

/// Becomes the command; none when it may not.
fn begin(mut args: impl Iterator<Item = OsString>, line: &mut Line) -> Option<Fault> {
    // The word comes last: whoever gives it counts on all the rest.
    let ready = ready(&mut args).map(|ready| line.hear().then_some(ready));
    let (task, mut command) = match ready {
        Ok(Some(ready)) => ready,
        Ok(None) => return None,
        Err(fault) => return Some(fault),
    };
    // Last: what bounds the command need not be enough for the helper.
    if let Err(error) = limit(None, task.limits) {
        return Some(Fault::Bind(format!("limits: {error}")));
    }
    let error = command.exec();
    Some(Fault::Start(error.kind().to_string()))
}

/// Does what the helper must do before it becomes the command, but for the limits.
fn ready(args: &mut impl Iterator<Item = OsString>) -> Result<(Task, Command), Fault> {
    let bind = |what: &str, why: &dyn std::fmt::Display| Fault::Bind(format!("{what}: {why}"));
    let no_input = File::open("/dev/null").and_then(|null| Ok(rustix::stdio::dup2_stdin(null)?));
    no_input.map_err(|error| bind("standard input", &error))?;
    let task = args.next().unwrap_or_default();
    let task: Task =
        serde_json::from_slice(task.as_encoded_bytes()).map_err(|error| bind("task", &error))?;
    let (Some(program), Some(name)) = (args.next(), args.next()) else {
        return Err(Fault::Bind("no program".to_owned()));
    };
    die_with(task.node).map_err(|why| Fault::Bind(why.to_owned()))?;
    if let Some(roots) = &task.roots {
        linux::confine(roots).map_err(Fault::Confine)?;
    }
    let mut command = Command::new(program);
    command.arg0(name).args(args);
    Ok((task, command))
}

/// Whether the system counts the processes of this account: it never counts those of the system's own root,
/// whatever rights root has given up.
#[must_use]
pub fn counts_processes() -> bool {
    let root = rustix::process::geteuid().is_root();
    // The root of a container with accounts of its own is another account to the system.
    let mapped = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut first = mapped.split_ascii_whitespace();
    !(root && (first.next(), first.next()) == (Some("0"), Some("0")))
}

/// Whether commands can be confined here; the error says why not. Makes a set of rules and throws it
/// away.
///
/// # Errors
/// What is missing.
pub fn supported() -> Result<(), String> {
    linux::supported()
}

/// A socket whose other end is the helper's standard input.
pub(super) fn line() -> std::io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((ours, theirs.into()))
}

/// The kernel kills this process when the thread that started it ends: the node's only one.
#[cfg(target_os = "linux")]
fn die_with(node: i32) -> Result<(), &'static str> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};

    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|_| "the death of the node cannot be followed")?;
    // It may have died before.
    let there = getppid().is_some_and(|parent| parent.as_raw_nonzero().get() == node);
    there.then_some(()).ok_or("the node has gone")
}

#[cfg(not(target_os = "linux"))]
const fn die_with(_node: i32) -> Result<(), &'static str> {
    Ok(())
}

/// Sets the limits of a command from outside. Best effort: one that has ended needs none.
pub(super) fn limit_group(leader: Option<Pid>, limits: Limits) {
    if leader.is_some() {
        let _ = limit(leader, limits);
    }
}

/// Sets the limits of a process; none: this one. A hard limit that is lower stays.
#[cfg(target_os = "linux")]
fn limit(process: Option<Pid>, limits: Limits) -> rustix::io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

    let most = |resource, wanted: u64| {
        let hard = getrlimit(resource).maximum;
        let value = Some(hard.map_or(wanted, |hard| hard.min(wanted)));
        let limits = Rlimit {
            current: value,
            maximum: value,
        };
        prlimit(process, resource, limits).map(drop)
    };
    most(Resource::Core, 0)?;
    most(Resource::Cpu, limits.cpu)?;
    most(Resource::Nproc, limits.processes)?;
    limits
        .memory
        .map_or(Ok(()), |bytes| most(Resource::As, bytes))
}

/// The system has no way to limit another process.
#[cfg(not(target_os = "linux"))]
const fn limit(_process: Option<Pid>, _limits: Limits) -> rustix::io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
mod linux {
    const ABSENT: &str = "only Linux has it";

    pub(super) fn confine(_roots: &[std::path::PathBuf]) -> Result<(), String> {
        Err(ABSENT.to_owned())
    }

    pub(super) fn supported() -> Result<(), String> {
        Err(ABSENT.to_owned())
    }
}

#[cfg(target_os = "linux")]
mod linux;
