//! Another node wants a tool of ours: judged first, recorded before it begins, run, told as it goes.
//!
//! Requests of this node for itself take the same way: an agent of ours gets no right here that its own
//! gateway did not give it.

mod gate;
mod look;
mod tell;
mod work;

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use self::{tell::tell, work::Work};
use super::{
    Running, ToolRunner,
    args::{Call, ToolReq, invalid},
    host::{
        command::{Commands, Surroundings},
        denied::Denied,
        place::Places,
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
    exchange::{BodyReader, Chain, InboundHandler, Incoming},
    ids::{NodeId, RequestId},
    mesh::session::Peer,
    policy::{EXEC, Effect, Policy, Quota, Request, Resource, Subject, Verdict},
    wire::{
        code::{Code, Failure},
        limits::TOOL_FILE_BYTES,
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
