//! Does what is allowed, in a task of its own that tells what it does.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Ask, Rules, ToolService};
use crate::{
    audit::Entry,
    tools::{
        EVENTS, Event, Finished, Running,
        args::{Edit, Read},
        host::{
            command::Ready,
            exec::{self, Started},
            files,
            place::Place,
        },
        quota::Slot,
    },
    wire::{
        code::{Code, Failure},
        limits::{TOOL_DEADLINE, TOOL_FRAME_BYTES},
    },
};

/// What is done once it is allowed.
pub(super) enum Work {
    /// And the command itself, where it waits for the word to begin.
    Exec(Ready, Option<Box<Started>>),
    Read(Read, Place),
    Write(String, Place),
    Edit(Edit, Place),
    List(String, Place),
    Other(String, Value),
}

impl ToolService {
    /// Starts a command.
    pub(super) fn start(&self, ready: &Ready) -> Result<Started, Failure> {
        exec::start(ready, &self.0.parts.running).map_err(|error| {
            Failure::not_started(
                Code::InvalidRequest,
                format!("the command cannot be started: {}", error.kind()),
            )
        })
    }

    /// Runs what is allowed in a task of its own.
    pub(super) fn run(
        &self,
        rules: &Arc<Rules>,
        ask: Ask,
        work: Work,
        slot: Slot,
        entry: Entry,
    ) -> Running {
        let (sender, events) = mpsc::channel(EVENTS);
        let stop = CancellationToken::new();
        let running = Running {
            events,
            stop: stop.clone().drop_guard(),
        };
        let (this, rules) = (self.clone(), rules.clone());
        // At the latest the end of the node ends it.
        self.0.parts.tasks.spawn(async move {
            this.finish(&rules, ask, work, slot, entry, &sender, &stop)
                .await;
        });
        running
    }

    /// Runs what is allowed to its end.
    #[expect(
        clippy::too_many_arguments,
        reason = "what a run is made of, in two callers"
    )]
    pub(super) async fn finish(
        &self,
        rules: &Arc<Rules>,
        ask: Ask,
        work: Work,
        mut slot: Slot,
        entry: Entry,
        sender: &mpsc::Sender<Event>,
        stop: &CancellationToken,
    ) {
        let (rid, peer) = (ask.rid, ask.caller.node.clone());
        let ended = self.work(rules, ask, work, sender, stop).await;
        slot.told(ended.as_ref().map_or(0, |finished| finished.told));
        drop(slot);
        let result = match &ended {
            Ok(Finished { failure: None, .. }) if stop.is_cancelled() => "cancelled",
            Ok(Finished { failure: None, .. }) => "completed",
            Ok(Finished {
                failure: Some(failure),
                ..
            })
            | Err(failure) => failure.code.as_str(),
        };
        tracing::info!(request = ?rid, %peer, result, "tool of this node ended");
        self.0.parts.audit.record(entry.ended(result));
        // Whoever asked may have gone.
        let _ = sender.send(Event::End(ended)).await;
    }

    async fn work(
        &self,
        rules: &Arc<Rules>,
        ask: Ask,
        work: Work,
        events: &mpsc::Sender<Event>,
        stop: &CancellationToken,
    ) -> Result<Finished, Failure> {
        let most = rules.output_bytes;
        let at = rules.clone();
        match work {
            Work::Exec(ready, held) => {
                let started = match held {
                    Some(started) => *started,
                    None => self.start(&ready)?,
                };
                started.follow(events, stop, most).await
            }
            Work::Read(read, place) => {
                let (about, content) =
                    on_disk(move || files::read(&at.places, &place.real, &read, most)).await?;
                let told = tell_body(events, content).await;
                Ok(Finished::well(about, told))
            }
            Work::Write(path, place) => {
                let work = move || files::write(&at.places, &place, &path, &ask.body);
                let about = on_disk(work).await?;
                Ok(Finished::well(about, 0))
            }
            Work::Edit(edit, place) => {
                let work = move || files::edit(&at.places, &place, &edit, &ask.body);
                let about = on_disk(work).await?;
                Ok(Finished::well(about, 0))
            }
            Work::List(path, place) => {
                let listed = on_disk(move || files::list(&place.real, &path)).await?;
                let told = tell_body(events, listed.to_string().into()).await;
                Ok(Finished::well(json!({}), told))
            }
            Work::Other(tool, args) => {
                let result = tokio::select! {
                    biased;
                    () = stop.cancelled() => return Err(Failure::started(
                        Code::Cancelled,
                        "the tool was cancelled; what it did until then stands",
                    )),
                    result = self.forward(&tool, args) => result?,
                };
                let text = result.to_string();
                if text.len() > most {
                    return Err(Failure::started(
                        Code::PayloadTooLarge,
                        format!(
                            "tool `{tool}` answered with more than {most} bytes; what it did stands"
                        ),
                    ));
                }
                let told = tell_body(events, text.into()).await;
                Ok(Finished::well(json!({}), told))
            }
        }
    }

    /// Lets the gateway run a tool, and puts its refusals into our words.
    async fn forward(&self, tool: &str, args: Value) -> Result<Value, Failure> {
        let parts = &self.0.parts;
        let Some(gateway) = &parts.gateway else {
            return Err(Failure::not_started(
                Code::NotFound,
                format!(
                    "node `{}` has no tool `{tool}`: no OpenClaw gateway runs there; it has exec, read, write, edit and list",
                    parts.node
                ),
            ));
        };
        let (status, mut body) = gateway.invoke(tool, args, TOOL_DEADLINE).await?;
        if status == 200 {
            return Ok(body.get_mut("result").map(Value::take).unwrap_or(body));
        }
        let said = body["error"]["message"]
            .as_str()
            .unwrap_or("no reason was given");
        let text = format!(
            "the gateway of node `{}` answered {status}: {said}",
            parts.node
        );
        Err(match status {
            404 => Failure::not_started(
                Code::NotFound,
                format!(
                    "{text}. OpenClaw lends no tool of that name over HTTP: its own exec, read, write, edit and process never; \
others once `gateway.tools.allow` of that node names them"
                ),
            ),
            401 | 403 => Failure::not_started(Code::PolicyDenied, text),
            400..=499 => Failure::not_started(Code::InvalidRequest, text),
            // It may have begun.
            _ => Failure {
                retryable: false,
                ..Failure::started(Code::UpstreamError, text)
            },
        })
    }
}

/// Tells a content in pieces, and how long it was.
async fn tell_body(events: &mpsc::Sender<Event>, content: Bytes) -> u64 {
    let bytes = content.len() as u64;
    let mut rest = content;
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(TOOL_FRAME_BYTES));
        if events.send(Event::Body(piece)).await.is_err() {
            break;
        }
    }
    bytes
}

/// Works on files in a thread that may block.
pub(super) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(Failure::started(
            Code::Internal,
            "the node failed while it worked on the file",
        ))
    })
}
