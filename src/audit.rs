//! The record of what other nodes asked for, allowed or not, and of what this node asked of them
//! (protocol 8.6).
//!
//! Lines are JSON, each naming the hash of the one before, in files of `<state>/audit/`. Whoever
//! answers a request calls [`Audit::commit`] before something with an effect begins: it returns when
//! the line is on the disk, and when it cannot be written the action is not done. What only reads
//! calls [`Audit::record`], which never waits; what could not be written is counted. One task owns
//! the files and writes many lines at a time, in a thread that may block. Contents of tasks, messages
//! and prompts are never written.

mod asking;
mod chain;
mod fold;
pub mod verify;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

pub use self::{
    asking::{Asking, Question},
    chain::files,
};
use self::{
    chain::{Chain, Content},
    fold::Folds,
};
use crate::{
    crypto::identity::{Identity, KeyId},
    drain::Tasks,
    events::{Events, Happening},
    ids::{NodeId, RequestId},
    mesh::session::Peer,
    state::StateDir,
    wire::{
        code::{Code, Failure, Stage},
        limits::{AUDIT_BATCH, AUDIT_FOLD, AUDIT_HEAD_EVERY, AUDIT_NAME_CHARS, AUDIT_QUEUE},
    },
};

/// The folder of the files within the state folder.
pub const FOLDER: &str = "audit";
/// How often the task writes what nobody waits for, looks for repeats and for the time of a signed head:
/// a model request costs a place in the queue, not a write.
const LOOK: Duration = Duration::from_secs(1);
/// How long a commit may take: a disk that hangs must not hang its callers.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// What was decided here about an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// It may happen.
    Allow,
    /// It was refused; nothing happened.
    Deny,
}

/// Who asked whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Another node asked us.
    In,
    /// We asked another node.
    Out,
}

impl Direction {
    /// As lines and events show it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// One thing a node asked another for.
#[derive(Debug, Clone)]
pub struct Entry {
    direction: Direction,
    from: NodeId,
    /// The node asked, where it is not ourselves.
    to: Option<NodeId>,
    key: KeyId,
    rid: RequestId,
    action: String,
    args: [u8; 32],
    rule: String,
    level: u8,
    decision: Decision,
    result: String,
    begun: Instant,
    ended: Option<Instant>,
}

impl Entry {
    /// `caller` asks for `action` (`model:`, `agent:`, `send:` and a name). Only the hash of `args`,
    /// the fields of the request as they came, is kept.
    #[must_use]
    pub fn new(caller: &Peer, rid: RequestId, action: &str, args: &[u8]) -> Self {
        Self::made(caller.node.clone(), caller.key.id(), rid, action, args)
    }

    fn made(from: NodeId, key: KeyId, rid: RequestId, action: &str, args: &[u8]) -> Self {
        let shown = action.chars().take(AUDIT_NAME_CHARS).collect();
        Self {
            direction: Direction::In,
            from,
            to: None,
            key,
            rid,
            action: shown,
            args: Sha256::digest(args).into(),
            rule: String::new(),
            level: 1,
            decision: Decision::Allow,
            result: "begun".into(),
            begun: Instant::now(),
            ended: None,
        }
    }

    /// Names the rule that decided and its level (protocol 8.4).
    #[must_use]
    pub fn ruled(mut self, rule: &str, level: u8) -> Self {
        self.rule = rule.chars().take(AUDIT_NAME_CHARS).collect();
        self.level = level;
        self
    }

    /// The rule that decided.
    #[must_use]
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// How it ended: `completed`, `failed`, or the code of a failure.
    #[must_use]
    pub fn ended(mut self, result: &str) -> Self {
        result.clone_into(&mut self.result);
        self.ended = Some(Instant::now());
        self
    }

    /// The failure it ended with: a refusal when nothing had begun.
    #[must_use]
    pub fn failed(mut self, failure: &Failure) -> Self {
        if failure.stage == Stage::NotStarted {
            self.decision = Decision::Deny;
        }
        self.ended(failure.code.as_str())
    }
}

impl Entry {
    /// As events tell it.
    fn told(&self) -> Value {
        let mut out = json!({
            "direction": self.direction.as_str(),
            "requestId": self.rid,
            "from": self.from,
            "to": self.to,
            "action": self.action,
        });
        if let Some(ended) = self.ended {
            let ms = ended.duration_since(self.begun).as_millis();
            out["result"] = json!(self.result);
            out["durationMs"] = json!(u64::try_from(ms).unwrap_or(u64::MAX));
        }
        out
    }

