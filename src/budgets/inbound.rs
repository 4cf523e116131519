//! Stands before every service: takes a request of another node within `limits.perPeer`, and counts what
//! its answer carries.

use std::sync::Arc;

use bytes::Bytes;

use super::{Account, Budgets, Cost, Share, TOKEN_BYTES, usage::Usage};
use crate::{
    audit::{Audit, Entry},
    exchange::{InboundHandler, Incoming, Kind, Meter},
};

/// Name of these limits where a rule is named.
const RULE: &str = "limits.perPeer";

/// A handler whose requests are counted.
#[derive(Debug)]
pub struct Metered {
    /// Answers what may pass.
    pub inner: Arc<dyn InboundHandler>,
    /// The counts.
    pub budgets: Budgets,
    /// Where refusals are recorded.
    pub audit: Audit,
}

impl InboundHandler for Metered {
    fn handle(&self, mut incoming: Incoming) {
        let caps = self.budgets.per_peer();
        // A request that is shown for minutes is no work, and has bounds of its own.
        if caps == super::Caps::default() || incoming.kind == Kind::ApprovalReq {
            self.inner.handle(incoming);
            return;
        }
        let account = Account {
            peer: incoming.caller.key.id(),
            rule: None,
        };
        let bytes = incoming
            .body_bytes
            .saturating_add(incoming.json.len() as u64);
        // A tool costs no tokens; a model tells how many; an agent's are not known here.
        let counts = !matches!(incoming.kind, Kind::Tool | Kind::Approval);
        let cost = Cost {
            bytes,
            tokens: if counts { bytes / TOKEN_BYTES } else { 0 },
        };
        match self.budgets.enter(account, &caps, cost) {
            Ok(share) => {
                incoming.reply.set_meter(Box::new(Counter {
                    share,
                    bytes,
                    thought: cost.tokens,
                    tokens: counts,
                    usage: (incoming.kind == Kind::Model).then(Usage::default),
                    daily: caps.tokens_per_day.is_some() || caps.bytes_per_day.is_some(),
                }));
                self.inner.handle(incoming);
            }
            Err(failure) => {
                let action = match incoming.kind {
                    Kind::Model => "model:*",
                    Kind::Handoff => "agent:*",
                    Kind::Send => "send:*",
                    Kind::Tool => "tool:*",
                    Kind::ApprovalReq | Kind::Approval => "approval:*",
                };
                let entry = Entry::new(&incoming.caller, incoming.rid, action, &incoming.json);
                self.audit.record(entry.ruled(RULE, 0).failed(&failure));
                tracing::debug!(peer = %incoming.caller.node, code = failure.code.as_str(), "request beyond the limits for each peer");
                incoming.reply.fail(failure);
            }
        }
    }
}

/// Counts one answer; the place is given back with it.
#[derive(Debug)]
struct Counter {
    share: Share,
    /// Of request and answer so far.
    bytes: u64,
    /// Tokens counted so far, by bytes.
    thought: u64,
    /// Whether it costs tokens.
    tokens: bool,
    usage: Option<Usage>,
    /// Whether tokens or bytes are limited at all.
    daily: bool,
}

impl Meter for Counter {
    fn sent(&mut self, data: &Bytes) {
        if !self.daily {
            return;
        }
        if let Some(usage) = &mut self.usage {
            usage.see(data);
        }
        self.bytes = self.bytes.saturating_add(data.len() as u64);
        let thought = if self.tokens {
            self.bytes / TOKEN_BYTES
        } else {
            0
        };
        self.share
            .add(data.len() as u64, difference(thought, self.thought));
        self.thought = thought;
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if let Some(tokens) = self.usage.as_ref().and_then(Usage::tokens) {
            self.share.add(0, difference(tokens, self.thought));
        }
    }
}

fn difference(now: u64, before: u64) -> i64 {
    let most = i64::MAX.unsigned_abs();
    now.min(most).cast_signed() - before.min(most).cast_signed()
}
