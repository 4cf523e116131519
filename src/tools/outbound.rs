//! We want a tool of another node: picks it, asks, and reads what it tells.
//!
//! What changes something is asked for once: a second node only when the first provably never began.
//! What only reads is asked again, of the same node, as long as nothing of the answer was passed on.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    Event, Finished, Running,
    args::Call,
    frames::Frames,
    inbound::{Ask, ToolService},
    target,
};
use crate::{
    audit::{Asking, Question},
    exchange::{
        Call as Exchanged, Chain, Exchange, Item, Kind, NewRequest, Sessions, Timeouts, looped,
    },
    ids::{NodeId, RequestId},
    mesh::{
        session::{Class, Peer},
        view::View,
    },
    trust::Level,
    wire::{
        code::{Code, Failure, Stage},
        limits::{
            APPROVAL_WAIT, EXEC_KILL_AFTER, EXEC_TIMEOUT, HANDOFF_ATTEMPTS, TOOL_ACCEPT_TIMEOUT,
            TOOL_ARGS_BYTES, TOOL_DEADLINE, TOOL_FILE_BYTES, TOOL_READ_DEADLINE, TOOL_READ_IDLE,
            TOOL_READ_RETRIES,
        },
    },
};

/// From the end of a command's time to its answer, at the latest.
const EXEC_MARGIN: Duration = Duration::from_secs(2 * EXEC_KILL_AFTER.as_secs() + 5);
/// A body longer than this goes behind what is typed.
const BULK_BYTES: usize = 64 * 1024;

/// A tool that somebody on this node wants.
#[derive(Debug)]
pub struct NewTool {
    /// Where.
    pub node: String,
    /// Which.
    pub tool: String,
    /// Its arguments.
    pub args: Value,
    /// Content, for tools that have some.
    pub body: Bytes,
    /// The chain it belongs to.
    pub chain: Chain,
    /// Whether a model asks, not a person.
    pub agent: bool,
}

/// What tools are asked for with.
#[derive(Debug)]
pub struct Parts {
    /// Ourselves, as a caller of our own tools.
    pub us: Peer,
    /// Least trust in a node we send commands and contents to.
    pub min_trust: Level,
    /// How others are asked.
    pub exchange: Exchange,
    /// How they are reached.
    pub sessions: Arc<dyn Sessions>,
    /// Who they are.
    pub view: watch::Receiver<Arc<View>>,
    /// Our own tools, when this node is named.
    pub service: ToolService,
    /// Hears of what others are asked.
    pub audit: Asking,
}

/// Asks for tools; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tools(Arc<Parts>);

impl Tools {
    /// Made of `parts`.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Our own tools.
    #[must_use]
    pub fn service(&self) -> &ToolService {
        &self.0.service
    }

    /// Begins to ask; what is returned tells the rest.
    ///
    /// # Errors
    /// `invalid_request`, `payload_too_large`, `node_not_found`, `loop_detected`,
    /// `deadline_exceeded`; nothing was sent.
    pub fn start(&self, new: NewTool) -> Result<Following, Failure> {
        let parts = &self.0;
        // What the other node would refuse is refused here, with better words.
        let call = Call::read(&new.tool, new.args.clone())?;
        let too_large = |text: String| Failure::not_started(Code::PayloadTooLarge, text);
        if new.args.to_string().len() > TOOL_ARGS_BYTES {
            return Err(too_large(format!(
                "the arguments are longer than {TOOL_ARGS_BYTES} bytes"
            )));
        }
        if new.body.len() > TOOL_FILE_BYTES {
            return Err(too_large(format!(
                "a file is written up to {TOOL_FILE_BYTES} bytes"
            )));
        }
        let view = parts.view.borrow().clone();
        let nodes = target::find(&parts.us.node, &view, parts.min_trust, &new.node)?;
        if nodes.first() == Some(&parts.us.node) && !new.chain.hops.is_empty() {
            return Err(looped());
        }
        let hops = new.chain.hops_from(&parts.us.node)?;
        let wanted = match &call {
            Call::Exec(exec) if exec.timeout.is_none() => EXEC_TIMEOUT + EXEC_MARGIN,
            // The other node has its own limit, which it tells by ending.
            Call::Exec(exec) => exec.limit(WEEK)? + EXEC_MARGIN,
            Call::Read(_) | Call::List(_) => TOOL_READ_DEADLINE,
            Call::Write(_) | Call::Edit(_) => TOOL_READ_DEADLINE * 5,
            Call::Other(..) => TOOL_DEADLINE + EXEC_MARGIN,
        };
        let deadline = new.chain.remaining(wanted)?;
        let tries = if call.reads() { TOOL_READ_RETRIES } else { 0 };
        Ok(Following {
            tools: self.clone(),
            nodes: nodes.into_iter().take(HANDOFF_ATTEMPTS).collect(),
            retries: tries,
            call,
            hops,
            deadline,
            new,
            at: None,
            ready: VecDeque::new(),
            named: false,
            passed: false,
            over: false,
        })
    }