    fn verdict(&self) -> Value {
        let mut out = self.told();
        out["decision"] = json!(self.decision.as_str());
        out["rule"] = json!(self.rule);
        out["level"] = json!(self.level);
        out
    }
}

impl Decision {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// What the record counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Lines written.
    pub written: u64,
    /// Lines that could not be written.
    pub lost: u64,
}

/// The handle; cheap to clone.
#[derive(Debug, Clone)]
pub struct Audit {
    /// None: nothing is written.
    writer: Option<Arc<Inner>>,
    /// Hears of everything, written or not.
    events: Events,
}

#[derive(Debug)]
struct Inner {
    /// [`AUDIT_QUEUE`] deep; a full one loses what only reads, and lets what has an effect wait.
    queue: mpsc::Sender<Order>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    lost: AtomicU64,
}

/// What the task is asked for.
#[derive(Debug)]
struct Order {
    /// The line; none asks to write whatever is pending, repeats and a signed head.
    entry: Option<Entry>,
    /// Told when it is on the disk, or that it is not.
    done: Option<oneshot::Sender<bool>>,
}

/// Why the record cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("audit folder `{path}` cannot be opened")]
pub struct AuditError {
    path: PathBuf,
    source: std::io::Error,
}

impl Audit {
    /// Nothing is recorded: `audit: false`.
    #[must_use]
    pub fn off() -> Self {
        Self {
            writer: None,
            events: Events::default(),
        }
    }

    /// Tells `events` of what it hears.
    #[must_use]
    pub fn telling(self, events: Events) -> Self {
        Self { events, ..self }
    }

    /// The record for the parts of node `us`, known by `key`, that ask other nodes.
    #[must_use]
    pub const fn asking(self, us: NodeId, key: KeyId) -> Asking {
        Asking {
            audit: self,
            us,
            key,
        }
    }

    /// Goes on with the record in `state`. Blocks on the disk.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn open(
        state: &StateDir,
        identity: Arc<Identity>,
        tasks: &Tasks,
    ) -> Result<Self, AuditError> {
        let path = state.path(FOLDER);
        let chain = Chain::open(&path).map_err(|source| AuditError { path, source })?;
        let (queue, orders) = mpsc::channel(AUDIT_QUEUE);
        let counts = Arc::new(Counts::default());
        let writer = Writer {
            chain: Some(chain),
            folds: Folds::default(),
            identity,
            counts: counts.clone(),
            failing: false,
            unsigned: 0,
            signed: Instant::now(),
        };
        // Ends when the last handle is gone.
        tasks.spawn(writer.run(orders));
        Ok(Self {
            writer: Some(Arc::new(Inner { queue, counts })),
            events: Events::default(),
        })
    }

    /// Records what needs no guarantee; never waits.
    pub fn record(&self, entry: Entry) {
        self.announce(&entry);
        let Some(inner) = &self.writer else {
            return;
        };
        let order = Order {
            entry: Some(entry),
            done: None,
        };
        if inner.queue.try_send(order).is_err() {
            inner.counts.lost.fetch_add(1, Relaxed);
        }
    }

    /// Records what is about to be done; returns when it is on the disk.
    ///
    /// # Errors
    /// `audit_unavailable`: it must not be done.
    pub async fn commit(&self, entry: Entry) -> Result<(), Failure> {
        if self.order(Some(entry.clone())).await {
            self.announce(&entry);
            return Ok(());
        }
        Err(Failure::not_started(
            Code::AuditUnavailable,
            "the node cannot write its audit record, so nothing was done; its operator must look at the disk",
        ))
    }

    /// Writes what is pending and signs the chain as it stands.
    pub async fn flush(&self) {
        // At a stop: what cannot be written then was counted and logged.
        let _ = self.order(None).await;
    }

