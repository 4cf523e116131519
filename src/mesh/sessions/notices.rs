//! Hints between relays, destinations and origins (protocol 4.5, 5.3): sealed by links only, so
//! anybody on the way may have made them up. Whoever follows one risks a handshake or a few frames
//! sent twice, nothing else.

use std::{borrow::Cow, sync::Arc};

use serde::Deserialize;
use tokio::time::Instant;

use super::{NOTICED, Said, Sessions, live::Live};
use crate::{
    ids::{NodeId, SessionId, hex, unhex},
    mesh::{
        bucket::Bucket,
        drops::Reason,
        link::{Arrived, Link},
        session::{Session, SessionRef},
    },
    wire::{
        frame::{RoutedHeader, Ulid},
        json,
        limits::NOTICES_PER_SECOND,
        record::Kind,
    },
};

/// What a relay says of a handshake message that it could not pass on.
pub(super) const NO_ROUTE: &str = "no_route";

/// A relay's or destination's hint.
#[derive(Deserialize)]
struct Notice<'a> {
    #[serde(borrow)]
    y: Cow<'a, str>,
    #[serde(borrow, default)]
    s: Option<Cow<'a, str>>,
    #[serde(default)]
    i: Option<Ulid>,
    #[serde(borrow, default)]
    why: Option<Cow<'a, str>>,
}

impl Sessions {
    /// Whether another hint may be told to `origin` now.
    fn may_tell(&self, origin: &NodeId) -> bool {
        let now = Instant::now();
        let mut table = self.table();
        if table.notices.len() >= NOTICED && !table.notices.contains_key(origin) {
            return false;
        }
        let bucket = table
            .notices
            .entry(origin.clone())
            .or_insert_with(|| Bucket::new(NOTICES_PER_SECOND, NOTICES_PER_SECOND, now));
        bucket.take_strictly(now)
    }

    fn tell(&self, origin: &NodeId, body: &str, link: Option<&Arc<Link>>) {
        #[cfg(debug_assertions)]
        crate::wire::shapes::assert_written("notice", "y", body.as_bytes());
        let nobody = SessionId([0; 16]);
        self.send_plain(origin, Kind::RoutedNotice, &nobody, body.as_bytes(), link);
    }

    /// Tells the origin of a frame that its session is unknown here.
    pub(super) fn say_reset(&self, header: &RoutedHeader<'_>) {
        let Ok(origin) = header.f.parse::<NodeId>() else {
            return;
        };
        if self.may_tell(&origin) {
            let body = format!("{{\"y\":\"e2e_reset\",\"s\":\"{}\"}}", hex(&header.s.0));
            self.tell(&origin, &body, None);
        }
    }

    /// Tells the origin of a frame that came over `link` that it was not passed on.
    pub(in crate::mesh) fn say_drop(
        &self,
        header: &RoutedHeader<'_>,
        why: &'static str,
        link: &Arc<Link>,
    ) {
        let Ok(origin) = header.f.parse::<NodeId>() else {
            return;
        };
        if self.may_tell(&origin) {
            let body = format!(
                "{{\"y\":\"link_drop\",\"i\":\"{}\",\"s\":\"{}\",\"why\":\"{why}\"}}",
                header.i,
                hex(&header.s.0)
            );
            self.tell(&origin, &body, Some(link));
        }
    }

    /// A hint has come.
    pub(super) fn notice(&self, link: &Arc<Link>, frame: &Arrived) {
        let read = || {
            let header = RoutedHeader::decode(frame.header()).ok()?;
            let notice: Notice<'_> = json::parse(frame.body()).ok()?;
            let name = SessionId(unhex(notice.s.as_deref()?).ok()?);
            match &*notice.y {
                "e2e_reset" => self.follow_reset(&header, &name),
                "link_drop" => self.follow_drop(&name, notice.i?, notice.why.as_deref()?),
                _ => None,
            }
        };
        if read().is_none() {
            link.drops.count(Reason::BadNotice);
        }
    }

    fn follow_reset(&self, header: &RoutedHeader<'_>, name: &SessionId) -> Option<()> {
        let live = self.table().live.get(name).cloned()?;
        if header.f != live.node().as_str() {
            return None;
        }
        let due = {
            let mut table = self.table();
            let peers = table.peers.entry(live.node().clone()).or_default();
            // A newer one is there already, or this one is alive whatever the hint says.
            let newest = peers.live.last().is_some_and(|last| last.id() == live.id());
            newest && !live.just_heard() && peers.resets.due(Instant::now())
        };
        if due {
            // The old session stays until the new one is there: the hint may be a lie.
            let _ = self.open(live.node());
        }
        Some(())
    }

    fn follow_drop(&self, name: &SessionId, frame: Ulid, why: &str) -> Option<()> {
        let known: Option<Arc<Live>> = self.table().live.get(name).cloned();
        if let Some(live) = known {
            if !live.has_sent(frame) {
                return None;
            }
            if live.may_follow_drop(Instant::now()) {
                let session: SessionRef = live;
                self.0.handler.dropped(&session);
            }
            return Some(());
        }
        let table = self.table();
        let opening = table.openings.get(name)?;
        if why == NO_ROUTE {
            // The attempt listens no more, or has heard enough: either way it will end.
            let _ = opening.said.try_send(Said {
                kind: NO_ROUTE,
                text: String::new(),
            });
        }
        Some(())
    }
}
