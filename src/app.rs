//! The composition root: every part of a node is made here, in order, with what it needs passed in,
//! and stopped in the reverse order.

mod agents;
mod bind;
mod error;
mod failure;
mod metrics;
mod node;
mod tools;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::timeout,
};

pub use self::error::StartError;
pub use self::failure::{Failure, last_failure, remember};
use self::node::Node;
use crate::{
    config::{Config, Source},
    shim::{
        FromSidecar, ProviderEntry, ToSidecar,
        stdio::{self, Heard, Voice},
    },
    state::StateDir,
    telemetry::{self, Dropped, Format, Redactor},
};

/// The shim sends the configuration at once; one that does not is broken.
const FIRST_LINE_TIMEOUT: Duration = Duration::from_secs(10);
/// What an ended input leaves for tidying up: less than the second the protocol with the shim allows.
const ORPHAN_GRACE: Duration = Duration::from_millis(300);
/// Threads for key stretching, signatures and file syncs. Idle ones end by themselves.
const BLOCKING_THREADS: usize = 16;

/// Who starts the node.
#[derive(Debug)]
pub enum Start {
    /// A person or a service manager, with this configuration and the file it was read from, which
    /// SIGHUP makes us read again.
    Alone(Box<Config>, Option<PathBuf>),
    /// The shim, which hands the configuration over standard input; we are its child.
    Shim,
}

/// Runs one node until it is told to stop. Returns the exit code; all there is to say has been said on
/// standard error.
#[must_use]
pub fn run(start: Start, state_dir: &Path) -> u8 {
    let redactor = Redactor::default();
    let format = match start {
        Start::Shim => Format::Json,
        Start::Alone(..) => Format::Text,
    };
    let dropped = telemetry::start(format, &redactor);
    forbid_core_dumps();
    keep_files_private();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(source) => {
            let error = StartError::System {
                action: "start the runtime",
                source,
            };
            return report(&error, None, state_dir);
        }
    };
    let logs = Logs {
        redactor,
        dropped: dropped.clone(),
    };
    let code = runtime.block_on(async {
        match start {
            Start::Shim => under_shim(state_dir, logs).await,
            Start::Alone(config, file) => alone(*config, file, state_dir, logs).await,
        }
    });
    // A thread that reads standard input or syncs a file cannot be cancelled; it ends with the process.
    runtime.shutdown_background();
    dropped.flush();
    code
}

/// What this process and the commands it runs for others make is private (protocol 8.3).
fn keep_files_private() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

/// A core file would hold keys (protocol 9).
fn forbid_core_dumps() {
    #[cfg(target_os = "linux")]
    if let Err(error) =
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
    {
        tracing::warn!(%error, "core dumps stay enabled");
    }
}

/// Says why the node did not start, to the operator and to the shim.
fn report(error: &StartError, voice: Option<&Voice>, state_dir: &Path) -> u8 {
    let code = error.exit_code();
    let message = error.report();
    // Trouble with the folder itself is no matter for a file in it.
    if !matches!(error, StartError::State(_)) {
        remember(state_dir, code, &message);
    }
    match voice {
        Some(voice) => voice.say(&FromSidecar::Failed { code, message }),
        // Before any logging format matters: plain lines, as every command prints them.
        None => telemetry::say(&message),
    }
    code
}

async fn alone(config: Config, file: Option<PathBuf>, state_dir: &Path, logs: Logs) -> u8 {
    let started = async {
        let mut signals = Signals::open()?;
        let mut reload = Signals::listen(SignalKind::hangup())?;
        let node = Node::start(config, BTreeMap::new(), state_dir, None, logs)?;
        loop {
            tokio::select! {
                () = signals.wait() => break,
                _ = reload.recv() => match &file {
                    Some(file) => node.reload(Config::from_file(file)),
                    None => tracing::warn!("the configuration came from standard input: it cannot be read again"),
                },
            }
        }
        let grace = node.drain_timeout();
        tokio::select! {
            () = node.drain(grace) => {}
            () = signals.wait() => tracing::warn!("second signal: exiting at once"),
        }
        Ok::<_, StartError>(0)
    };
    match started.await {
        Ok(code) => code,
        Err(error) => report(&error, None, state_dir),
    }
}

