//! Notices of requests that wait, for a person who sits at no terminal: a text through one of the
//! gateway's own channels.
//!
//! It names who asks for what and where it is decided, and nothing of the contents: a chat is read by
//! others, and kept. It decides nothing, and an answer to it does not either.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::sleep;

use super::{FromSidecar, stdio::Voice};
use crate::{
    approvals::{ApprovalId, Desk, Inbox, Request},
    ids::NodeId,
    wire::limits::{APPROVAL_NOTICE_EVERY, APPROVAL_NOTICE_LINES},
};

/// Where notices go, in the gateway's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    /// A channel of the gateway.
    pub channel: String,
    /// Whom.
    pub to: String,
    /// Which account of the channel, if not its default.
    pub account: Option<String>,
}

/// One request as a notice names it.
#[derive(Debug)]
struct Line {
    id: ApprovalId,
    from: NodeId,
    to: NodeId,
    action: String,
    level: u8,
    left: Duration,
}

impl Line {
    fn new(id: ApprovalId, request: &Request, left: Duration) -> Self {
        Self {
            id,
            from: request.from.clone(),
            to: request.to.clone(),
            action: request.action.clone(),
            level: request.level,
            left,
        }
    }
}

/// Tells of what waits on node `us`, and elsewhere for people here, once each, and not more often than a
/// person can read. Ends with the node.
pub async fn run(us: NodeId, desk: Desk, inbox: Inbox, notify: Notify, voice: Voice) {
    let (mut ours, mut others) = (desk.count(), inbox.count());
    let mut told: BTreeSet<ApprovalId> = BTreeSet::new();
    loop {
        ours.borrow_and_update();
        others.borrow_and_update();
        let waiting = waiting(&desk, &inbox);
        told.retain(|id| waiting.iter().any(|line| line.id == *id));
        let new: Vec<Line> = waiting
            .into_iter()
            .filter(|line| !told.contains(&line.id))
            .collect();
        if !new.is_empty() {
            voice.say(&FromSidecar::Notice {
                channel: notify.channel.clone(),
                to: notify.to.clone(),
                account: notify.account.clone(),
                text: text(&us, &new),
            });
            told.extend(new.iter().map(|line| line.id));
            sleep(APPROVAL_NOTICE_EVERY).await;
            continue;
        }
        tokio::select! {
            changed = ours.changed() => if changed.is_err() { return },
            changed = others.changed() => if changed.is_err() { return },
        }
    }
}

fn waiting(desk: &Desk, inbox: &Inbox) -> Vec<Line> {
    let ours = desk.list().into_iter();
    let ours = ours.map(|(id, request)| Line::new(id, &request, request.left()));
    let others = inbox.list().into_iter();
    let others = others.map(|one| Line::new(one.id, &one.request, one.left));
    ours.chain(others).collect()
}

fn text(us: &NodeId, new: &[Line]) -> String {
    let mut out = String::from("ClawMatrix: a person is asked.\n");
    for line in new.iter().take(APPROVAL_NOTICE_LINES) {
        let Line {
            id,
            from,
            to,
            action,
            level,
            left,
        } = line;
        let seconds = left.as_secs();
        out.push_str(&format!(
            "{id}: node {from} wants {action} on node {to} (level {level}, {seconds} s left)\n"
        ));
    }
    if new.len() > APPROVAL_NOTICE_LINES {
        out.push_str(&format!("and {} more\n", new.len() - APPROVAL_NOTICE_LINES));
    }
    out.push_str(&format!(
        "On node {us}: openclaw clawmatrix approvals show ID, then approve or deny. An answer here decides nothing."
    ));
    out
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::Value;

    use super::*;
    use crate::{approvals::Nodes, crypto::identity::PublicKey, events::Events, ids::RequestId};

    fn request(n: u8) -> Request {
        Request {
            rid: RequestId([n; 16]),
            from: "home".parse().unwrap(),
            from_key: PublicKey([n; 32]),
            to: "office".parse().unwrap(),
            action: "tool:exec".into(),
            args: "{\"command\":\"hidden words\"}".into(),
            data: Bytes::from_static(b"hidden words"),
            level: 2,
            rule: "r".into(),
            touches: vec!["/bin/hidden".into()],
            workdir: None,
            agent: true,
            asked: 0,
            exp: 0,
        }
    }

    fn said(line: &str) -> String {
        let notice: Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            (&notice["type"], &notice["channel"], &notice["to"]),
            (&"notice".into(), &"chat".into(), &"me".into())
        );
        notice["text"].as_str().unwrap().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn each_request_is_told_once_in_bundles_and_without_contents() {
        let desk = Desk::new(&[], Duration::from_secs(60), Events::default());
        let inbox = Inbox::new(Nodes::default(), desk.clone(), Events::default());
        let (voice, mut lines) = Voice::recorded();
        let notify = Notify {
            channel: "chat".into(),
            to: "me".into(),
            account: None,
        };
        let us: NodeId = "office".parse().unwrap();
        let task = run(us, desk.clone(), inbox.clone(), notify, voice);
        let test = async {
            let first = desk.ask(request(1)).unwrap();
            let text = said(&lines.recv().await.unwrap());
            assert!(
                text.contains(&format!(
                    "{}: node home wants tool:exec on node office (level 2",
                    first.id()
                )),
                "{text}"
            );
            assert!(!text.contains("hidden"), "{text}");
            let began = tokio::time::Instant::now();
            // Nine at once are one notice, later, five of them by name; another node's is among them.
            let more: Vec<_> = (2..10).map(|n| desk.ask(request(n)).unwrap()).collect();
            let id = "0a0b0c0d".parse().unwrap();
            let shown = inbox
                .show(id, request(11), Duration::from_secs(60))
                .unwrap();
            let text = said(&lines.recv().await.unwrap());
            assert!(began.elapsed() >= APPROVAL_NOTICE_EVERY);
            assert_eq!(
                text.matches("wants").count(),
                APPROVAL_NOTICE_LINES,
                "{text}"
            );
            assert!(text.contains("and 4 more"), "{text}");
            drop((first, more, shown));
            tokio::time::sleep(2 * APPROVAL_NOTICE_EVERY).await;
            assert!(lines.try_recv().is_err(), "what is over is not told");
        };
        tokio::select! {
            () = task => unreachable!("it ends with the node"),
            () = test => {}
        }
    }
}
