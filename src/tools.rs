//! Tools of nodes that others use (protocol 8): commands, files, and through the gateway whatever
//! else it has.
//!
//! `control/tools -> outbound -> exchange -> far inbound -> policy -> host -> events back`. The node
//! that is touched decides; the asking one only narrows. A tool runs as a task of its own that tells
//! [`Event`]s into a bounded queue; whoever reads them goes away by dropping [`Running`], which ends the
//! tool with everything it started.

pub mod args;
pub mod can;
pub mod frames;
pub mod host;
pub mod inbound;
pub mod outbound;
pub mod quota;
pub mod target;

use std::{fmt, future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;

use crate::{ids::NodeId, wire::code::Failure};

/// Which output of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// What a tool tells while it works.
#[derive(Debug)]
pub enum Event {
    /// This node has it.
    Started(NodeId),
    /// A person there is asked first, for so long at most.
    Waits(Duration),
    /// A person agreed.
    GoesOn,
    /// Output of a command.
    Output(Stream, Bytes),
    /// It works, silently.
    Alive,
    /// The whole of a file, or of a result as JSON, in pieces.
    Body(Bytes),
    /// Nothing follows.
    End(Result<Finished, Failure>),
}

/// How a tool ended that did run to its end.
#[derive(Debug, Clone)]
pub struct Finished {
    /// What it says of itself; an object.
    pub result: Value,
    /// Set when it ran and was stopped: its time was up.
    pub failure: Option<Failure>,
    /// Bytes of output or content that were told before, where the tool ran here.
    pub told: u64,
}

impl Finished {
    /// It ended well, having told `told` bytes.
    #[must_use]
    pub const fn well(result: Value, told: u64) -> Self {
        Self {
            result,
            failure: None,
            told,
        }
    }
}

/// Events that wait for whoever follows: enough to keep a pipe busy, few enough to hold its writer.
pub const EVENTS: usize = 8;

/// A tool at work. Dropping it stops the tool.
#[derive(Debug)]
pub struct Running {
    /// What it tells; ends after [`Event::End`].
    pub events: mpsc::Receiver<Event>,
    /// Stops it when dropped.
    pub stop: DropGuard,
}

/// Runs the tools that are not our own; the gateway does.
pub trait ToolRunner: Send + Sync + fmt::Debug {
    /// Calls `tool`; resolves to the gateway's HTTP status and JSON answer. Dropping the future ends the
    /// call.
    ///
    /// # Errors
    /// When the gateway cannot be asked or does not answer within `limit`.
    fn invoke<'a>(&'a self, tool: &'a str, args: Value, limit: Duration) -> Invoking<'a>;
}

/// What [`ToolRunner::invoke`] gives.
pub type Invoking<'a> = Pin<Box<dyn Future<Output = Result<(u16, Value), Failure>> + Send + 'a>>;
