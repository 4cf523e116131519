//! Another node wants a tool of ours: judged first, recorded before it begins, run, told as it goes.
//!
//! Requests of this node for itself take the same way: an agent of ours gets no right here that its own
//! gateway did not give it.

mod gate;

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use serde_json::{Value, json, value::RawValue};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    EVENTS, Event, Finished, Running, ToolRunner,
    args::{Call, Exec, ToolReq, invalid},
    frames,
    host::{
        command::{self, Commands, Ready, Surroundings, Wanted},
        denied::Denied,
        exec::{self, Started},
        files,
        place::{Last, Place, Places, Refusal, missing},
        running::Register,
    },
    quota::{Counts, Slot},
};
use crate::{
    approvals::Desk,
    audit::{Audit, Entry},
    budgets::Budgets,
    config::ToolConfig,
    drain::Tasks,
    exchange::{BodyReader, Chain, End, InboundHandler, Incoming, Reply},
    ids::{NodeId, RequestId},
    mesh::session::Peer,
    policy::{EXEC, EXEC_SHELL, Effect, Policy, Quota, Request, Resource, Subject, Verdict},
    wire::{
        code::{Code, Failure},
        limits::{TOOL_DEADLINE, TOOL_FILE_BYTES, TOOL_FRAME_BYTES},
    },
};

/// What a node says of its own tags; they can only deny.
pub type TagsOf = Arc<dyn Fn(&NodeId) -> Vec<String> + Send + Sync>;

/// What the tools of a node are made of.
pub struct Parts {
    /// Ourselves.
    pub node: NodeId,
    /// The policy and its limits.
    pub config: ToolConfig,
    /// Files nobody opens, beside those of every account.
    pub denied: Vec<PathBuf>,
    /// Folders among them that are free.
    pub free: Vec<PathBuf>,
    /// Runs what is not ours.
    pub gateway: Option<Arc<dyn ToolRunner>>,
    /// Tags of callers.
    pub tags: TagsOf,
    /// What rules let callers have.
    pub budgets: Budgets,
    /// Where running commands are written down.
    pub running: Register,
    /// Where it is recorded.
    pub audit: Audit,
    /// Where requests wait for a person.
    pub desk: Desk,
    /// Runs them.
    pub tasks: Tasks,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// One request for a tool of this node.
#[derive(Debug)]
pub struct Ask {
    /// Who asks.
    pub caller: Peer,
    /// Names it.
    pub rid: RequestId,
    /// The tool.
    pub call: Call,
    /// Content, for tools that have some.
    pub body: Bytes,
    /// Whether a model asks, as the caller says.
    pub agent: bool,
    /// What is recorded of its arguments, as a hash.
    pub json: Bytes,
}

/// Runs tools; cheap to clone.
#[derive(Clone)]
pub struct ToolService(Arc<Inner>);

impl std::fmt::Debug for ToolService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ToolService")
    }
}

struct Inner {
    parts: Parts,
    /// Replaced as a whole by a new configuration.
    rules: RwLock<Arc<Rules>>,
    around: Surroundings,
    counts: Counts,
    /// The node ends.
    ending: CancellationToken,
}

/// What a configuration says.
#[derive(Debug)]
struct Rules {
    policy: Policy,
    places: Places,
    output_bytes: usize,
    commands: Commands,
}

/// What is done once it is allowed.
enum Work {
    /// And the command itself, where it waits for the word to begin.
    Exec(Ready, Option<Box<Started>>),
    Read(super::args::Read, Place),
    Write(String, Place),
    Edit(super::args::Edit, Place),
    List(String, Place),
    Other(String, Value),
}

/// What is judged of a request.
struct Asked<'a> {
    subject: &'a Subject,
    call: &'a Call,
    agent: bool,
}

impl Asked<'_> {
    fn verdict(&self, rules: &Rules, tool: &str, resource: Resource<'_>) -> Verdict {
        rules.policy.judge(
            self.subject,
            Request {
                tool,
                resource,
                agent: self.agent,
            },
        )
    }
}

/// A request that was judged.
struct Judged {
    verdict: Verdict,
    work: Result<Work, Failure>,
}

impl InboundHandler for ToolService {
    fn handle(&self, incoming: Incoming) {
        let this = self.clone();
        self.0
            .parts
            .tasks
            .spawn(async move { this.answer(incoming).await });
    }
}

