//! Finds out what a request would really touch, and judges that. Changes nothing.

use std::sync::Arc;

use super::{
    Rules, ToolService, name_of,
    work::{Work, on_disk},
};
use crate::{
    policy::{EXEC, EXEC_SHELL, Effect, Request, Resource, Subject, Verdict},
    tools::{
        args::{Call, Exec},
        host::{
            command::{self, Wanted},
            place::{Last, Place, Refusal, missing},
        },
    },
    wire::code::Failure,
};

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
pub(super) struct Judged {
    pub(super) verdict: Verdict,
    pub(super) work: Result<Work, Failure>,
}

impl ToolService {
    /// Finds out what a request would touch, and judges that.
    pub(super) async fn look(
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
    pub(in crate::tools) async fn look_only(
        &self,
        subject: &Subject,
        call: &Call,
        agent: bool,
    ) -> (Verdict, Option<Failure>) {
        let judged = self.look(&self.rules(), subject, call, agent).await;
        (judged.verdict, judged.work.err())
    }
}
