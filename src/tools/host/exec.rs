//! Runs one command: a process group of its own, its output as it comes, its time, its end.
//!
//! ```text
//! running -- time up, or nobody follows --> asked to end (SIGTERM) -- 5 s --> killed (SIGKILL)
//!    '----- the command itself ends -----> its output is read to the end, at most half a second
//! ```
//! What we end, we end with all it started ([`Tree`]); when the task is dropped it is killed at once. A
//! command that ends by itself leaves nothing behind that did not leave its group.

use std::{io, process::Stdio, time::Duration};

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    process::{Child, Command},
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    bounds::{self, GO, HELPER_TIMEOUT, Limits},
    command::Ready,
    running::{Noted, Register},
    tree::Tree,
};
use crate::{
    tools::{Event, Finished, Stream},
    wire::{
        code::{Code, Failure},
        limits::{EXEC_KEEP_ALIVE, EXEC_KILL_AFTER, EXEC_LINGER},
    },
};

/// The most the helper says.
const SAID_BYTES: u64 = 4096;
/// Read from a pipe at a time: one frame.
const PIECE_BYTES: usize = 16 * 1024;

/// A command that was started.
#[derive(Debug)]
pub struct Started {
    /// None only when the thread that was to end it died, and killed it. Before `child`, which is killed when it
    /// is dropped: what it started is found through it.
    tree: Option<Tree>,
    child: Child,
    /// Forgotten last.
    _noted: Option<Noted>,
    /// From the helper, if there is one.
    line: Option<UnixStream>,
    begun: Instant,
    limit: Duration,
}

/// Starts a command, which is among those `running` until it has ended. One with a helper begins only when it
/// is followed.
///
/// # Errors
/// As the system says; nothing runs then.
pub fn start(ready: &Ready, running: &Register) -> io::Result<Started> {
    let limits = Limits::of(&ready.bounds, ready.limit);
    let (mut command, input, line) = match &ready.bounds.helper {
        Some(helper) => {
            let (ours, theirs) = bounds::line()?;
            let mut command = Command::new(&helper.program);
            command
                .args(bounds::helper_args(helper, limits)?)
                .arg(&ready.program)
                .args(&ready.argv);
            (command, theirs.into(), Some(UnixStream::from_std(ours)?))
        }
        None => {
            let mut command = Command::new(&ready.program);
            if let Some((name, args)) = ready.argv.split_first() {
                command.arg0(name).args(args);
            }
            (command, Stdio::null(), None)
        }
    };
    let child = command
        .env_clear()
        .envs(ready.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&ready.workdir)
        .process_group(0)
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let tree = Tree::of(&child);
    if line.is_none() {
        bounds::limit_group(tree.leader(), limits);
    }
    Ok(Started {
        child,
        _noted: running.note(&tree),
        tree: Some(tree),
        line,
        begun: Instant::now(),
        limit: ready.limit,
    })
}

/// One output of the command.
struct Pipe<R> {
    source: Option<R>,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Pipe<R> {
    fn new(source: Option<R>) -> Self {
        Self {
            source,
            buffer: BytesMut::new(),
        }
    }

    const fn open(&self) -> bool {
        self.source.is_some()
    }

    /// The next piece; an empty one at the end. Safe to drop and call again.
    async fn next(&mut self) -> Bytes {
        let Some(source) = &mut self.source else {
            return Bytes::new();
        };
        self.buffer.reserve(PIECE_BYTES);
        // A pipe that fails has ended.
        if source.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
            self.source = None;
        }
        self.buffer.split().freeze()
    }
}

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// It runs.
    No,
    /// It was asked to end.
    Asked,
    /// It was killed.
    Killed,
}

/// The most that is told of the output, and what is left of it.
struct Allowance {
    left: usize,
    truncated: bool,
}

impl Allowance {
    fn take(&mut self, mut data: Bytes) -> Bytes {
        if data.len() > self.left {
            self.truncated = true;
            data.truncate(self.left);
        }
        self.left -= data.len();
        data
    }
}

