//! The task that pings and notices silence (protocol 6.5).

use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use super::{Link, LinkOwner, lock};
use crate::{
    mesh::liveness::Action,
    wire::{close::CloseCode, frame::LinkHeader},
};

pub(super) async fn run(link: Arc<Link>, owner: Arc<dyn LinkOwner>) {
    loop {
        let next = {
            let mut live = lock(&link.live);
            let now = Instant::now();
            let action = live.tick(now);
            let turned = live.turned(now);
            let next = live.next_tick(now);
            drop(live);
            if turned {
                owner.doubted(&link);
            }
            match action {
                Action::Wait => {}
                Action::Ping(n) => link.send_link(&LinkHeader::Ping { n }),
                Action::Dead => {
                    link.end(CloseCode::Timeout, "no sign of life");
                    return;
                }
            }
            next
        };
        tokio::select! {
            () = link.stop.cancelled() => return,
            () = sleep_until(next) => {}
            () = link.ticked.notified() => {}
        }
    }
}
