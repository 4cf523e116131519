//! What a command may use of the machine, and where its files end (protocol 8.3).
//!
//! Limits of a process are set from outside, right after its start. Where a command is to be confined to
//! `roots`, the node starts itself anew as a small helper, which takes everything upon itself that must be
//! in place before the first instruction of the command, and then becomes the command:
//!
//! ```text
//! node --spawn--> helper: dies with the node, limits, Landlock --exec--> the command
//!        <-- says what went wrong, or nothing --'
//! ```
//! The helper is the one way to do this without `unsafe` code between fork and exec. It is used for
//! confined commands only, since it costs a second start of a program.

use std::{
    convert::Infallible,
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
    /// Folders it and all it starts are confined to, by the helper; none: the account's rights.
    pub confined: Option<Confined>,
}

/// Where a confined command may read and write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confined {
    /// The folders.
    pub roots: Vec<PathBuf>,
    /// The helper.
    pub helper: PathBuf,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            memory: None,
            processes: PROCESSES,
            confined: None,
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
    roots: Vec<PathBuf>,
    limits: Limits,
}

/// What the helper says when the command does not begin.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fault {
    /// It could not be confined.
    Confine(String),
    /// It is confined and cannot be started.
    Start(String),
}

/// The helper's arguments before the program and its words.
///
/// # Errors
/// A folder whose name is no text.
pub(super) fn helper_args(confined: &Confined, limits: Limits) -> std::io::Result<[OsString; 2]> {
    let task = Task {
        node: std::process::id().cast_signed(),
        roots: confined.roots.clone(),
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
        Err(_) => cannot(),
    })
}

/// The refusal of a node that cannot do what its configuration asks for.
pub(super) fn cannot() -> Failure {
    Failure::not_started(
        Code::PolicyDenied,
        format!("the node is to confine commands (`{CONFINE}`) and cannot, so it runs none"),
    )
}

/// The helper: `confined TASK PROGRAM NAME ARGS…`, with the command's environment and folder, and as
/// standard input a socket that the node reads. Comes back only when the command did not begin.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    // The copy is closed by the start of the command; the node reads the end of it then.
    let Ok(line) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else {
        return ExitCode::FAILURE;
    };
    let Err(fault) = begin(args);
    // A node that has gone needs no answer.
    let _ = serde_json::to_writer(&mut Line(line), &fault);
    ExitCode::FAILURE
}

/// Where the helper writes.
struct Line(OwnedFd);

impl std::io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(rustix::io::write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn begin(mut args: impl Iterator<Item = OsString>) -> Result<Infallible, Fault> {
    let confine =
        |what: &str, why: &dyn std::fmt::Display| Fault::Confine(format!("{what}: {why}"));
    let no_input = File::open("/dev/null").and_then(|null| Ok(rustix::stdio::dup2_stdin(null)?));
    no_input.map_err(|error| confine("standard input", &error))?;
    let task = args.next().unwrap_or_default();
    let task: Task =
        serde_json::from_slice(task.as_encoded_bytes()).map_err(|error| confine("task", &error))?;
    let (Some(program), Some(name)) = (args.next(), args.next()) else {
        return Err(Fault::Confine("no program".to_owned()));
    };
    die_with(task.node).map_err(|why| Fault::Confine(why.to_owned()))?;
    linux::confine(&task.roots).map_err(Fault::Confine)?;
    let mut command = Command::new(program);
    command.arg0(name).args(args);
    // Last: what bounds the command need not be enough for the helper.
    limit(None, task.limits);
    let error = command.exec();
    Err(Fault::Start(error.kind().to_string()))
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
        limit(leader, limits);
    }
}

/// Sets the limits of a process; none: this one. A hard limit that is lower stays.
#[cfg(target_os = "linux")]
fn limit(process: Option<Pid>, limits: Limits) {
    use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

    let most = |resource, wanted: u64| {
        let hard = getrlimit(resource).maximum;
        let value = Some(hard.map_or(wanted, |hard| hard.min(wanted)));
        let limits = Rlimit {
            current: value,
            maximum: value,
        };
        let _ = prlimit(process, resource, limits);
    };
    most(Resource::Core, 0);
    most(Resource::Cpu, limits.cpu);
    most(Resource::Nproc, limits.processes);
    if let Some(bytes) = limits.memory {
        most(Resource::As, bytes);
    }
}

/// The system has no way to limit another process.
#[cfg(not(target_os = "linux"))]
fn limit(_process: Option<Pid>, _limits: Limits) {}

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
