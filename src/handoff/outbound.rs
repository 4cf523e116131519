//! We hand a task to another node: picks who takes it, follows what happens there, attaches again after
//! a lost link, and keeps what came of it.
//!
//! A second node is asked only when the first one provably never began. A handoff runs by itself: who
//! started it follows its [`Record`] and may go away.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    inbound::{Ask, HandoffService},
    record::{Cursor, Ended, Event, Place, Record},
    stream::{Lines, apply},
    target::{Candidate, Search},
};
use crate::{
    audit::Asking,
    drain::Tasks,
    exchange::{
        Call, Chain, Exchange, Item, Kind, NewRequest, Phase, SessionRef, Sessions, Timeouts,
        looped,
    },
    ids::{NodeId, RequestId},
    mesh::{session::Class, view::View},
    trust::Level,
    wire::{
        code::{Code, Failure, Stage},
        limits::{
            HANDOFF_ACCEPT_TIMEOUT, HANDOFF_ATTEMPTS, HANDOFF_BODY_BYTES, HANDOFF_DEADLINE,
            HANDOFF_IDLE_MARGIN, HANDOFF_KEPT, HANDOFF_KEPT_BYTES, HANDOFF_MEMORY, HANDOFF_RUNS,
            NEVER_BEGAN_FOR, QUERY_TIMEOUT, REATTACH_FIRST, REATTACH_LONGEST,
        },
    },
};

/// What a handoff is made of.
pub struct NewHandoff {
    /// For whom.
    pub target: String,
    /// The task.
    pub task: String,
    /// What the agent should know besides.
    pub context: Option<String>,
    /// The session to continue.
    pub session: Option<String>,
    /// Longest silence; the node's own if none is given.
    pub idle: Option<Duration>,
    /// The chain it belongs to.
    pub chain: Chain,
    /// Whether an agent asks, not a person.
    pub agent: bool,
}

impl fmt::Debug for NewHandoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without task and context: what is asked is nobody's business in a log.
        f.debug_struct("NewHandoff")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// What handoffs of ours are made with.
#[derive(Debug)]
pub struct Parts {
    /// Ourselves.
    pub us: NodeId,
    /// Least trust in a node we hand tasks to.
    pub min_trust: Level,
    /// Longest silence of a handoff.
    pub idle: Duration,
    /// How others are asked.
    pub exchange: Exchange,
    /// How they are reached.
    pub sessions: Arc<dyn Sessions>,
    /// Who they are.
    pub view: watch::Receiver<Arc<View>>,
    /// Our own agents, when they are named.
    pub service: HandoffService,
    /// Hears of what others are asked.
    pub audit: Asking,
    /// Runs the handoffs.
    pub tasks: Tasks,
}

/// Handoffs of ours; cheap to clone.
#[derive(Debug, Clone)]
pub struct Handoffs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    table: Mutex<HashMap<RequestId, Record>>,
}

