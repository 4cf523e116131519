//! Asks the shim for what only the gateway's process can do: run an agent, put a message into a
//! session, call a tool. The gateway's token never leaves that process.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::{sync::oneshot, time::timeout};

use super::{FromSidecar, RunOutcome, ToSidecar, ToolPhase, stdio::Voice};
use crate::{
    handoff::{
        record::{Ended, Phase, Record, ToolUse},
        runner::{AgentRun, AgentRunner, Begun, RunGuard},
    },
    messages::{Courier, Note},
    tools::{Invoking, ToolRunner},
    wire::{
        code::{Code, Failure},
        limits::{BRIDGE_MESSAGE_TIMEOUT, BRIDGE_REQUESTS},
    },
};

/// What the shim works on; bounded by [`BRIDGE_REQUESTS`].
#[derive(Default)]
struct Open {
    next: u64,
    /// The gateway is gone: nothing is asked any more.
    gone: bool,
    runs: HashMap<u64, Running>,
    messages: HashMap<u64, oneshot::Sender<Option<String>>>,
    tools: HashMap<u64, oneshot::Sender<(u16, Value)>>,
}

struct Running {
    record: Record,
    begun: Option<Begun>,
}

/// The way to the gateway's process; cheap to clone.
#[derive(Clone)]
pub struct Bridge {
    voice: Voice,
    open: Arc<Mutex<Open>>,
}

impl std::fmt::Debug for Bridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bridge")
    }
}

impl Bridge {
    /// Asks through `voice`.
    #[must_use]
    pub fn new(voice: Voice) -> Self {
        Self {
            voice,
            open: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place with `enter`, then asks; the place is given back when nobody hears the question.
    fn ask(
        &self,
        enter: impl FnOnce(&mut Open, u64),
        question: impl FnOnce(u64) -> FromSidecar,
    ) -> Result<u64, Failure> {
        let id = {
            let mut open = self.lock();
            if open.gone {
                return Err(gone());
            }
            if open.runs.len() + open.messages.len() + open.tools.len() >= BRIDGE_REQUESTS {
                return Err(Failure::not_started(
                    Code::Overloaded,
                    "the gateway has too much in hand",
                ));
            }
            open.next += 1;
            let id = open.next;
            enter(&mut open, id);
            id
        };
        if self.voice.ask(&question(id)) {
            return Ok(id);
        }
        let mut open = self.lock();
        open.runs.remove(&id);
        open.messages.remove(&id);
        open.tools.remove(&id);
        Err(Failure::not_started(
            Code::Overloaded,
            "the gateway does not take requests at present",
        ))
    }

    /// Puts a message into the main session of an agent; resolves once it is there.
    ///
    /// # Errors
    /// `overloaded` and `peer_unreachable` when the gateway cannot be asked, `timeout` when it says
    /// nothing, `upstream_error` with its own words.
    async fn message(&self, note: Note) -> Result<(), Failure> {
        let (answer, answered) = oneshot::channel();
        let Note {
            agent,
            text,
            wake,
            key,
        } = note;
        let id = self.ask(
            |open, id| {
                open.messages.insert(id, answer);
            },
            |id| FromSidecar::Message {
                id,
                agent,
                text,
                wake,
                key,
            },
        )?;
        let answer = timeout(BRIDGE_MESSAGE_TIMEOUT, answered).await;
        self.lock().messages.remove(&id);
        match answer {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(error))) => Err(Failure::started(Code::UpstreamError, error)),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(Failure::started(
                Code::Timeout,
                "the gateway did not take the message in time",
            )),
        }
    }

