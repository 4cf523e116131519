//! Who is at the other end, with the rights our operator gives it now.
//!
//! Name and key of a link never change, level and labels may. Sessions hand out references to the
//! peer, so an older form has to stay where it is: each new one is hung behind the last. They are
//! few: only the operator makes them.

use std::sync::OnceLock;

use crate::mesh::session::Peer;

#[derive(Debug)]
pub(in crate::mesh) struct Standing {
    peer: Peer,
    next: OnceLock<Box<Standing>>,
}

impl Standing {
    pub(in crate::mesh) const fn new(peer: Peer) -> Self {
        Self {
            peer,
            next: OnceLock::new(),
        }
    }

    fn last(&self) -> &Self {
        let mut last = self;
        while let Some(next) = last.next.get() {
            last = next;
        }
        last
    }

    /// The newest form.
    pub(in crate::mesh) fn peer(&self) -> &Peer {
        &self.last().peer
    }

    /// Puts a newer form in force.
    pub(in crate::mesh) fn change(&self, peer: Peer) {
        // Taken already only when two threads change it at once; the other one is as new.
        let _ = self.last().next.set(Box::new(Self::new(peer)));
    }
}
