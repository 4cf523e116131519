//! Tasks that look at the links from time to time, or when something else changes.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep};

use super::Hub;
use crate::{
    mesh::{clock, link::Link, membership::Membership},
    wire::{
        close::CloseCode,
        limits::{DUPLICATE_SILENCE, PAUSE},
    },
};

/// How often latencies and the counters of links are looked at.
const REFRESH: Duration = Duration::from_secs(10);
/// How often the clock is looked at for a pause of this machine.
const PAUSE_CHECK: Duration = Duration::from_secs(2);

pub(super) fn show_alive(members: &mut Membership, link: &Link) {
    let latency = link.rtt().map(|rtt| rtt.as_secs_f64() * 1000.0);
    members.alive(&link.neighbour().node, latency, SystemTime::now());
}

/// Shows latencies and last contacts from time to time.
pub(super) async fn run_refresh(hub: Arc<Hub>) {
    while !stopped_within(&hub, REFRESH).await {
        let mut state = hub.state();
        let links = state.links.open();
        if links.is_empty() {
            continue;
        }
        for link in links {
            show_alive(&mut state.gossip.members, &link);
            state.look(&link);
        }
        state.routes.wanted(Instant::now());
        hub.publish(&mut state);
        drop(state);
        hub.wake.notify_one();
    }
}

/// Ends a link that another one has replaced, once the other side uses the new one too: it may learn
/// of it a little later than we, and must never be without a link in between.
pub(super) async fn run_replacement(old: Arc<Link>, new: Arc<Link>) {
    new.hears_within(DUPLICATE_SILENCE).await;
    old.drain(CloseCode::DuplicateLink, "replaced by a newer link");
}

/// Notices that this machine was suspended (protocol 6.5): tokio's clock stands still meanwhile, so
/// no timer of a link would.
pub(super) async fn run_pause(hub: Arc<Hub>) {
    loop {
        let (began, expected) = (clock::since_boot(), Instant::now());
        if stopped_within(&hub, PAUSE_CHECK).await {
            return;
        }
        // Under a paused test clock the machine's clock hardly moves, which is no pause.
        let slept = clock::since_boot().saturating_sub(began);
        if slept > PAUSE_CHECK + PAUSE || expected.elapsed() > PAUSE_CHECK + PAUSE {
            tracing::info!(seconds = slept.as_secs(), "this process was paused");
            for link in hub.open_links() {
                link.probe();
            }
            hub.resumed.send_modify(|n| *n += 1);
        }
    }
}

async fn stopped_within(hub: &Hub, time: Duration) -> bool {
    tokio::select! {
        () = hub.stop.cancelled() => true,
        () = sleep(time) => false,
    }
}