    /// What was written and lost so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.writer
            .as_ref()
            .map_or_else(Stats::default, |inner| Stats {
                written: inner.counts.written.load(Relaxed),
                lost: inner.counts.lost.load(Relaxed),
            })
    }

    /// Whether anybody watches what is told here.
    #[must_use]
    pub fn watched(&self) -> bool {
        self.events.watched()
    }

    /// Tells those who watch of an entry, without a line.
    pub fn announce(&self, entry: &Entry) {
        if !self.events.watched() {
            return;
        }
        let denied = entry.decision == Decision::Deny;
        if denied || (entry.ended.is_none() && entry.direction == Direction::In) {
            self.events.tell(Happening::Verdict, || entry.verdict());
        }
        if denied {
            return;
        }
        let what = match entry.ended {
            None => Happening::RequestStarted,
            Some(_) => Happening::RequestEnded,
        };
        self.events.tell(what, || entry.told());
    }

    async fn order(&self, entry: Option<Entry>) -> bool {
        let Some(inner) = &self.writer else {
            return true;
        };
        let (done, written) = oneshot::channel();
        let order = Order {
            entry,
            done: Some(done),
        };
        let through =
            async { inner.queue.send(order).await.is_ok() && written.await.unwrap_or(false) };
        timeout(COMMIT_TIMEOUT, through).await.unwrap_or(false)
    }
}

/// The one who writes.
#[derive(Debug)]
struct Writer {
    /// Away only while a thread writes, and for good if that thread died.
    chain: Option<Chain>,
    folds: Folds,
    identity: Arc<Identity>,
    counts: Arc<Counts>,
    failing: bool,
    /// Lines since the last signed head.
    unsigned: u64,
    signed: Instant,
}

impl Writer {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        loop {
            let (write, ended) = tokio::select! {
                got = orders.recv_many(&mut batch, AUDIT_BATCH) => {
                    let awaited = batch.iter().any(|order| order.done.is_some());
                    (awaited || got == 0 || batch.len() >= AUDIT_BATCH, got == 0)
                }
                _ = look.tick() => (true, false),
            };
            if write {
                self.write(std::mem::take(&mut batch)).await;
            }
            if ended {
                return;
            }
        }
    }

    async fn write(&mut self, batch: Vec<Order>) {
        let now = Instant::now();
        let mut lines = Vec::new();
        let mut waiting = Vec::new();
        let mut all = false;
        for order in batch {
            all |= order.entry.is_none();
            lines.extend(
                order
                    .entry
                    .and_then(|entry| self.folds.pass(entry, now))
                    .map(|entry| Content::Entry(Box::new(entry), 1)),
            );
            waiting.extend(order.done);
        }
        let due = if all { now + AUDIT_FOLD } else { now };
        let repeats = self.folds.due(due).into_iter();
        lines.extend(repeats.map(|(entry, count)| Content::Entry(Box::new(entry), count)));
        let count = lines.len() as u64;
        let sign = self.unsigned + count > 0
            && (all || now.duration_since(self.signed) >= AUDIT_HEAD_EVERY);
        if sign {
            lines.push(Content::Head(self.identity.clone()));
        }
        if lines.is_empty() && waiting.is_empty() {
            return;
        }
        let written = self.append(lines, !waiting.is_empty()).await;
        match &written {
            Ok(()) => {
                self.counts.written.fetch_add(count, Relaxed);
                self.unsigned += count;
                if sign {
                    (self.unsigned, self.signed) = (0, now);
                }
                if self.failing {
                    tracing::info!("the audit record is written again");
                }
            }
            Err(error) => {
                self.counts.lost.fetch_add(count, Relaxed);
                if !self.failing {
                    tracing::error!(%error, "the audit record cannot be written: handoffs, messages and tools are refused");
                }
            }
        }
        self.failing = written.is_err();
        for done in waiting {
            // Who gave up waiting needs no answer.
            let _ = done.send(written.is_ok());
        }
    }

    /// Appends in a thread that may block, and syncs if somebody waits for it.
    async fn append(&mut self, lines: Vec<Content>, sync: bool) -> std::io::Result<()> {
        let Some(mut chain) = self.chain.take() else {
            return Err(std::io::Error::other("the writing thread died"));
        };
        let work = move || {
            let mut written = chain.append(&lines);
            if sync && written.is_ok() {
                written = chain.sync();
            }
            (chain, written)
        };
        let (chain, written) = tokio::task::spawn_blocking(work)
            .await
            .map_err(std::io::Error::other)?;
        self.chain = Some(chain);
        written
    }
}

/// Whether `path` has a record.
#[must_use]
pub fn exists(path: &Path) -> bool {
    files(path).is_ok_and(|files| !files.is_empty())
}

#[cfg(test)]
mod tests;
