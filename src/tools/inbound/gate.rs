//! Requests that wait for a person (protocol 8.4): parked when the rules want one, run when one with an
//! operator key agrees to exactly what was asked.
//!
//! While it waits a request holds no place among the running tools, its time stands still, and whoever
//! asked is told so. Agreed to, it is looked at and judged again: what was changed meanwhile, a rule or
//! the file itself, counts.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Ask, Rules, ToolService, action, look::Judged, name_of, work::Work};
use crate::{
    approvals::{Request, Waiting, desk::Outcome},
    audit::Entry,
    policy::{Effect, Subject, Verdict},
    tools::{EVENTS, Event, Running, host::place::Place, quota::Slot},
    wire::{
        code::{Code, Failure},
        limits::APPROVAL_BODY_BYTES,
    },
};

/// A request that is parked.
pub(super) struct Parked {
    ask: Ask,
    subject: Subject,
    touches: Touches,
    level: u8,
    waiting: Waiting,
    entry: Entry,
}

/// What would really be touched.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Touches {
    /// A path, or a program with its arguments.
    words: Vec<String>,
    /// Where a command starts.
    workdir: Option<String>,
}

impl Touches {
    fn of(work: &Work) -> Self {
        let path = |place: &Place| vec![place.real.to_string_lossy().into_owned()];
        let words = match work {
            Work::Exec(ready, _) => {
                let program = ready.program.to_string_lossy().into_owned();
                let arguments = ready.argv.iter().skip(1).cloned();
                std::iter::once(program).chain(arguments).collect()
            }
            Work::Read(_, place)
            | Work::Write(_, place)
            | Work::Edit(_, place)
            | Work::List(_, place) => path(place),
            Work::Other(..) => Vec::new(),
        };
        let workdir = match work {
            Work::Exec(ready, _) => Some(ready.workdir.to_string_lossy().into_owned()),
            Work::Read(..)
            | Work::Write(..)
            | Work::Edit(..)
            | Work::List(..)
            | Work::Other(..) => None,
        };
        Self { words, workdir }
    }
}

#[derive(Deserialize)]
struct Args<'a> {
    #[serde(borrow, default)]
    args: Option<&'a RawValue>,
}

/// The arguments as they came.
fn args_of(json: &[u8]) -> String {
    let read = serde_json::from_slice::<Args<'_>>(json).ok();
    let args = read.and_then(|fields| fields.args);
    args.map_or_else(|| "null".to_owned(), |raw| raw.get().to_owned())
}

impl ToolService {
    /// Parks a request that its rule lets happen with a person's consent only.
    ///
    /// # Errors
    /// `policy_denied` where nobody can consent, `payload_too_large`, `overloaded`.
    pub(super) fn park(
        &self,
        ask: Ask,
        subject: Subject,
        verdict: &Verdict,
        work: &Work,
        entry: Entry,
    ) -> Result<Parked, Failure> {
        let parts = &self.0.parts;
        let name = name_of(&ask.call);
        let desk = &parts.desk;
        if !desk.manned() {
            return Err(Failure::not_started(
                Code::PolicyDenied,
                format!(
                    "tool `{name}` needs a person's approval on node `{}` (rule `{}`), and nobody is enrolled there: its operator runs `clawmatrix approvals enroll`",
                    parts.node, verdict.rule
                ),
            ));
        }
        if ask.body.len() > APPROVAL_BODY_BYTES {
            return Err(Failure::not_started(
                Code::PayloadTooLarge,
                format!("content that waits for a person is up to {APPROVAL_BODY_BYTES} bytes"),
            ));
        }
        let touches = Touches::of(work);
        let request = Request {
            rid: ask.rid,
            from: ask.caller.node.clone(),
            from_key: ask.caller.key,
            to: parts.node.clone(),
            action: action(name),
            args: args_of(&ask.json),
            data: ask.body.clone(),
            level: verdict.level,
            rule: verdict.rule.to_string(),
            touches: touches.words.clone(),
            workdir: touches.workdir.clone(),
            agent: ask.agent,
            asked: 0,
            exp: 0,
        };
        let waiting = desk.ask(request).map_err(|full| {
            Failure::not_started(Code::Overloaded, format!("node `{}`: {full}", parts.node))
        })?;
        tracing::info!(
            approval = %waiting.id(),
            request = ?ask.rid,
            peer = %ask.caller.node,
            tool = name,
            rule = %verdict.rule,
            "a tool waits for a person"
        );
        Ok(Parked {
            ask,
            subject,
            touches,
            level: verdict.level,
            waiting,
            entry,
        })
    }