impl Handoffs {
    /// None yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            parts,
            table: Mutex::default(),
        }))
    }

    /// Starts a handoff under a new id; its record tells the rest, its failures included.
    ///
    /// # Errors
    /// `invalid_request`, `payload_too_large`, `agent_not_found`, `node_not_found`, `loop_detected`,
    /// `deadline_exceeded`, `overloaded`; nothing has begun.
    pub fn start(&self, new: NewHandoff) -> Result<(RequestId, Record), Failure> {
        let parts = &self.0.parts;
        if new.task.trim().is_empty() {
            return Err(Failure::not_started(
                Code::InvalidRequest,
                "`task` is empty: say what is to be done",
            ));
        }
        let bytes = new.task.len() + new.context.as_ref().map_or(0, String::len);
        if bytes > HANDOFF_BODY_BYTES {
            return Err(Failure::not_started(
                Code::PayloadTooLarge,
                format!("task and context are longer than {HANDOFF_BODY_BYTES} bytes"),
            ));
        }
        let candidates = self.find_agents(&new.target, false)?;
        let here = candidates.first().is_some_and(|c| c.node == parts.us);
        if here && !new.chain.hops.is_empty() {
            return Err(looped());
        }
        let hops = new.chain.hops_from(&parts.us)?;
        let time = new.chain.remaining(HANDOFF_DEADLINE)?;
        let id = RequestId::random();
        let record = Record::new();
        self.enter(id, &record)?;
        let attempts = Attempts {
            inner: self.0.clone(),
            id,
            new,
            hops,
            deadline: Instant::now() + time,
        };
        let work = record.clone();
        parts
            .tasks
            .spawn(async move { attempts.run(&work, candidates).await });
        Ok((id, record))
    }

    /// Who may take what is for `target`, the best first. With `away` also nodes that are away.
    ///
    /// # Errors
    /// As [`Search::find`].
    pub fn find_agents(&self, target: &str, away: bool) -> Result<Vec<Candidate>, Failure> {
        let parts = &self.0.parts;
        let view = parts.view.borrow().clone();
        Search {
            us: &parts.us,
            agents: &parts.service.agents(),
            view: &view,
            min_trust: parts.min_trust,
            away,
        }
        .find(target)
    }

    /// A handoff of the last ten minutes, or one under way.
    #[must_use]
    pub fn find(&self, id: &RequestId) -> Option<Record> {
        self.lock().get(id).cloned()
    }

    fn enter(&self, id: RequestId, record: &Record) -> Result<(), Failure> {
        let mut table = self.lock();
        table.retain(|_, record| record.ended_for().is_none_or(|ago| ago < HANDOFF_MEMORY));
        let running = table.values().filter(|record| record.ended().is_none());
        if running.count() >= HANDOFF_RUNS {
            return Err(Failure::not_started(
                Code::Overloaded,
                "as many handoffs are under way as may be",
            ));
        }
        while table.len() >= HANDOFF_KEPT
            || table.values().map(Record::bytes).sum::<usize>() > HANDOFF_KEPT_BYTES
        {
            let ended = table
                .iter()
                .filter_map(|(id, r)| Some((r.ended_for()?, *id)));
            let Some((_, oldest)) = ended.max_by_key(|(ago, _)| *ago) else {
                break;
            };
            table.remove(&oldest);
        }
        table.insert(id, record.clone());
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Record>> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One handoff under way.
struct Attempts {
    inner: Arc<Inner>,
    id: RequestId,
    new: NewHandoff,
    hops: Vec<NodeId>,
    deadline: Instant,
}

/// A handoff that was sent, and the session it was lost with.
struct Lost {
    session: SessionRef,
    /// When it was sent, on the session's clock, which counts suspend.
    sent: Duration,
    rid: RequestId,
}

impl Lost {
    /// Whether the other node may have forgotten that it ran (protocol 7.1).
    fn outdated(&self) -> bool {
        self.session.elapsed().saturating_sub(self.sent) > NEVER_BEGAN_FOR
    }
}

/// Cancels the run of our own agent when the handoff that wanted it goes.
struct CancelOnDrop(Record);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Attempts {
    async fn run(self, record: &Record, candidates: Vec<Candidate>) {
        let ended = tokio::select! {
            biased;
            ended = self.ask_in_turn(record, candidates) => ended,
            // Dropping the attempt is what tells the other node.
            () = record.cancelled() => {
                let stage = if record.place().is_some() { Stage::Started } else { Stage::NotStarted };
                Ended::failed(Failure {
                    stage,
                    ..Failure::started(Code::Cancelled, "the handoff was cancelled")
                })
            }
        };
        let ended = if ended.result.is_empty() && !ended.outcome.success() {
            // What it had said before it failed is still worth something.
            Ended {
                result: record.text(),
                ..ended
            }
        } else {
            ended
        };
        tracing::info!(handoff = ?self.id, outcome = ended.outcome.as_str(), "handoff of ours ended");
        record.end(ended);
    }

    async fn ask_in_turn(&self, record: &Record, candidates: Vec<Candidate>) -> Ended {
        let tries = candidates.len().min(HANDOFF_ATTEMPTS);
        let mut last = Failure::not_started(Code::Internal, "no candidate");
        for (index, candidate) in candidates.into_iter().take(tries).enumerate() {
            match self.attempt(record, &candidate, index).await {
                Ok(ended) => return Ended::clone(&ended),
                Err(failure) => last = failure,
            }
            if last.stage == Stage::Started || record.place().is_some() {
                break;
            }
            tracing::debug!(handoff = ?self.id, node = %candidate.node, code = last.code.as_str(), "never began there");
        }
        Ended::failed(last)
    }

    async fn attempt(
        &self,
        record: &Record,
        candidate: &Candidate,
        index: usize,
    ) -> Result<Arc<Ended>, Failure> {
        let parts = &self.inner.parts;
        if candidate.node == parts.us {
            return self.local(record, candidate).await;
        }
        let rid = if index == 0 {
            self.id
        } else {
            RequestId::random()
        };
        let context = self.new.context.as_deref().unwrap_or_default();
        let fields = json!({
            "agent": candidate.agent,
            "session": self.new.session,
            "tlen": self.new.task.len(),
            "idle": millis(self.idle()),
            "hops": self.hops,
            "actor": if self.new.agent { "agent" } else { "user" },
        });
        let fields = inside(&fields);
        let agent = candidate.agent.as_deref().unwrap_or("?");
        let action = format!("agent:{agent}");
        let audit = &parts.audit;
        let question = audit.ask(&candidate.node, rid, &action, fields.as_bytes());
        let session = parts.sessions.session(&candidate.node).await;
        let (question, session) = question.after(session)?;
        let question = question.admit(session.peer(), parts.min_trust)?;
        let body = Bytes::from([self.new.task.as_bytes(), context.as_bytes()].concat());
        let sent = session.elapsed();
        let (question, call) = question.after(self.open(&session, rid, &fields, body))?;
        question.begun();
        let result = match read(call, record).await {
            Err(failure) if failure.code == Code::OutcomeUnknown => {
                let lost = Lost { session, sent, rid };
                self.attach_again(record, &candidate.node, &lost).await
            }
            result => result,
        };
        let (question, ended) = question.after(result)?;
        question.ended(ended.outcome.as_str());
        Ok(ended)
    }

    /// An agent of our own, named by the asker.
    async fn local(&self, record: &Record, candidate: &Candidate) -> Result<Arc<Ended>, Failure> {
        let parts = &self.inner.parts;
        let run = parts.service.start(Ask {
            caller: None,
            rid: self.id,
            agent: candidate.agent.clone(),
            task: self.new.task.clone(),
            context: self.new.context.clone(),
            session: self.new.session.clone(),
            chain: Chain {
                hops: self.hops.clone(),
                deadline: Some(self.deadline),
            },
            idle: Some(self.idle()),
        })?;
        let run = CancelOnDrop(run);
        let mut cursor = Cursor::default();
        loop {
            match run.0.next(&mut cursor).await {
                Event::Started(place) => record.started(place),
                Event::Delta(text) => record.delta(&text),
                Event::Tool(tool) => record.tool(tool),
                Event::Ended(ended) => {
                    return match &ended.failure {
                        Some(failure) if record.place().is_none() => Err(failure.clone()),
                        _ => Ok(ended),
                    };
                }
            }
        }
    }

    fn idle(&self) -> Duration {
        self.new.idle.unwrap_or(self.inner.parts.idle)
    }

    fn open(
        &self,
        session: &SessionRef,
        rid: RequestId,
        fields: &str,
        body: Bytes,
    ) -> Result<Call, Failure> {
        self.inner.parts.exchange.open(
            session,
            NewRequest {
                rid,
                kind: Kind::Handoff,
                fields: fields.to_owned(),
                body,
                class: Class::Interactive,
                idempotent: false,
                timeouts: Timeouts {
                    accept: HANDOFF_ACCEPT_TIMEOUT,
                    // The other node ends a silent run itself, and says so.
                    idle: Some(self.idle() + HANDOFF_IDLE_MARGIN),
                    deadline: self.deadline.saturating_duration_since(Instant::now()),
                    until_first_byte: false,
                },
            },
        )
    }

    /// The way to the node was lost while it may have been at work. The run goes on there; it is asked
    /// for as soon as there is a way again (protocol 7.6).
    async fn attach_again(
        &self,
        record: &Record,
        node: &NodeId,
        lost: &Lost,
    ) -> Result<Arc<Ended>, Failure> {
        let parts = &self.inner.parts;
        let unknown = |why: &str| {
            Failure::started(
                Code::OutcomeUnknown,
                format!("{why}; the task may have been done, in part or whole"),
            )
        };
        let limit = self.idle().min(HANDOFF_MEMORY);
        let mut begun = Instant::now();
        let mut pause = REATTACH_FIRST;
        loop {
            if begun.elapsed() >= limit || Instant::now() >= self.deadline {
                return Err(unknown(&format!("node `{node}` did not come back in time")));
            }
            sleep(pause).await;
            pause = (pause * 2).min(REATTACH_LONGEST);
            let Ok(session) = parts.sessions.session(node).await else {
                continue;
            };
            let (then, now) = (lost.session.peer(), session.peer());
            if now.key != then.key || now.boot != then.boot {
                return Err(unknown(&format!(
                    "node `{node}` was restarted during the handoff"
                )));
            }
            match parts
                .exchange
                .query(&session, lost.rid, QUERY_TIMEOUT)
                .await
            {
                Err(_) => continue,
                Ok(Phase::Unknown) if record.place().is_some() || lost.outdated() => {
                    return Err(unknown(&format!(
                        "node `{node}` knows no more of the handoff"
                    )));
                }
                Ok(Phase::Unknown) => {
                    return Err(Failure::not_started(
                        Code::PeerUnreachable,
                        format!("the handoff never reached node `{node}`"),
                    ));
                }
                Ok(Phase::Accepted | Phase::ApprovalPending | Phase::Running | Phase::Done) => {}
            }
            let cursor = record.cursor();
            let fields = json!({
                "attach": {"rid": lost.rid, "text": cursor.text, "tools": cursor.tools},
            });
            let attached = match self.open(
                &session,
                RequestId::random(),
                &inside(&fields),
                Bytes::new(),
            ) {
                Ok(call) => read(call, record).await,
                Err(failure) => Err(failure),
            };
            match attached {
                Ok(ended) => return Ok(ended),
                Err(failure) if failure.code == Code::NotFound => {
                    return Err(unknown(&format!(
                        "node `{node}` knows no more of the handoff"
                    )));
                }
                Err(failure) if failure.code == Code::OutcomeUnknown => {
                    // Lost once more, perhaps after it told something.
                    begun = Instant::now();
                    pause = REATTACH_FIRST;
                }
                Err(failure) if failure.stage == Stage::NotStarted => {}
                Err(failure) => return Err(failure),
            }
        }
    }
}

/// Reads an answer into `record` until its end.
async fn read(mut call: Call, record: &Record) -> Result<Arc<Ended>, Failure> {
    let broken = |text: &str| Failure::started(Code::ProtocolError, text);
    let mut lines = Lines::default();
    while let Some(item) = call.next().await? {
        let (data, last) = match item {
            Item::Accept | Item::Waits(_) => continue,
            Item::Head {
                meta, data, fin, ..
            } => {
                if let Ok(place) = serde_json::from_str::<Place>(meta.get()) {
                    record.started(place);
                }
                (data, fin.is_some())
            }
            Item::Chunk { data, fin } => (data, fin.is_some()),
            Item::End(_) => (Bytes::new(), true),
        };
        let mut ended = None;
        for line in lines.feed(&data)? {
            ended = apply(line, record).or(ended);
        }
        if let Some(ended) = ended {
            return Ok(ended);
        }
        if last {
            break;
        }
    }
    Err(broken("the node ended its answer without an outcome"))
}

/// The inside of a JSON object, as the exchange wants fields.
fn inside(object: &serde_json::Value) -> String {
    let text = object.to_string();
    text[1..text.len() - 1].to_owned()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX >> 11)
}