    async fn ask(&self, asked: &Following, node: &NodeId) -> Result<Source, Failure> {
        let parts = &self.0;
        if *node == parts.us.node {
            let running = parts
                .service
                .begin(Ask {
                    caller: parts.us.clone(),
                    rid: RequestId::random(),
                    call: asked.call.clone(),
                    body: asked.new.body.clone(),
                    agent: asked.new.agent,
                    json: json!({"tool": asked.new.tool, "args": asked.new.args})
                        .to_string()
                        .into(),
                })
                .await?;
            return Ok(Source::Here(running));
        }
        let fields = json!({
            "tool": asked.new.tool,
            "args": asked.new.args,
            "hops": asked.hops,
            "actor": if asked.new.agent { "agent" } else { "user" },
        })
        .to_string();
        let rid = RequestId::random();
        let action = format!("tool:{}", asked.new.tool);
        let question = parts.audit.ask(node, rid, &action, fields.as_bytes());
        let session = parts.sessions.session(node).await;
        let (question, session) = question.after(session)?;
        let question = question.admit(session.peer(), parts.min_trust)?;
        let bulk = asked.new.body.len() > BULK_BYTES;
        let call = parts.exchange.open(
            &session,
            NewRequest {
                rid,
                kind: Kind::Tool,
                fields: fields[1..fields.len() - 1].to_owned(),
                body: asked.new.body.clone(),
                class: if bulk {
                    Class::Bulk
                } else {
                    Class::Interactive
                },
                idempotent: asked.call.reads(),
                timeouts: Timeouts {
                    accept: TOOL_ACCEPT_TIMEOUT,
                    // A quiet command is no fault.
                    idle: asked.call.reads().then_some(TOOL_READ_IDLE),
                    deadline: asked.deadline,
                    until_first_byte: false,
                },
            },
        );
        let (question, call) = question.after(call)?;
        question.begun();
        Ok(Source::There(call, Frames::default(), false, question))
    }
}

/// Longest command that can be asked for; nodes set their own limit below it.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// Where events come from.
#[derive(Debug)]
enum Source {
    Here(Running),
    /// The exchange, its frames, whether a person is asked, and what is answered when it goes.
    There(Exchanged, Frames, bool, Question),
}

/// A tool that was asked for. Dropping it cancels the tool.
#[derive(Debug)]
pub struct Following {
    tools: Tools,
    /// Nodes left to ask, the present one first.
    nodes: VecDeque<NodeId>,
    retries: usize,
    call: Call,
    hops: Vec<NodeId>,
    deadline: Duration,
    new: NewTool,
    at: Option<Source>,
    ready: VecDeque<Event>,
    /// It was told which node answers.
    named: bool,
    /// Something of the answer was passed on.
    passed: bool,
    over: bool,
}