    /// Calls `tool` through the gateway's `/tools/invoke`, in `session` or its main one. Answers with
    /// the gateway's status and JSON body. Dropping the future ends the call there.
    ///
    /// # Errors
    /// `overloaded` and `peer_unreachable` when the gateway cannot be asked, `timeout` when it does not
    /// answer within `limit`.
    pub async fn invoke(
        &self,
        tool: &str,
        args: Value,
        session: Option<String>,
        limit: Duration,
    ) -> Result<(u16, Value), Failure> {
        let (answer, answered) = oneshot::channel();
        let id = self.ask(
            |open, id| {
                open.tools.insert(id, answer);
            },
            |id| FromSidecar::InvokeTool {
                id,
                tool: tool.to_owned(),
                args,
                session_key: session,
                timeout_ms: millis(limit),
            },
        )?;
        let guard = RunGuard::new({
            let bridge = self.clone();
            move || {
                if bridge.lock().tools.remove(&id).is_some() {
                    bridge.voice.say(&FromSidecar::AbortTool { id });
                }
            }
        });
        let answer = timeout(limit, answered).await;
        drop(guard);
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Failure::started(
                Code::OutcomeUnknown,
                "the gateway ended while the tool was under way",
            )),
            Err(_) => Err(Failure::started(
                Code::Timeout,
                "the tool did not answer in time",
            )),
        }
    }

    /// Takes what the shim says of a run, a message or a tool; gives back what is none of it.
    pub fn heard(&self, message: ToSidecar) -> Option<ToSidecar> {
        match message {
            ToSidecar::RunStarted { id } => {
                let begun = self.lock().runs.get_mut(&id).and_then(|r| r.begun.take());
                if let Some(begun) = begun {
                    begun();
                }
            }
            ToSidecar::RunDelta { id, text } => {
                if let Some(record) = self.record(id) {
                    record.delta(&text);
                }
            }
            ToSidecar::RunTool {
                id,
                name,
                phase,
                failed,
            } => {
                let phase = match phase {
                    ToolPhase::Start => Phase::Start,
                    ToolPhase::End => Phase::End,
                };
                if let Some(record) = self.record(id) {
                    record.tool(ToolUse {
                        name,
                        phase,
                        failed,
                    });
                }
            }
            ToSidecar::RunEnd {
                id,
                outcome,
                text,
                error,
            } => {
                let run = self.lock().runs.remove(&id);
                if let Some(run) = run {
                    run.record.end(ended(outcome, &text, error));
                }
            }
            ToSidecar::MessageDone { id, error } => {
                if let Some(asker) = self.lock().messages.remove(&id) {
                    // Whoever asked may have given up.
                    let _ = asker.send(error);
                }
            }
            ToSidecar::ToolResult { id, status, body } => {
                if let Some(asker) = self.lock().tools.remove(&id) {
                    // As above.
                    let _ = asker.send((status, body));
                }
            }
            other @ (ToSidecar::Config { .. } | ToSidecar::Providers { .. } | ToSidecar::Drain) => {
                return Some(other);
            }
        }
        None
    }

    /// The gateway is gone: everything it worked on has ended.
    pub fn gateway_gone(&self) {
        let runs = {
            let mut open = self.lock();
            open.gone = true;
            open.messages.clear();
            open.tools.clear();
            std::mem::take(&mut open.runs)
        };
        for run in runs.into_values() {
            run.record.end(Ended::failed(Failure::started(
                Code::OutcomeUnknown,
                "the gateway ended while the agent was at work; what it had done stands",
            )));
        }
    }

    fn record(&self, id: u64) -> Option<Record> {
        self.lock().runs.get(&id).map(|run| run.record.clone())
    }
}

impl AgentRunner for Bridge {
    fn start(&self, run: AgentRun, record: Record, begun: Begun) -> Result<RunGuard, Failure> {
        let running = Running {
            record,
            begun: Some(begun),
        };
        let id = self.ask(
            |open, id| {
                open.runs.insert(id, running);
            },
            |id| FromSidecar::RunAgent {
                id,
                agent: run.agent,
                session_key: run.session_key,
                session_id: run.session_id,
                prompt: run.prompt,
                tools: run.tools,
                timeout_ms: millis(run.timeout),
            },
        )?;
        let bridge = self.clone();
        Ok(RunGuard::new(move || {
            // Its entry stays until the shim says that the run has ended.
            if bridge.lock().runs.contains_key(&id) {
                bridge.voice.say(&FromSidecar::AbortRun { id });
            }
        }))
    }
}

