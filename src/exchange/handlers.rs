//! Which part of the node answers which kind of request.

use std::{collections::HashMap, sync::Arc};

use super::{InboundHandler, Incoming, Kind};
use crate::wire::code::{Code, Failure};

/// One handler a kind. A kind without one is refused as `unsupported_type`.
#[derive(Debug, Default)]
pub struct Handlers(HashMap<Kind, Arc<dyn InboundHandler>>);

impl Handlers {
    /// Nobody answers anything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `handler` answer what is of `kind`.
    #[must_use]
    pub fn with(mut self, kind: Kind, handler: Arc<dyn InboundHandler>) -> Self {
        self.0.insert(kind, handler);
        self
    }
}

impl InboundHandler for Handlers {
    fn handle(&self, incoming: Incoming) {
        match self.0.get(&incoming.kind) {
            Some(handler) => handler.handle(incoming),
            None => incoming.reply.fail(Failure::not_started(
                Code::UnsupportedType,
                "this node does not serve such requests",
            )),
        }
    }
}