impl Following {
    /// The next event; none after the end. The first is [`Event::Started`], unless nothing ever began.
    pub async fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        loop {
            if let Some(event) = self.ready.pop_front() {
                if let Event::End(ended) = &event {
                    self.over = true;
                    self.close(ended);
                }
                self.passed |= !matches!(
                    event,
                    Event::Started(_) | Event::Alive | Event::Waits(_) | Event::GoesOn
                );
                return Some(event);
            }
            let failure = match self.step().await {
                Ok(()) => continue,
                Err(failure) => failure,
            };
            let failed = Err(failure.clone());
            self.close(&failed);
            self.named = false;
            if !self.again(&failure) {
                self.over = true;
                return Some(Event::End(Err(failure)));
            }
        }
    }

    /// Nothing more comes from whoever was asked.
    fn close(&mut self, ended: &Result<Finished, Failure>) {
        if let Some(Source::There(_, _, _, question)) = self.at.take() {
            match ended {
                Ok(Finished { failure: None, .. }) => question.ended("completed"),
                Ok(Finished {
                    failure: Some(failure),
                    ..
                })
                | Err(failure) => question.failed(failure),
            }
        }
    }

    /// Gets further events into `ready`, asking first if nobody was asked yet.
    async fn step(&mut self) -> Result<(), Failure> {
        let Some(node) = self.nodes.front().cloned() else {
            return Err(Failure::not_started(
                Code::NodeNotFound,
                "no node is left to ask",
            ));
        };
        if self.at.is_none() {
            let tools = self.tools.clone();
            self.at = Some(tools.ask(self, &node).await?);
        }
        let mut events = match &mut self.at {
            Some(Source::Here(running)) => here(running).await?,
            Some(Source::There(call, frames, waits, _)) => there(call, frames, waits).await?,
            None => Vec::new(),
        };
        if let Some(Event::End(Err(failure))) = events.first() {
            return Err(failure.clone());
        }
        if !self.named && !events.is_empty() {
            events.insert(0, Event::Started(node));
            self.named = true;
        }
        self.ready.extend(events);
        Ok(())
    }

    /// Whether somebody is to be asked after this failure.
    fn again(&mut self, failure: &Failure) -> bool {
        if self.passed {
            return false;
        }
        let never_began = failure.stage == Stage::NotStarted;
        let elsewhere = matches!(
            failure.code,
            Code::NoRoute | Code::PeerUnreachable | Code::Overloaded | Code::ShuttingDown
        );
        if never_began && elsewhere && self.nodes.len() > 1 {
            self.nodes.pop_front();
            return true;
        }
        let lost = matches!(
            failure.code,
            Code::OutcomeUnknown
                | Code::StreamLost
                | Code::Timeout
                | Code::PeerUnreachable
                | Code::StaleRequest
        );
        if self.call.reads() && lost && self.retries > 0 {
            self.retries -= 1;
            return true;
        }
        false
    }
}

async fn here(running: &mut Running) -> Result<Vec<Event>, Failure> {
    match running.events.recv().await {
        Some(event) => Ok(vec![event]),
        None => Err(Failure::started(
            Code::OutcomeUnknown,
            "the node stopped while the tool was at work",
        )),
    }
}

async fn there(
    call: &mut Exchanged,
    frames: &mut Frames,
    waits: &mut bool,
) -> Result<Vec<Event>, Failure> {
    let broken = |text: &str| Failure::started(Code::ProtocolError, text);
    let Some(item) = call.next().await? else {
        return Err(broken("the node ended its answer without a result"));
    };
    let (data, fin) = match item {
        // After a wait it means that a person agreed, which is as good a sign of life.
        Item::Accept => {
            let waited = std::mem::take(waits);
            return Ok(vec![if waited { Event::GoesOn } else { Event::Alive }]);
        }
        Item::Waits(left) => {
            *waits = true;
            // A node of an earlier version does not say.
            let left = left.unwrap_or(APPROVAL_WAIT).min(APPROVAL_WAIT);
            return Ok(vec![Event::Waits(left)]);
        }
        Item::Head { data, fin, .. } | Item::Chunk { data, fin } => (data, fin),
        Item::End(end) => (Bytes::new(), Some(end)),
    };
    let mut events = frames.feed(&data)?;
    if let Some(end) = fin {
        if !frames.whole() {
            return Err(broken("the node ended its answer in the middle of a frame"));
        }
        let result = end.result.as_deref().map_or("{}", |raw| raw.get());
        let result: Value =
            serde_json::from_str(result).map_err(|_| broken("the node sent no result"))?;
        let timed_out = result["timedOut"] == true;
        let failure = (!end.ok).then(|| {
            let (code, text) = if timed_out {
                (
                    Code::Timeout,
                    "the command ran out of time and was ended with all it had started",
                )
            } else {
                (Code::UpstreamError, "the tool was ended before it was done")
            };
            Failure {
                retryable: false,
                ..Failure::started(code, text)
            }
        });
        events.push(Event::End(Ok(Finished {
            result,
            failure,
            told: 0,
        })));
    }
    Ok(events)
}
