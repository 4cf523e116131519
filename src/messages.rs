//! One-way messages to agents (protocol 7.7): acknowledged, kept on disk at the origin while the
//! destination is away, taken once, and put into the agent's main session as another node's words.

pub mod inbound;
pub mod outbound;
pub mod store;

use std::{fmt, future::Future, pin::Pin};

use crate::wire::code::Failure;

/// A message for an agent's main session.
#[derive(Clone)]
pub struct Note {
    /// The agent.
    pub agent: String,
    /// The text, marked as another node's.
    pub text: String,
    /// Whether the agent is to look at it now.
    pub wake: bool,
    /// The same key twice is one message.
    pub key: String,
}

impl fmt::Debug for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the text: what is written is nobody's business in a log.
        f.debug_struct("Note")
            .field("agent", &self.agent)
            .finish_non_exhaustive()
    }
}

/// Puts messages into sessions; the shim does.
pub trait Courier: Send + Sync + fmt::Debug {
    /// Resolves once the message is in the session.
    fn deliver(&self, note: Note)
    -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + '_>>;
}