async fn under_shim(state_dir: &Path, logs: Logs) -> u8 {
    let (mut heard, voice) = match stdio::open() {
        Ok(both) => both,
        Err(source) => {
            let error = StartError::System {
                action: "read standard input",
                source,
            };
            return report(&error, None, state_dir);
        }
    };
    let code = match supervised(&mut heard, &voice, state_dir, logs).await {
        Ok(code) => code,
        Err(error) => report(&error, Some(&voice), state_dir),
    };
    voice.finish().await;
    code
}

async fn supervised(
    heard: &mut mpsc::Receiver<Heard>,
    voice: &Voice,
    state_dir: &Path,
    logs: Logs,
) -> Result<u8, StartError> {
    let mut signals = Signals::open()?;
    let first = timeout(FIRST_LINE_TIMEOUT, heard.recv()).await;
    let (config, providers, warnings) = match first {
        Ok(Some(Heard::Message(message))) => match *message {
            ToSidecar::Config {
                config,
                providers,
                warnings,
            } => (config, providers, warnings),
            ToSidecar::Drain => return Ok(0),
            ToSidecar::Providers { .. }
            | ToSidecar::RunStarted { .. }
            | ToSidecar::RunDelta { .. }
            | ToSidecar::RunTool { .. }
            | ToSidecar::RunEnd { .. }
            | ToSidecar::MessageDone { .. }
            | ToSidecar::ToolResult { .. } => {
                return Err(StartError::Shim("something came before `config`".into()));
            }
        },
        Ok(Some(Heard::Garbled(why))) => return Err(StartError::Shim(why)),
        Ok(Some(Heard::Ended) | None) => return Ok(0),
        Err(_) => return Err(StartError::Shim("nothing came in 10 s".into())),
    };
    let source = Source {
        openclaw: true,
        folder: state_dir,
        env: &|_| None,
    };
    let config = Config::from_value(config, &source)?;
    let node = Node::start(config, providers, state_dir, Some(voice), logs)?;
    node.set_shim_warnings(warnings);
    loop {
        tokio::select! {
            said = heard.recv() => match said {
                Some(Heard::Message(message)) => match node.heard(*message) {
                    None => {}
                    Some(ToSidecar::Providers { providers, warnings, id }) => {
                        node.set_providers(&providers, id);
                        node.set_shim_warnings(warnings);
                    }
                    Some(ToSidecar::Drain) => break,
                    Some(_) => {
                        tracing::warn!("a second configuration is ignored; the shim restarts the node for that");
                    }
                },
                Some(Heard::Garbled(why)) => tracing::error!(why, "bad line from the shim"),
                Some(Heard::Ended) | None => {
                    tracing::info!("the gateway is gone, exiting");
                    node.gateway_gone();
                    node.drain(ORPHAN_GRACE).await;
                    return Ok(0);
                }
            },
            () = signals.wait() => break,
        }
    }
    let grace = node.drain_timeout();
    let bridge = node.bridge();
    let drained = node.drain(grace);
    tokio::pin!(drained);
    loop {
        tokio::select! {
            () = &mut drained => return Ok(0),
            () = signals.wait() => return Ok(0),
            said = heard.recv() => match said {
                // What runs in the gateway goes on telling while we drain.
                Some(Heard::Message(message)) => if let Some(bridge) = &bridge {
                    let _other = bridge.heard(*message);
                },
                Some(Heard::Garbled(why)) => tracing::error!(why, "bad line from the shim"),
                Some(Heard::Ended) | None => {
                    if let Some(bridge) = &bridge {
                        bridge.gateway_gone();
                    }
                    // Nobody waits for the answers any more.
                    return Ok(timeout(ORPHAN_GRACE, drained).await.map_or(0, |()| 0));
                }
            },
        }
    }
}

/// What keeps secrets out of the log, and counts what the log lost.
#[derive(Debug)]
struct Logs {
    redactor: Redactor,
    dropped: Dropped,
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen(kind: SignalKind) -> Result<Signal, StartError> {
        signal(kind).map_err(|source| StartError::System {
            action: "listen for signals",
            source,
        })
    }

    fn open() -> Result<Self, StartError> {
        Ok(Self {
            terminate: Self::listen(SignalKind::terminate())?,
            interrupt: Self::listen(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The providers of the shim, as [`Node`] takes them.
type Providers = BTreeMap<String, ProviderEntry>;

/// The state folder, opened and held.
fn hold(state_dir: &Path) -> Result<(StateDir, crate::state::StateLock), StartError> {
    let state = StateDir::open(state_dir)?;
    let lock = state.lock()?;
    Ok((state, lock))
}