impl Started {
    /// Follows the command to its end and tells what it does; `most` bytes of output at most. Ends
    /// the command when `stop` says so.
    pub async fn follow(
        mut self,
        events: &mpsc::Sender<Event>,
        stop: &CancellationToken,
        most: usize,
    ) -> Result<Finished, Failure> {
        if let Some(line) = self.line.take() {
            self.begun = Instant::now();
            begun(line, stop).await?;
        }
        let mut out = Pipe::new(self.child.stdout.take());
        let mut err = Pipe::new(self.child.stderr.take());
        let mut allowance = Allowance {
            left: most,
            truncated: false,
        };
        let deadline = self.begun + self.limit;
        let mut ending = Ending::No;
        let mut timed_out = false;
        // When the next step of the end is due.
        let mut step = deadline;
        let mut status = None;
        let mut pending: Option<Event> = None;
        // When there was nothing to pass on.
        let mut since = self.begun;
        let mut alive = Instant::now() + EXEC_KEEP_ALIVE;
        loop {
            let over = status.is_some() && !out.open() && !err.open() && pending.is_none();
            if over {
                break;
            }
            let idle = pending.is_none();
            if idle {
                since = Instant::now();
            }
            tokio::select! {
                biased;
                () = stop.cancelled(), if ending == Ending::No => {
                    self.end(Tree::ask).await;
                    (ending, step) = (Ending::Asked, Instant::now() + EXEC_KILL_AFTER);
                }
                () = sleep_until(step), if idle || status.is_none() => {
                    if status.is_some() {
                        // Something it left behind holds its output open.
                        break;
                    }
                    match ending {
                        Ending::No => {
                            timed_out = true;
                            self.end(Tree::ask).await;
                            (ending, step) = (Ending::Asked, Instant::now() + EXEC_KILL_AFTER);
                        }
                        Ending::Asked => {
                            self.end(Tree::kill).await;
                            (ending, step) = (Ending::Killed, Instant::now() + EXEC_KILL_AFTER);
                        }
                        // What the system does not let go of is left to it.
                        Ending::Killed => break,
                    }
                }
                ended = self.child.wait(), if status.is_none() => {
                    status = Some(ended.map_err(|error| lost(&error))?);
                    step = Instant::now() + EXEC_LINGER;
                }
                permit = events.reserve(), if !idle => {
                    // Nobody reads any more: `stop` follows.
                    if let (Ok(permit), Some(event)) = (permit, pending.take()) {
                        permit.send(event);
                        let now = Instant::now();
                        alive = now + EXEC_KEEP_ALIVE;
                        if status.is_some() {
                            // Time in which the follower was not ready does not count.
                            step += now - since;
                        }
                    }
                }
                data = out.next(), if idle && out.open() => pending = told(Stream::Out, data, &mut allowance),
                data = err.next(), if idle && err.open() => pending = told(Stream::Err, data, &mut allowance),
                () = sleep_until(alive), if idle => pending = Some(Event::Alive),
            }
        }
        match ending {
            Ending::No => {
                if let Some(tree) = self.tree.take() {
                    tree.leave();
                }
            }
            // What it started may have heard and not listened.
            Ending::Asked | Ending::Killed => self.end(Tree::kill).await,
        }
        let how = How {
            status,
            timed_out,
            truncated: allowance.truncated,
            told: most - allowance.left,
            ran: self.begun.elapsed(),
        };
        Ok(how.finished())
    }

    /// Looks at all processes of the system, in a thread that may block.
    async fn end(&mut self, how: fn(&mut Tree)) {
        let Some(mut tree) = self.tree.take() else {
            return;
        };
        let ended = tokio::task::spawn_blocking(move || {
            how(&mut tree);
            tree
        });
        self.tree = ended.await.ok();
    }
}

/// Lets the helper become the command, and waits until it has.
///
/// # Errors
/// What it says, when it has not.
async fn begun(mut line: UnixStream, stop: &CancellationToken) -> Result<(), Failure> {
    let mut said = Vec::new();
    // One that has ended said why before.
    let _ = line.write_all(&GO).await;
    let mut line = line.take(SAID_BYTES);
    let heard = tokio::select! {
        biased;
        // Whoever follows it ends it.
        () = stop.cancelled() => return Ok(()),
        heard = timeout(HELPER_TIMEOUT, line.read_to_end(&mut said)) => heard,
    };
    match heard {
        Ok(Ok(_)) => bounds::fault(&said).map_or(Ok(()), Err),
        // It ended before it heard the word.
        Ok(Err(_)) => Err(bounds::fault(&said).unwrap_or_else(bounds::cannot_bind)),
        Err(_) => Err(Failure::started(
            Code::OutcomeUnknown,
            "the command did not begin in time and was killed",
        )),
    }
}

fn told(stream: Stream, data: Bytes, allowance: &mut Allowance) -> Option<Event> {
    let data = allowance.take(data);
    (!data.is_empty()).then_some(Event::Output(stream, data))
}

/// How a command ended.
struct How {
    status: Option<std::process::ExitStatus>,
    timed_out: bool,
    truncated: bool,
    told: usize,
    ran: Duration,
}

impl How {
    fn finished(self) -> Finished {
        use std::os::unix::process::ExitStatusExt as _;

        let signal = self.status.and_then(|status| status.signal());
        let result: Value = json!({
            "exitCode": self.status.and_then(|status| status.code()),
            "signal": signal.map(signal_name),
            "timedOut": self.timed_out,
            "truncated": self.truncated,
            "durationMs": u64::try_from(self.ran.as_millis()).unwrap_or(u64::MAX),
        });
        let failure = if self.timed_out {
            Some(Failure {
                retryable: false,
                ..Failure::started(
                    Code::Timeout,
                    "the command ran out of time and was ended with all it had started",
                )
            })
        } else if self.status.is_none() {
            Some(Failure::started(
                Code::Cancelled,
                "the command was ended, and the system still holds it",
            ))
        } else {
            None
        };
        Finished {
            result,
            failure,
            told: self.told as u64,
        }
    }
}

fn signal_name(number: i32) -> String {
    let name = match number {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        _ => return format!("signal {number}"),
    };
    name.to_owned()
}

fn lost(error: &io::Error) -> Failure {
    tracing::warn!(%error, "a command cannot be waited for");
    Failure::started(Code::OutcomeUnknown, "the node lost sight of the command")
}

#[cfg(test)]
mod tests;