impl Courier for Bridge {
    fn deliver(
        &self,
        note: Note,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + '_>> {
        Box::pin(self.message(note))
    }
}

impl ToolRunner for Bridge {
    fn invoke<'a>(&'a self, tool: &'a str, args: Value, limit: Duration) -> Invoking<'a> {
        Box::pin(Self::invoke(self, tool, args, None, limit))
    }
}

fn ended(outcome: RunOutcome, text: &str, error: Option<String>) -> Ended {
    let said = error.unwrap_or_else(|| "the agent gave no reason".to_owned());
    let failure = match outcome {
        RunOutcome::Completed => return Ended::answered(text),
        RunOutcome::Refused => Failure::not_started(Code::AgentNotFound, said),
        RunOutcome::Failed => Failure {
            // The agent may have done something: nobody is to repeat it unasked.
            retryable: false,
            ..Failure::started(Code::UpstreamError, said)
        },
        RunOutcome::Cancelled => Failure::started(Code::Cancelled, "the run was aborted"),
    };
    Ended {
        result: text.to_owned(),
        ..Ended::failed(failure)
    }
}

fn gone() -> Failure {
    Failure::not_started(Code::PeerUnreachable, "the gateway of the node is gone")
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::handoff::record::Outcome;

    fn run() -> AgentRun {
        AgentRun {
            agent: "main".into(),
            session_key: "agent:main:clawmatrix:home:s".into(),
            session_id: "id".into(),
            prompt: "do it".into(),
            tools: Some(vec!["read".into()]),
            timeout: Duration::from_secs(60),
        }
    }

    async fn said(lines: &mut mpsc::Receiver<String>) -> Value {
        serde_json::from_str(&lines.recv().await.unwrap()).unwrap()
    }

    fn hear(bridge: &Bridge, message: Value) {
        let message = serde_json::from_value(message).unwrap();
        assert!(bridge.heard(message).is_none());
    }

    #[tokio::test]
    async fn a_run_writes_its_record() {
        let (voice, mut lines) = Voice::recorded();
        let bridge = Bridge::new(voice);
        let record = Record::new();
        let (begun, began) = oneshot::channel();
        let begun: Begun = Box::new(move || begun.send(()).unwrap());
        let guard = bridge.start(run(), record.clone(), begun).unwrap();
        let asked = said(&mut lines).await;
        assert_eq!(asked["type"], "run_agent");
        assert_eq!(asked["sessionKey"], "agent:main:clawmatrix:home:s");
        assert_eq!(asked["tools"], serde_json::json!(["read"]));
        let id = asked["id"].as_u64().unwrap();
        hear(
            &bridge,
            serde_json::json!({"type": "run_started", "id": id}),
        );
        began.await.unwrap();
        for message in [
            serde_json::json!({"type": "run_delta", "id": id, "text": "he"}),
            serde_json::json!({"type": "run_tool", "id": id, "name": "read", "phase": "start"}),
            serde_json::json!({"type": "run_delta", "id": id, "text": "llo"}),
            serde_json::json!({"type": "run_delta", "id": id + 1, "text": "stranger"}),
            serde_json::json!({"type": "run_end", "id": id, "outcome": "completed", "text": "hello"}),
        ] {
            hear(&bridge, message);
        }
        assert_eq!(record.text(), "hello");
        let ended = record.finished().await;
        assert_eq!(
            (ended.outcome, &*ended.result),
            (Outcome::Completed, "hello")
        );
        drop(guard);
        assert!(
            lines.try_recv().is_err(),
            "a run that has ended is not aborted"
        );
    }

    #[tokio::test]
    async fn a_dropped_run_is_aborted_once() {
        let (voice, mut lines) = Voice::recorded();
        let bridge = Bridge::new(voice);
        let record = Record::new();
        let guard = bridge
            .start(run(), record.clone(), Box::new(|| {}))
            .unwrap();
        let id = said(&mut lines).await["id"].clone();
        drop(guard);
        let abort = said(&mut lines).await;
        assert_eq!((&abort["type"], &abort["id"]), (&"abort_run".into(), &id));
        let end = serde_json::json!({"type": "run_end", "id": id, "outcome": "cancelled"});
        hear(&bridge, end);
        assert_eq!(record.finished().await.outcome, Outcome::Cancelled);
    }

    #[tokio::test]
    async fn a_refused_run_never_began() {
        let (voice, mut lines) = Voice::recorded();
        let bridge = Bridge::new(voice);
        let record = Record::new();
        let _guard = bridge
            .start(run(), record.clone(), Box::new(|| {}))
            .unwrap();
        let id = said(&mut lines).await["id"].clone();
        let end = serde_json::json!({"type": "run_end", "id": id, "outcome": "refused", "error": "no such agent"});
        hear(&bridge, end);
        let ended = record.finished().await;
        assert_eq!(ended.outcome, Outcome::NotDispatched);
        assert_eq!(ended.failure.as_ref().unwrap().message, "no such agent");
    }

    #[tokio::test]
    async fn tools_and_messages_are_answered_by_id() {
        let (voice, mut lines) = Voice::recorded();
        let bridge = Bridge::new(voice);
        let shim = async {
            let asked = said(&mut lines).await;
            assert_eq!(
                (&asked["type"], &asked["tool"]),
                (&"invoke_tool".into(), &"web_fetch".into())
            );
            let answer = serde_json::json!({"type": "tool_result", "id": asked["id"], "status": 404, "body": {"x": 1}});
            hear(&bridge, answer);
            let asked = said(&mut lines).await;
            assert_eq!(
                (&asked["type"], &asked["wake"]),
                (&"message".into(), &true.into())
            );
            hear(
                &bridge,
                serde_json::json!({"type": "message_done", "id": asked["id"], "error": "no such agent"}),
            );
        };
        let asker = async {
            let limit = Duration::from_secs(5);
            let answer = bridge
                .invoke("web_fetch", Value::Null, None, limit)
                .await
                .unwrap();
            assert_eq!(answer, (404, serde_json::json!({"x": 1})));
            let note = Note {
                agent: "main".into(),
                text: "hi".into(),
                wake: true,
                key: "k".into(),
            };
            let refused = bridge.message(note).await.unwrap_err();
            assert_eq!(refused.message, "no such agent");
        };
        tokio::join!(shim, asker);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tool_nobody_waits_for_is_aborted() {
        let (voice, mut lines) = Voice::recorded();
        let bridge = Bridge::new(voice);
        let limit = Duration::from_secs(5);
        let late = bridge
            .invoke("slow", Value::Null, None, limit)
            .await
            .unwrap_err();
        assert_eq!(late.code, Code::Timeout);
        assert_eq!(said(&mut lines).await["type"], "invoke_tool");
        assert_eq!(said(&mut lines).await["type"], "abort_tool");
    }

    #[tokio::test]
    async fn a_gateway_that_is_gone_ends_everything() {
        let (voice, _lines) = Voice::recorded();
        let bridge = Bridge::new(voice);
        let record = Record::new();
        let _guard = bridge
            .start(run(), record.clone(), Box::new(|| {}))
            .unwrap();
        bridge.gateway_gone();
        assert_eq!(record.finished().await.outcome, Outcome::OutcomeUnknown);
        let again = bridge
            .start(run(), Record::new(), Box::new(|| {}))
            .unwrap_err();
        assert_eq!(again.code, Code::PeerUnreachable);
    }

    #[tokio::test]
    async fn what_waits_for_the_gateway_is_bounded() {
        let (voice, mut lines) = Voice::recorded();
        let bridge = Bridge::new(voice);
        let mut guards = Vec::new();
        for _ in 0..BRIDGE_REQUESTS {
            guards.push(bridge.start(run(), Record::new(), Box::new(|| {})).unwrap());
            lines.recv().await.unwrap();
        }
        let full = bridge
            .start(run(), Record::new(), Box::new(|| {}))
            .unwrap_err();
        assert_eq!(full.code, Code::Overloaded);
    }
}