    /// Waits for the person in a task of its own, and runs what was agreed to. Gone with whoever asked.
    pub(super) fn wait(&self, parked: Parked) -> Running {
        let (sender, events) = mpsc::channel(EVENTS);
        let stop = CancellationToken::new();
        let running = Running {
            events,
            stop: stop.clone().drop_guard(),
        };
        let this = self.clone();
        // Ends with the wait and the tool; the end of the node ends both.
        self.0
            .parts
            .tasks
            .spawn(async move { this.wait_and_work(parked, &sender, &stop).await });
        running
    }

    async fn wait_and_work(
        &self,
        parked: Parked,
        sender: &mpsc::Sender<Event>,
        stop: &CancellationToken,
    ) {
        let Parked {
            ask,
            subject,
            touches,
            level,
            waiting,
            mut entry,
        } = parked;
        let id = waiting.id();
        // Whoever asked may have gone; then `stop` says so.
        let _ = sender.send(Event::Waits(waiting.left())).await;
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            outcome = waiting.decided() => Some(outcome),
        };
        tracing::info!(approval = %id, request = ?ask.rid, ?outcome, "the wait for a person has ended");
        let agreed = match outcome {
            Some(Outcome::Approved(by)) => {
                let rule = format!("{}, approved by {by}", entry.rule());
                entry = entry.ruled(&rule, level);
                self.agreed(&ask, &subject, &touches, level, &entry).await
            }
            Some(Outcome::Denied) => Err(self.unmoved(Code::ApprovalDenied, "said no")),
            Some(Outcome::Expired) => {
                Err(self.unmoved(Code::ApprovalExpired, "did not answer in time"))
            }
            Some(Outcome::Closed) => Err(Failure::not_started(
                Code::ShuttingDown,
                "the node is shutting down; nothing of the request was done",
            )),
            None => Err(Failure::not_started(
                Code::Cancelled,
                "cancelled before a person decided",
            )),
        };
        match agreed {
            Ok((rules, work, slot)) => {
                let _ = sender.send(Event::GoesOn).await;
                self.finish(&rules, ask, work, slot, entry, sender, stop)
                    .await;
            }
            Err(failure) => {
                self.0.parts.audit.record(entry.failed(&failure));
                let _ = sender.send(Event::End(Err(failure))).await;
            }
        }
    }

    /// A person agreed: what counts now is looked at again.
    async fn agreed(
        &self,
        ask: &Ask,
        subject: &Subject,
        touches: &Touches,
        level: u8,
        entry: &Entry,
    ) -> Result<(Arc<Rules>, Work, Slot), Failure> {
        let mut slot = self.0.counts.enter(ask.caller.key)?;
        let rules = self.rules();
        let Judged { verdict, work } = self.look(&rules, subject, &ask.call, ask.agent).await;
        if verdict.effect == Effect::Deny || verdict.level > level {
            return Err(self.refusal(name_of(&ask.call), &verdict));
        }
        let mut work = work?;
        if Touches::of(&work) != *touches {
            return Err(Failure::not_started(
                Code::PolicyDenied,
                format!(
                    "what the request would touch on node `{}` has changed since the person saw it",
                    self.0.parts.node
                ),
            ));
        }
        self.admit(&mut slot, &verdict, ask, &mut work, entry)
            .await?;
        Ok((rules, work, slot))
    }

    fn unmoved(&self, code: Code, what: &str) -> Failure {
        let node = &self.0.parts.node;
        Failure::not_started(
            code,
            format!("the person asked on node `{node}` {what}; nothing of the request was done"),
        )
    }
}
