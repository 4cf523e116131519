//! The seam between the mesh and the exchanges that run over it.
//!
//! A [`Session`] carries inner frames (protocol 4.4) to and from one verified node; no caller of it
//! knows over how many hops a frame travels. The sessions at work are in [`super::sessions`].

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    crypto::identity::PublicKey,
    ids::{Boot, NodeId, SessionId},
    trust::Level,
};

pub use crate::wire::record::Class;

/// Who is at the other end, as the handshake proved it and our own trust store judges it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its verified name.
    pub node: NodeId,
    /// The key that proved the name.
    pub key: PublicKey,
    /// Its process start; another value means it has forgotten our requests.
    pub boot: Boot,
    /// How far our operator trusts that key.
    pub level: Level,
    /// Labels our operator gave it: the only tags that grant rights (protocol 2).
    pub labels: Arc<[String]>,
}

/// Why a frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The queue of this class is full: wait for [`Session::room`]. Never for [`Class::Control`],
    /// whose overflow ends the link instead.
    #[error("queue full")]
    Full,
    /// The session has ended.
    #[error("session ended")]
    Gone,
    /// JSON and data together exceed one record.
    #[error("frame larger than one record")]
    TooLarge,
}

/// One authenticated channel to one node.
pub trait Session: Send + Sync + fmt::Debug {
    /// The session's name, for logs and for tying requests to it.
    fn id(&self) -> SessionId;
    /// Who is at the other end.
    fn peer(&self) -> &Peer;
    /// Time since the session began, on a clock that counts suspend (`at`, protocol 7.1).
    fn elapsed(&self) -> Duration;
    /// Smoothed round-trip time, once measured.
    fn rtt(&self) -> Option<Duration>;
    /// Whether the other node is a direct neighbour now; frames that go farther are held under a
    /// congestion window (protocol 5.4).
    fn direct(&self) -> bool {
        true
    }
    /// Queues one inner frame: `json` and `data` become one sealed frame. Never blocks. A control
    /// frame that no way leads anywhere is dropped: what matters is repeated.
    ///
    /// # Errors
    /// [`SendError`]; on `Full` nothing was queued.
    fn send(&self, class: Class, json: &[u8], data: &[u8]) -> Result<(), SendError>;
    /// Resolves when the queue of `class` may have room again, or the session has ended.
    fn room(&self, class: Class) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    /// Frames sent in it time out: another way, if there is one, is tried first for a while.
    fn stalled(&self) {}
    /// Requests wait and nothing comes: finds out whether the way is still there (protocol 6.5).
    fn waits(&self) {}
    /// Ends the session because the other side broke the protocol; `reason` goes to the log.
    fn fail(&self, reason: &'static str);
}

/// A session, shared by all who send in it.
pub type SessionRef = Arc<dyn Session>;

/// What a session's owner tells the layer above. Called on the runtime's thread, so it must not
/// block; all calls of one session come in order.
pub trait SessionHandler: Send + Sync + fmt::Debug {
    /// A session is ready for use.
    fn up(&self, session: &Arc<dyn Session>);
    /// One authenticated inner frame has arrived; `inner` is what protocol 4.4 describes, opened.
    fn frame(&self, session: &Arc<dyn Session>, class: Class, inner: Bytes);
    /// Frames on their way may be lost, because the way they took is gone and another one is there:
    /// send again what matters.
    fn rerouted(&self, session: &Arc<dyn Session>) {
        let _ = session;
    }
    /// A relay says that it dropped a frame, which may not be true: look what may be missing.
    fn dropped(&self, session: &Arc<dyn Session>) {
        let _ = session;
    }
    /// Another way leads to the node, and what took the earlier one may be lost.
    fn moved(&self, session: &Arc<dyn Session>) {
        self.dropped(session);
    }
    /// The session has ended; no further call for it follows.
    fn lost(&self, session: &Arc<dyn Session>);
}
