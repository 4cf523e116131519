//! Drives gossip and routes: takes records in, sends what is due, works ways out when that is due.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{Hub, State};
use crate::{
    mesh::{
        alerts::AlertKind,
        drops::Reason,
        gossip::{Out, Taken},
        incarnation,
        link::Link,
        membership::Outcome,
        signed::RecordError,
    },
    wire::{frame::LinkHeader, limits::CONTROL_QUEUE_FRAMES},
};

/// How often links are looked at for costs and doubts.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Shortest time between two views for what others say.
const VIEW_EVERY: Duration = Duration::from_millis(100);
/// Room in a link's control queue that gossip leaves to everything else.
const RESERVED: usize = CONTROL_QUEUE_FRAMES / 2;

/// Runs as long as the mesh does; also while it drains, since others still need routes and records.
pub(super) async fn run(hub: Arc<Hub>) {
    loop {
        let next = hub.spread();
        let seen = hub.state().raise.take();
        if let Some(seen) = seen {
            raise(&hub, seen).await;
        }
        tokio::select! {
            () = sleep_until(next) => {}
            () = hub.wake.notified() => {}
            () = hub.hops.blaming() => hub.punish(),
        }
    }
}

fn send(link: &Link, out: Out) {
    match out {
        Out::Record(record) => {
            link.send_gossip(
                |buffer| buffer.extend_from_slice(&record.header),
                &record.body,
            );
        }
        Out::Digest(ls, body) => link.send_said(&LinkHeader::Digest { ls }, &body),
        Out::Vector(ask, body) => link.send_said(&LinkHeader::Vector { ask }, &body),
        Out::Want(body) => link.send_said(&LinkHeader::Want, &body),
    }
}

impl Hub {
    /// Does what is due and says when to come back.
    pub(super) fn spread(&self) -> Instant {
        let now = Instant::now();
        let peers = self.sessions.peers();
        let mut state = self.state();
        let left = self.left(&mut state, &peers, now);
        let own = self.own_links(&state);
        state.gossip.set_links(own, now);
        if state.gossip.tick(now) {
            state.routes.wanted(now);
            state.stale = true;
        }
        let State { links, gossip, .. } = &mut *state;
        let links = links.open();
        let link = |id| links.iter().find(|link| link.id() == id);
        gossip.drain(
            now,
            |id| link(id).map_or(0, |link| link.control_room().saturating_sub(RESERVED)),
            |id, out| {
                if let Some(link) = link(id) {
                    send(link, out);
                }
            },
        );
        let routed = state.routes.due().is_some_and(|at| now >= at);
        if routed {
            self.route(&mut state);
            state.stale = true;
        }
        let mut next = state.gossip.next(now).max(now + Duration::from_millis(10));
        if !links.is_empty() {
            next = next.min(now + LOOK_EVERY);
        }
        if let Some(due) = state.routes.due() {
            next = next.min(due);
        }
        if state.stale {
            let due = state.published + VIEW_EVERY;
            if now >= due {
                self.publish(&mut state);
            } else {
                next = next.min(due);
            }
        }
        drop(state);
        if routed {
            self.sessions.rerouted();
        }
        for node in left {
            self.sessions.left(&node);
        }
        next
    }

    /// A signed record has come over `link`.
    pub(super) fn heard(
        &self,
        link: &Arc<Link>,
        record: (&[u8], &[u8]),
    ) -> Result<(), &'static str> {
        let now = Instant::now();
        let mut state = self.state();
        let dropped = match state.gossip.record(link.id(), record, now) {
            Ok(Taken::Ours(incarnation)) => {
                state.raise = state.raise.max(Some(incarnation));
                drop(state);
                self.wake.notify_one();
                return Ok(());
            }
            Ok(Taken::Outcome(outcome, node, _)) => match outcome {
                Outcome::News => {
                    state.routes.wanted(now);
                    state.stale = true;
                    drop(state);
                    self.wake.notify_one();
                    return Ok(());
                }
                Outcome::Old => Reason::OldGossip,
                Outcome::Equivocation(_) => {
                    state.alert(AlertKind::Contradiction, &node);
                    Reason::Contradiction
                }
                Outcome::TooFast => {
                    state.alert(AlertKind::RecordFlood, &node);
                    Reason::HastyGossip
                }
                Outcome::Refused => {
                    if node == self.settings.us.node_id {
                        state.alert(AlertKind::OurName, &node);
                    }
                    Reason::RefusedGossip
                }
                Outcome::Limited => Reason::GossipLimited,
            },
            Err(RecordError::Header) => return Err("malformed gossip header"),
            Err(RecordError::Kind) => Reason::UnhandledGossip,
            Err(RecordError::Malformed | RecordError::Forged) => Reason::BadGossip,
        };
        drop(state);
        self.dropped(link, dropped);
        Ok(())
    }
}

/// An earlier life of ours used a greater incarnation, as after a restored backup: go beyond it.
async fn raise(hub: &Hub, seen: u64) {
    tracing::warn!(
        "records of this node from a later start are about: was an older state folder restored? \
         Its numbers go on above them"
    );
    let stored = match hub.settings.state.clone() {
        Some(dir) => {
            let raise = move || incarnation::raise(&dir, seen);
            match tokio::task::spawn_blocking(raise).await {
                Ok(Ok(incarnation)) => incarnation,
                Ok(Err(error)) => {
                    let cause: &(dyn std::error::Error + 'static) = &error;
                    tracing::warn!(error = cause, "the greater number cannot be stored");
                    return;
                }
                // The process is ending.
                Err(_) => return,
            }
        }
        None => seen.saturating_add(1),
    };
    hub.state().gossip.raise(stored, Instant::now());
    hub.wake.notify_one();
}
