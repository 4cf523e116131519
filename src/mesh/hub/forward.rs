//! Where a routed frame goes: to our sessions, on to the next link, or nowhere (protocol 5.6).

use std::sync::Arc;

use tokio::time::Instant;

use super::Hub;
use crate::{
    mesh::{
        drops::Reason,
        link::{Arrived, BadFrame, Flow, Link},
        session::SendError,
        sessions::flow,
    },
    wire::{
        frame::RoutedHeader,
        record::{self, Kind},
    },
};

/// Why the origin is told that its frame was dropped.
fn why(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::NoRoute => Some("no_route"),
        Reason::QueueFull => Some("queue_full"),
        Reason::TtlSpent => Some("ttl"),
        // Nobody is to be told of frames he did not send, or sent twice.
        _ => None,
    }
}

impl Hub {
    /// A routed frame has come over `link`.
    pub(super) fn arrived(&self, link: &Arc<Link>, frame: Arrived) -> Result<(), BadFrame> {
        let header = RoutedHeader::decode(frame.header())
            .map_err(|error| BadFrame::Protocol(error.to_string()))?;
        // Only a relay may bring frames of others.
        if header.f != link.neighbour().node.as_str() && !self.believes(link) {
            self.dropped(link, Reason::ForeignOrigin);
            return Ok(());
        }
        let us = self.settings.us.node_id.as_str();
        if header.t == us {
            return self.sessions.arrived(link, frame);
        }
        let next = if !self.settings.us.params.relay {
            Err(Reason::NotForUs)
        } else if header.f == us {
            // One of ours has gone in a circle.
            Err(Reason::Repeated)
        } else {
            self.next(link, &header, &frame)
        };
        let reason = match next {
            Ok((next, flow)) => {
                // All that a relay knows of a frame.
                tracing::trace!(origin = %header.f, destination = %header.t,
                    bytes = frame.record.plain().len() + frame.record.rest.len(),
                    next = %next.neighbour().node, "passing on a frame");
                let (class, mut record) = (frame.fixed.class, frame.record.into_record());
                let _ = record::take_hop(&mut record);
                let bytes = record.len();
                match next.pass_on(flow, class, record) {
                    Ok(()) => {
                        self.traffic.relayed(bytes);
                        return Ok(());
                    }
                    Err(SendError::Full | SendError::TooLarge) => Reason::QueueFull,
                    Err(SendError::Gone) => Reason::NoRoute,
                }
            }
            Err(reason) => {
                self.say_why(link, &header, frame.fixed.kind, reason);
                reason
            }
        };
        link.drops.count(reason);
        Ok(())
    }

    /// Tells the origin of a frame that it was dropped. Hints are not answered with hints.
    fn say_why(&self, link: &Arc<Link>, header: &RoutedHeader<'_>, kind: Kind, reason: Reason) {
        if let Some(why) = why(reason)
            && kind != Kind::RoutedNotice
        {
            self.sessions.say_drop(header, why, link);
        }
    }

    /// The link over which a frame goes on.
    fn next(
        &self,
        link: &Arc<Link>,
        header: &RoutedHeader<'_>,
        frame: &Arrived,
    ) -> Result<(Arc<Link>, Flow), Reason> {
        self.relay.admit(link.id(), header, frame, Instant::now())?;
        if frame.fixed.ttl <= 1 {
            return Err(Reason::TtlSpent);
        }
        let hop = self.hops.get(&header.t).ok_or(Reason::NoRoute)?;
        if hop.link.id() == link.id() {
            // Never back: the neighbour would send it here again.
            return Err(Reason::NoRoute);
        }
        let flow = flow(&header.f, &header.t);
        if hop.link.takes(flow, frame.fixed.class) {
            Ok((hop.link, flow))
        } else {
            Err(Reason::QueueFull)
        }
    }
}
