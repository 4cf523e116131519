//! The error codes that travel between nodes and to local clients (protocol 7.5).

use std::time::Duration;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal, $retryable:literal;)*) => {
        /// One stable error code. Its text, HTTP status and default retry advice are one table.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code, for tests and documents.
            pub const ALL: &'static [Code] = &[$(Code::$name),*];

            /// The text on the wire and in HTTP bodies.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            /// The HTTP status a local client sees.
            #[must_use]
            pub const fn http_status(self) -> u16 {
                match self { $(Code::$name => $status,)* }
            }

            /// Whether the same request may be tried again while nothing was delivered.
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(Code::$name => $retryable,)* }
            }

            /// The code with this text; a text of a newer version has none.
            #[must_use]
            pub fn from_text(text: &str) -> Option<Code> {
                match text { $($text => Some(Code::$name),)* _ => None }
            }
        }
    };
}

codes! {
    /// The request itself is wrong.
    InvalidRequest = "invalid_request", 400, false;
    /// The other node does not know this kind of request.
    UnsupportedType = "unsupported_type", 501, false;
    /// The other side broke the protocol.
    ProtocolError = "protocol_error", 502, false;
    /// The local token is missing, wrong or old.
    InvalidApiKey = "invalid_api_key", 401, false;
    /// The caller may not do this.
    Forbidden = "forbidden", 403, false;
    /// A rule of the destination says no.
    PolicyDenied = "policy_denied", 403, false;
    /// A person said no.
    ApprovalDenied = "approval_denied", 403, false;
    /// Nobody answered in time.
    ApprovalExpired = "approval_expired", 403, false;
    /// No node that may serve us lends this model.
    ModelNotFound = "model_not_found", 404, false;
    /// No node that may serve us offers this agent.
    AgentNotFound = "agent_not_found", 404, false;
    /// No node of this name is known.
    NodeNotFound = "node_not_found", 404, false;
    /// No such route, handoff or tool request.
    NotFound = "not_found", 404, false;
    /// The method does not fit the route.
    MethodNotAllowed = "method_not_allowed", 405, false;
    /// A body is larger than its limit.
    PayloadTooLarge = "payload_too_large", 413, false;
    /// The content type does not fit the route.
    UnsupportedMediaType = "unsupported_media_type", 415, false;
    /// `Host` is not one of our own names.
    MisdirectedRequest = "misdirected_request", 421, false;
    /// The idempotency key was used with another body.
    IdempotencyMismatch = "idempotency_mismatch", 422, false;
    /// Too many requests.
    RateLimited = "rate_limited", 429, true;
    /// A budget is used up.
    BudgetExceeded = "budget_exceeded", 429, false;
    /// The provider failed; a 4xx of its own is passed through with its status.
    UpstreamError = "upstream_error", 502, true;
    /// No path to the node.
    NoRoute = "no_route", 503, true;
    /// The node did not answer in time to begin.
    PeerUnreachable = "peer_unreachable", 503, true;
    /// No room for more work.
    Overloaded = "overloaded", 503, true;
    /// The node is going down.
    ShuttingDown = "shutting_down", 503, true;
    /// The request was held back on its way.
    StaleRequest = "stale_request", 503, true;
    /// The audit record could not be written, so the action was not done.
    AuditUnavailable = "audit_unavailable", 503, true;
    /// No answer, or no further part of it, in time.
    Timeout = "timeout", 504, true;
    /// The request's own time is up.
    DeadlineExceeded = "deadline_exceeded", 504, true;
    /// The stream broke and could not be resumed.
    StreamLost = "stream_lost", 502, false;
    /// A message failed its end-to-end check.
    E2eAuthFailed = "e2e_auth_failed", 502, false;
    /// It cannot be learned whether the effect happened.
    OutcomeUnknown = "outcome_unknown", 502, false;
    /// The other side ignored its credit.
    FlowControl = "flow_control", 502, false;
    /// The request came back to a node it has passed.
    LoopDetected = "loop_detected", 508, false;
    /// The asking side gave up.
    Cancelled = "cancelled", 499, false;
    /// Another key holds this name.
    IdentityConflict = "identity_conflict", 409, false;
    /// A fault of our own.
    Internal = "internal", 500, false;
}

/// Whether the destination had begun when it failed (protocol 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Provably nothing was begun.
    NotStarted,
    /// It began, or it cannot be told.
    Started,
}

/// A typed failure of an exchange, as one node tells another and as callers see it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure.
    pub code: Code,
    /// For people; no paths, configuration or upstream addresses when it goes to another node.
    pub message: String,
    /// Whether another attempt may succeed.
    pub retryable: bool,
    /// Whether the work had begun.
    pub stage: Stage,
    /// Advice for `Retry-After`.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure with the code's own retry advice, before anything began.
    #[must_use]
    pub fn not_started(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retryable: code.retryable(),
            stage: Stage::NotStarted,
            retry_after: None,
        }
    }

    /// The same for work that had begun.
    #[must_use]
    pub fn started(code: Code, message: impl Into<String>) -> Self {
        Self {
            stage: Stage::Started,
            ..Self::not_started(code, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_unique_and_come_back() {
        for code in Code::ALL {
            assert_eq!(Code::from_text(code.as_str()), Some(*code));
        }
    }
}