impl ToolService {
    /// The tools of a node.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let around = Surroundings::of_process();
        let denied = Denied::new(around.home(), &parts.denied).but(parts.free.clone());
        let rules = rules_of(&parts.config, &around, denied);
        let budgets = parts.budgets.clone();
        Self(Arc::new(Inner {
            parts,
            rules: RwLock::new(Arc::new(rules)),
            around,
            counts: Counts::new(budgets),
            ending: CancellationToken::new(),
        }))
    }

    /// Puts another policy in force; what runs goes on.
    pub fn set_config(&self, config: &ToolConfig) {
        let mut rules = self.0.rules.write().unwrap_or_else(PoisonError::into_inner);
        let denied = rules.places.denied.clone();
        *rules = Arc::new(rules_of(config, &self.0.around, denied));
    }

    /// The node ends: whoever waits for a tool is told so, and the tools end.
    pub fn end_all(&self) {
        self.0.ending.cancel();
    }

    /// What one caller may do; for people who ask (`can`).
    #[must_use]
    pub fn judge(&self, subject: &Subject, request: Request<'_>) -> Verdict {
        self.rules().policy.judge(subject, request)
    }

    /// What rules let one caller have, by their names.
    #[must_use]
    pub fn quotas(&self) -> Vec<(Arc<str>, Quota)> {
        let rules = self.rules();
        let quotas = rules.policy.quotas();
        quotas.map(|(rule, quota)| (rule.clone(), quota)).collect()
    }

    fn rules(&self) -> Arc<Rules> {
        let rules = self.0.rules.read().unwrap_or_else(PoisonError::into_inner);
        rules.clone()
    }

    async fn answer(&self, incoming: Incoming) {
        let Incoming {
            caller,
            rid,
            json,
            body_bytes,
            mut body,
            reply,
            deadline,
            ..
        } = incoming;
        let begun = async {
            let request: ToolReq<'_> =
                serde_json::from_slice(&json).map_err(|_| invalid("not a request for a tool"))?;
            Chain::arrived(&request.hops, &self.0.parts.node, deadline)?;
            if !self.rules().policy.enabled() {
                // Before anything is read: what is refused costs nothing.
                let subject = Subject::of(&caller, Vec::new());
                let nothing = Request {
                    tool: &request.tool,
                    resource: Resource::None,
                    agent: false,
                };
                let verdict = self.judge(&subject, nothing);
                let refused = self.refusal(&request.tool, &verdict);
                let entry = Entry::new(&caller, rid, &action(&request.tool), &json);
                self.0
                    .parts
                    .audit
                    .record(entry.ruled(&verdict.rule, 0).failed(&refused));
                return Err(refused);
            }
            if body_bytes > TOOL_FILE_BYTES as u64 {
                return Err(Failure::not_started(
                    Code::PayloadTooLarge,
                    format!("a file is written up to {TOOL_FILE_BYTES} bytes"),
                ));
            }
            let agent = request.actor.as_deref() == Some("agent");
            let call = Call::read(&request.tool, request.args)?;
            let body = read(&mut body, body_bytes).await?;
            self.begin(Ask {
                caller: caller.clone(),
                rid,
                call,
                body,
                agent,
                json: json.clone(),
            })
            .await
        };
        let Some(begun) = reply.unless_cancelled(begun).await else {
            return;
        };
        match begun {
            Ok(running) => tell(running, reply, &self.0.ending).await,
            Err(failure) => {
                tracing::info!(request = ?rid, peer = %caller.node, code = failure.code.as_str(), "tool refused");
                reply.fail(failure);
            }
        }
    }

    /// Judges a request, records it, and begins.
    ///
    /// # Errors
    /// `policy_denied`, `invalid_request`, `not_found`, `overloaded`, `rate_limited`,
    /// `budget_exceeded`, `audit_unavailable`; nothing was done.
    pub async fn begin(&self, ask: Ask) -> Result<Running, Failure> {
        let parts = &self.0.parts;
        let name = name_of(&ask.call).to_owned();
        let entry = Entry::new(&ask.caller, ask.rid, &action(&name), &ask.json);
        let mut slot = self.0.counts.enter(ask.caller.key).inspect_err(|failure| {
            parts.audit.record(entry.clone().failed(failure));
        })?;
        let rules = self.rules();
        let tags = (parts.tags)(&ask.caller.node);
        let subject = Subject::of(&ask.caller, tags);
        let judged = self.look(&rules, &subject, &ask.call, ask.agent).await;
        let entry = entry.ruled(&judged.verdict.rule, judged.verdict.level);
        let begun = async {
            let verdict = &judged.verdict;
            if verdict.effect == Effect::Deny {
                return Err(self.refusal(&name, verdict));
            }
            let mut work = judged.work?;
            if !verdict.runs() {
                // A person may take minutes: others may use the place meanwhile.
                drop(slot);
                let parked = self.park(ask, subject, verdict, &work, entry.clone())?;
                return Ok(self.wait(parked));
            }
            self.admit(&mut slot, verdict, &ask, &mut work, &entry)
                .await?;
            Ok(self.run(&rules, ask, work, slot, entry.clone()))
        };
        begun.await.inspect_err(|failure| {
            parts.audit.record(entry.clone().failed(failure));
        })
    }

    /// Counts a request that may happen, and records it. A command that can wait for the word is started
    /// meanwhile.
    async fn admit(
        &self,
        slot: &mut Slot,
        verdict: &Verdict,
        ask: &Ask,
        work: &mut Work,
        entry: &Entry,
    ) -> Result<(), Failure> {
        let bytes = ask.body.len() + ask.json.len();
        slot.charge(&verdict.quota_of, verdict.quota, bytes as u64)?;
        if verdict.level == 0 {
            return Ok(());
        }
        // On the disk before it begins: what cannot be recorded is not done.
        let recorded = self.0.parts.audit.commit(entry.clone());
        let held = async {
            if let Work::Exec(ready, started) = work
                && ready.bounds.helper.is_some()
            {
                // The writer goes first: its thread waits for the disk while we start a program.
                tokio::task::yield_now().await;
                *started = Some(Box::new(self.start(ready)?));
            }
            Ok(())
        };
        let (recorded, held) = tokio::join!(recorded, held);
        recorded.and(held)
    }

    /// Starts a command.
    fn start(&self, ready: &Ready) -> Result<Started, Failure> {
        exec::start(ready, &self.0.parts.running).map_err(|error| {
            Failure::not_started(
                Code::InvalidRequest,
                format!("the command cannot be started: {}", error.kind()),
            )
        })
    }

    /// The rule's name and nothing of its text (protocol 7.5).
    fn refusal(&self, tool: &str, verdict: &Verdict) -> Failure {
        let hint = if verdict.rule.as_ref() == crate::policy::DISABLED {
            ": that node lends no tools"
        } else {
            ""
        };
        Failure::not_started(
            Code::PolicyDenied,
            format!(
                "tool `{tool}` is denied on node `{}` by `{}`{hint}",
                self.0.parts.node, verdict.rule
            ),
        )
    }

    /// Finds out what a request would touch, and judges that.
    async fn look(
        &self,
        rules: &Arc<Rules>,
        subject: &Subject,
        call: &Call,
        agent: bool,
    ) -> Judged {
        let asked = Asked {
            subject,
            call,
            agent,
        };
        let ask = &asked;
        match call {
            Call::Exec(exec) => self.look_at_command(rules, ask, exec),
            Call::Read(read) => {
                let read = read.clone();
                let path = read.path.clone();
                self.look_at_file(rules, ask, path, Last::Follow, |_, place| {
                    Work::Read(read, place)
                })
                .await
            }
            Call::List(list) => {
                let path = list.path.clone();
                self.look_at_file(rules, ask, path, Last::Follow, Work::List)
                    .await
            }
            Call::Write(write) => {
                let path = write.path.clone();
                self.look_at_file(rules, ask, path, Last::Keep, Work::Write)
                    .await
            }
            Call::Edit(edit) => {
                let edit = edit.clone();
                let path = edit.path.clone();
                self.look_at_file(rules, ask, path, Last::Keep, |_, place| {
                    Work::Edit(edit, place)
                })
                .await
            }
            Call::Other(tool, args) => Judged {
                verdict: ask.verdict(rules, tool, Resource::None),
                work: Ok(Work::Other(tool.clone(), args.clone())),
            },
        }
    }

    fn look_at_command(&self, rules: &Rules, ask: &Asked<'_>, exec: &Exec) -> Judged {
        let wanted = command::wanted(exec, &rules.policy, &self.0.around);
        let verdict = match &wanted {
            Ok(Wanted::Shell(text)) => {
                let tool = if rules.policy.splits() {
                    EXEC_SHELL
                } else {
                    EXEC
                };
                ask.verdict(rules, tool, Resource::Text(text))
            }
            Ok(Wanted::Program(path, argv)) => {
                let path = path.to_string_lossy();
                ask.verdict(rules, EXEC, Resource::Program { path: &path, argv })
            }
            // Whoever may not run it does not learn whether it is there.
            Err(_) => {
                let argv = exec.argv.clone().unwrap_or_default();
                let path = argv.first().map_or("", String::as_str);
                ask.verdict(rules, EXEC, Resource::Program { path, argv: &argv })
            }
        };
        let work = wanted.and_then(|wanted| {
            let (places, around) = (&rules.places, &self.0.around);
            command::ready(exec, wanted, &verdict, places, around, &rules.commands)
        });
        Judged {
            verdict,
            work: work.map(|ready| Work::Exec(ready, None)),
        }
    }

    async fn look_at_file(
        &self,
        rules: &Arc<Rules>,
        ask: &Asked<'_>,
        path: String,
        last: Last,
        work: impl FnOnce(String, Place) -> Work,
    ) -> Judged {
        let name = name_of(ask.call);
        let found = on_disk({
            let (rules, path) = (rules.clone(), path.clone());
            move || Ok(rules.places.locate(&path, last))
        })
        .await
        .unwrap_or_else(|failure| Err(Refusal::Wrong(failure.message)));
        // Where nothing can be looked at, the words of the caller are judged.
        let real = found.as_ref().map_or_else(
            |_| path.clone(),
            |place| place.real.to_string_lossy().into_owned(),
        );
        let mut verdict = ask.verdict(rules, name, Resource::Path(&real));
        if let (Err(Refusal::Rule(rule)), Effect::Allow) = (&found, verdict.effect) {
            verdict.rule = (*rule).into();
        }
        let absent = last == Last::Follow || matches!(ask.call, Call::Edit(_));
        let work = match found {
            Err(refusal) => Err(refusal.failure(&path)),
            Ok(place) if absent && !place.exists => Err(missing(&path)),
            Ok(place) => Ok(work(path, place)),
        };
        Judged { verdict, work }
    }

    /// The same search and the same judge, and nothing else.
    pub(super) async fn look_only(
        &self,
        subject: &Subject,
        call: &Call,
        agent: bool,
    ) -> (Verdict, Option<Failure>) {
        let judged = self.look(&self.rules(), subject, call, agent).await;
        (judged.verdict, judged.work.err())
    }

    /// Runs what is allowed in a task of its own.
    fn run(&self, rules: &Arc<Rules>, ask: Ask, work: Work, slot: Slot, entry: Entry) -> Running {
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
    async fn finish(
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

fn rules_of(config: &ToolConfig, around: &Surroundings, denied: Denied) -> Rules {
    Rules {
        policy: config.policy.clone(),
        places: Places {
            roots: config.roots.clone(),
            home: around.home().to_owned(),
            denied,
        },
        output_bytes: config.max_output_bytes,
        commands: config.commands.clone(),
    }
}

fn name_of(call: &Call) -> &str {
    match call {
        Call::Exec(_) => EXEC,
        Call::Read(_) => crate::policy::READ,
        Call::Write(_) => crate::policy::WRITE,
        Call::Edit(_) => crate::policy::EDIT,
        Call::List(_) => crate::policy::LIST,
        Call::Other(name, _) => name,
    }
}

fn action(tool: &str) -> String {
    let tool: String = tool
        .chars()
        .take(128)
        .flat_map(char::escape_debug)
        .collect();
    format!("tool:{tool}")
}

async fn read(body: &mut BodyReader, body_bytes: u64) -> Result<Bytes, Failure> {
    let expected = usize::try_from(body_bytes).unwrap_or(0);
    let mut all = Vec::with_capacity(expected.min(TOOL_FILE_BYTES));
    while let Some(data) = body.next().await? {
        all.extend_from_slice(&data);
    }
    Ok(all.into())
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
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(Failure::started(
            Code::Internal,
            "the node failed while it worked on the file",
        ))
    })
}

