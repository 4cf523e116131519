//! Who runs an agent of this node: OpenClaw through the shim, or a server of the configuration.

use std::{fmt, time::Duration};

use super::record::Record;
use crate::wire::code::Failure;

/// One turn of an agent.
#[derive(Clone)]
pub struct AgentRun {
    /// The agent.
    pub agent: String,
    /// Its session: the same key continues it.
    pub session_key: String,
    /// Name of the session's transcript, the same for the same key.
    pub session_id: String,
    /// What the agent is told.
    pub prompt: String,
    /// The only tools the run may use; none = those of the agent.
    pub tools: Option<Vec<String>>,
    /// Longest time the run may take.
    pub timeout: Duration,
}

impl fmt::Debug for AgentRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the prompt: what is asked is nobody's business in a log.
        f.debug_struct("AgentRun")
            .field("agent", &self.agent)
            .field("session_key", &self.session_key)
            .finish_non_exhaustive()
    }
}

/// Runs agents.
pub trait AgentRunner: Send + Sync + fmt::Debug {
    /// Starts a run that writes what happens into `record`, its end included. `begun` is to be called
    /// once it has really begun: until then a failure must say `not_started`.
    ///
    /// # Errors
    /// [`Failure`] with stage `not_started`.
    fn start(&self, run: AgentRun, record: Record, begun: Begun) -> Result<RunGuard, Failure>;
}

/// Called when a run has begun.
pub type Begun = Box<dyn FnOnce() + Send>;

/// A run under way; dropping it aborts the run.
pub struct RunGuard(Option<Box<dyn FnOnce() + Send>>);

impl RunGuard {
    /// A run that `abort` ends; called at most once, also when the run has ended by itself.
    pub fn new(abort: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(abort)))
    }
}

impl fmt::Debug for RunGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunGuard")
    }
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        if let Some(abort) = self.0.take() {
            abort();
        }
    }
}
