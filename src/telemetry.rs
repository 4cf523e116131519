//! Logs: `tracing` events to standard error, as text for people or as JSON lines for the shim.
//!
//! Two promises hold here and nowhere else: no live secret leaves through a log line
//! ([`Redactor`]), and a reader that stops reading never stops the node (a bounded queue in front of
//! a writer thread; full means the line is dropped and counted).

use std::{
    io::{self, Write},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use tracing_subscriber::{
    EnvFilter, fmt::MakeWriter, layer::SubscriberExt, util::SubscriberInitExt,
};
use zeroize::Zeroizing;

/// Lines waiting for the writer thread; a burst of this size is a few milliseconds of output.
const QUEUE_LINES: usize = 1024;
/// Shorter secrets are not searched for: they would blank out ordinary words.
const SHORTEST_SECRET: usize = 8;
/// Secrets remembered; the oldest go first. Keys change rarely, so this is years of rotations.
const SECRETS: usize = 1024;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For a person at a terminal.
    Text,
    /// One JSON object a line, for the shim.
    Json,
}

/// Knows the secrets that are alive and blanks them out of text. Cheap to clone.
#[derive(Clone, Default)]
pub struct Redactor {
    secrets: Arc<RwLock<Vec<Zeroizing<String>>>>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redactor")
    }
}

impl Redactor {
    /// Adds a secret to look for.
    pub fn learn(&self, secret: &str) {
        if secret.len() < SHORTEST_SECRET {
            return;
        }
        let mut secrets = self.secrets.write().unwrap_or_else(PoisonError::into_inner);
        if secrets.iter().any(|known| known.as_str() == secret) {
            return;
        }
        if secrets.len() == SECRETS {
            secrets.remove(0);
        }
        secrets.push(Zeroizing::new(secret.to_owned()));
    }

    /// `text` with every known secret replaced by `[secret]`.
    #[must_use]
    pub fn redact<'t>(&self, text: &'t str) -> std::borrow::Cow<'t, str> {
        let secrets = self.secrets.read().unwrap_or_else(PoisonError::into_inner);
        let mut out = std::borrow::Cow::Borrowed(text);
        for secret in secrets.iter() {
            if out.contains(secret.as_str()) {
                out = std::borrow::Cow::Owned(out.replace(secret.as_str(), "[secret]"));
            }
        }
        out
    }
}

/// How long [`Dropped::flush`] waits for a reader.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

/// Prints a message to the operator outside any log, one line or several.
pub fn say(message: &str) {
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(io::stderr(), "{message}");
}

/// Lines lost because nobody read standard error, and lines still waiting for it.
#[derive(Debug, Clone, Default)]
pub struct Dropped {
    lost: Arc<AtomicU64>,
    waiting: Arc<AtomicU64>,
}

impl Dropped {
    /// How many were lost so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Gives the last lines a moment to be written before the process ends. Blocks.
    pub fn flush(&self) {
        let step = Duration::from_millis(2);
        let mut left = FLUSH_TIMEOUT;
        while self.waiting.load(Ordering::Acquire) > 0 && !left.is_zero() {
            std::thread::sleep(step);
            left = left.saturating_sub(step);
        }
    }
}

/// Collects one event, redacts it, hands it to the writer thread.
#[derive(Debug)]
struct Line {
    text: Vec<u8>,
    queue: SyncSender<String>,
    redactor: Redactor,
    dropped: Dropped,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        let line = self.redactor.redact(&text).into_owned();
        self.dropped.waiting.fetch_add(1, Ordering::AcqRel);
        if let Err(error) = self.queue.try_send(line) {
            self.dropped.waiting.fetch_sub(1, Ordering::AcqRel);
            if matches!(error, TrySendError::Full(_)) {
                self.dropped.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[derive(Debug)]
struct Lines {
    queue: SyncSender<String>,
    redactor: Redactor,
    dropped: Dropped,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;
    fn make_writer(&'a self) -> Line {
        Line {
            text: Vec::with_capacity(256),
            queue: self.queue.clone(),
            redactor: self.redactor.clone(),
            dropped: self.dropped.clone(),
        }
    }
}

/// Starts logging for this process. `CLAWMATRIX_LOG` chooses what is shown (`debug`,
/// `clawmatrix::mesh=trace`); the default is `info`.
///
/// A second call changes nothing, so that tests may start several nodes.
pub fn start(format: Format, redactor: &Redactor) -> Dropped {
    let (queue, lines) = sync_channel::<String>(QUEUE_LINES);
    let dropped = Dropped::default();
    let writer = Lines {
        queue,
        redactor: redactor.clone(),
        dropped: dropped.clone(),
    };
    let waiting = dropped.waiting.clone();
    // A thread of its own, because standard error may block for as long as its reader likes.
    let spawned = std::thread::Builder::new()
        .name("log".into())
        .spawn(move || {
            let mut stderr = io::stderr();
            for line in lines {
                // Nobody is left to tell when standard error is gone.
                let _ = stderr.write_all(line.as_bytes());
                waiting.fetch_sub(1, Ordering::AcqRel);
            }
        });
    if spawned.is_err() {
        return dropped;
    }
    let filter =
        EnvFilter::try_from_env("CLAWMATRIX_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let result = match format {
        Format::Json => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_current_span(false)
                    .with_span_list(false)
                    .without_time()
                    .with_writer(writer),
            )
            .try_init(),
        Format::Text => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_target(false)
                    .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
                    .with_writer(writer),
            )
            .try_init(),
    };
    if result.is_err() {
        tracing::debug!("logging was already started");
    }
    redact_panics(redactor, &dropped);
    dropped
}

/// A panic is told in the log, in its format and with secrets blanked out: its text may hold any value
/// that was at hand, and the standard library would print it as it is.
fn redact_panics(redactor: &Redactor, dropped: &Dropped) {
    let (redactor, dropped) = (redactor.clone(), dropped.clone());
    std::panic::set_hook(Box::new(move |info| {
        let place = info.location().map(ToString::to_string);
        let text = info.payload_as_str().unwrap_or("no text");
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = (backtrace.status() == std::backtrace::BacktraceStatus::Captured)
            .then(|| backtrace.to_string());
        tracing::error!(
            place,
            text = &*redactor.redact(text),
            backtrace,
            "panic: a fault of this program"
        );
        // The process may end right after this.
        dropped.flush();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_secrets_are_blanked_and_short_ones_ignored() {
        let redactor = Redactor::default();
        redactor.learn("sk-live-0123456789");
        redactor.learn("ok");
        assert_eq!(
            redactor.redact("key sk-live-0123456789 ok"),
            "key [secret] ok"
        );
        assert_eq!(redactor.redact("nothing here"), "nothing here");
    }

    #[test]
    fn a_full_queue_drops_lines_and_counts_them() {
        let (queue, _kept_unread) = sync_channel(1);
        let lines = Lines {
            queue,
            redactor: Redactor::default(),
            dropped: Dropped::default(),
        };
        for _ in 0..3 {
            lines.make_writer().write_all(b"x\n").unwrap();
        }
        assert_eq!(lines.dropped.count(), 2);
    }
}