/// Sends what a tool tells to whoever asked; a short answer in one record. Gone with him, the tool
/// ends.
async fn tell(mut running: Running, mut reply: Reply, ending: &CancellationToken) {
    let mut headed = false;
    loop {
        let event = tokio::select! {
            biased;
            event = running.events.recv() => event,
            // `running` is dropped, and the tool with it.
            _ = reply.cancelled() => return,
            () = ending.cancelled() => {
                reply.fail(Failure::started(
                    Code::Cancelled,
                    "the node is shutting down and has ended the tool; what it did until then stands",
                ));
                return;
            }
        };
        let Some(event) = event else { return };
        let sent = match (event, headed) {
            (Event::End(Err(failure)), _) => {
                reply.fail(failure);
                return;
            }
            (Event::End(Ok(finished)), false) => {
                // Nothing can be done for a node that is gone.
                let _ = reply
                    .head(200, "{}", Bytes::new(), Some(end(&finished)))
                    .await;
                return;
            }
            (Event::End(Ok(finished)), true) => {
                let _ = reply.end(end(&finished)).await;
                return;
            }
            (Event::Waits(left), _) => {
                if reply.waits(left).await.is_err() {
                    return;
                }
                continue;
            }
            (Event::GoesOn, _) => {
                if reply.accept().await.is_err() {
                    return;
                }
                continue;
            }
            (event, headed) => match frames::encode(&event) {
                None => continue,
                Some(data) if headed => reply.chunk(data, None).await,
                Some(data) => reply.head(200, "{}", data, None).await,
            },
        };
        if sent.is_err() {
            return;
        }
        headed = true;
    }
}

fn end(finished: &Finished) -> End {
    End {
        ok: finished.failure.is_none(),
        usage: None,
        result: RawValue::from_string(finished.result.to_string()).ok(),
    }
}
