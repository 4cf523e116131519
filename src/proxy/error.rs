//! Every failure as a local client sees it: one table from code to status, type and `Retry-After`.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};

use super::body::ReplyBody;
use crate::{
    ids::RequestId,
    models::{outbound::Trail, splice::push_string},
    wire::code::{Code, Failure},
};

/// Whom an answer goes to and what it is called.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The request's id.
    pub id: RequestId,
    /// Whether OpenClaw's own token was used: it repeats a 5xx for over a minute, but takes a 404 to
    /// its fallback model (contract 3).
    pub openclaw: bool,
}

/// OpenAI's `type` for a code, and the default of `Retry-After` in seconds where the table lists one.
const fn face(code: Code) -> (&'static str, Option<u64>) {
    match code {
        Code::InvalidRequest
        | Code::MethodNotAllowed
        | Code::PayloadTooLarge
        | Code::UnsupportedMediaType
        | Code::MisdirectedRequest
        | Code::IdempotencyMismatch
        | Code::UnsupportedType
        | Code::LoopDetected
        | Code::Cancelled => ("invalid_request_error", None),
        Code::InvalidApiKey => ("authentication_error", None),
        Code::Forbidden
        | Code::PolicyDenied
        | Code::ApprovalDenied
        | Code::ApprovalExpired
        | Code::IdentityConflict => ("permission_error", None),
        Code::ModelNotFound | Code::AgentNotFound | Code::NodeNotFound | Code::NotFound => {
            ("not_found_error", None)
        }
        Code::RateLimited => ("rate_limit_error", Some(1)),
        Code::BudgetExceeded => ("rate_limit_error", Some(30)),
        Code::Overloaded => ("overloaded_error", Some(1)),
        Code::NoRoute
        | Code::PeerUnreachable
        | Code::ShuttingDown
        | Code::StaleRequest
        | Code::AuditUnavailable => ("unavailable_error", Some(5)),
        Code::UpstreamError => ("upstream_error", None),
        Code::Timeout | Code::DeadlineExceeded => ("timeout_error", None),
        Code::ProtocolError
        | Code::StreamLost
        | Code::E2eAuthFailed
        | Code::OutcomeUnknown
        | Code::FlowControl
        | Code::Internal => ("api_error", None),
    }
}

/// Whether OpenClaw's token gets 404 for it, so that its fallback models take over.
const fn falls_back(code: Code) -> bool {
    matches!(
        code,
        Code::NoRoute
            | Code::PeerUnreachable
            | Code::Overloaded
            | Code::ShuttingDown
            | Code::StreamLost
            | Code::Timeout
            | Code::DeadlineExceeded
    )
}

/// The error object, `{"error":{…}}`.
#[must_use]
pub fn object(failure: &Failure, id: RequestId) -> String {
    let (kind, _) = face(failure.code);
    let mut out = String::with_capacity(192 + failure.message.len());
    out.push_str("{\"error\":{\"message\":");
    push_string(&mut out, &failure.message);
    out.push_str(",\"type\":\"");
    out.push_str(kind);
    out.push_str("\",\"code\":\"");
    out.push_str(failure.code.as_str());
    out.push_str("\",\"param\":null,\"request_id\":\"");
    out.push_str(&id.to_string());
    out.push_str("\"}}");
    out
}

/// The event that ends a stream which broke; no `[DONE]` follows it. `torn`: the last event is
/// unfinished and must be ended first. `named`: the route's events carry names and types.
#[must_use]
pub fn event(failure: &Failure, id: RequestId, torn: bool, named: bool) -> Bytes {
    let object = object(failure, id);
    let mut out = String::with_capacity(object.len() + 48);
    if torn {
        out.push_str("\n\n");
    }
    if named {
        out.push_str("event: error\ndata: {\"type\":\"error\",");
        out.push_str(&object[1..]);
    } else {
        out.push_str("data: ");
        out.push_str(&object);
    }
    out.push_str("\n\n");
    out.into()
}

/// The answer to a request that failed before any output.
#[must_use]
pub fn response(failure: &Failure, asked: Asked) -> Response<ReplyBody> {
    let (_, retry_after) = face(failure.code);
    let mut status =
        StatusCode::from_u16(failure.code.http_status()).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut retry = retry_after.map(Duration::from_secs);
    if retry.is_some() || failure.code == Code::UpstreamError {
        retry = failure.retry_after.or(retry);
    }
    if asked.openclaw && falls_back(failure.code) {
        status = StatusCode::NOT_FOUND;
        retry = None;
    }
    let mut response = Response::new(ReplyBody::whole(object(failure, asked.id)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(retry) = retry {
        headers.insert(RETRY_AFTER, retry.as_secs().clamp(1, 30).into());
    }
    stamp(&mut response, asked.id);
    if failure.code == Code::UpstreamError {
        mark(&mut response, None, Some("provider"));
    } else {
        mark(&mut response, None, Some("mesh"));
    }
    response
}

/// Puts the request's id on an answer.
pub fn stamp(response: &mut Response<ReplyBody>, id: RequestId) {
    if let Ok(value) = HeaderValue::try_from(id.to_string()) {
        response.headers_mut().insert("x-request-id", value);
    }
}

/// Says which way a request went: `node=office-01; path=direct; attempts=1`, and whose an error is.
pub fn mark(response: &mut Response<ReplyBody>, trail: Option<&Trail>, error: Option<&str>) {
    let mut text = String::with_capacity(64);
    let node = trail.and_then(|trail| trail.node.as_ref());
    text.push_str("node=");
    text.push_str(node.map_or("-", |node| node.as_str()));
    text.push_str("; path=");
    text.push_str(
        trail
            .and_then(|trail| trail.path)
            .map_or("-", |p| p.as_str()),
    );
    text.push_str("; attempts=");
    text.push_str(&trail.map_or(0, |trail| trail.attempts).to_string());
    if let Some(error) = error {
        text.push_str("; error=");
        text.push_str(error);
    }
    if let Ok(value) = HeaderValue::try_from(text) {
        response.headers_mut().insert("x-clawmatrix-route", value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: Code, openclaw: bool) -> Response<ReplyBody> {
        let id = RequestId([7; 16]);
        response(
            &Failure::not_started(code, "why \"so\""),
            Asked { id, openclaw },
        )
    }

    /// Code, status, whether `Retry-After` is there: protocol 7.5, and what HTTP itself needs.
    const TABLE: &[(&str, u16, bool)] = &[
        ("invalid_request", 400, false),
        ("unsupported_type", 501, false),
        ("protocol_error", 502, false),
        ("invalid_api_key", 401, false),
        ("forbidden", 403, false),
        ("policy_denied", 403, false),
        ("approval_denied", 403, false),
        ("approval_expired", 403, false),
        ("model_not_found", 404, false),
        ("agent_not_found", 404, false),
        ("node_not_found", 404, false),
        ("not_found", 404, false),
        ("method_not_allowed", 405, false),
        ("payload_too_large", 413, false),
        ("unsupported_media_type", 415, false),
        ("misdirected_request", 421, false),
        ("idempotency_mismatch", 422, false),
        ("rate_limited", 429, true),
        ("budget_exceeded", 429, true),
        ("upstream_error", 502, false),
        ("no_route", 503, true),
        ("peer_unreachable", 503, true),
        ("overloaded", 503, true),
        ("shutting_down", 503, true),
        ("stale_request", 503, true),
        ("audit_unavailable", 503, true),
        ("timeout", 504, false),
        ("deadline_exceeded", 504, false),
        ("stream_lost", 502, false),
        ("e2e_auth_failed", 502, false),
        ("outcome_unknown", 502, false),
        ("flow_control", 502, false),
        ("loop_detected", 508, false),
        ("cancelled", 499, false),
        ("identity_conflict", 409, false),
        ("internal", 500, false),
    ];

    /// T87: the table of the protocol, written down once more, so that a change shows.
    #[test]
    fn every_code_has_its_status_shape_and_retry_advice() {
        assert_eq!(TABLE.len(), Code::ALL.len());
        for (text, status, retry) in TABLE {
            let code = Code::from_text(text).unwrap();
            let response = answer(code, false);
            assert_eq!(response.status().as_u16(), *status, "{text}");
            let headers = response.headers();
            assert_eq!(headers.contains_key(RETRY_AFTER), *retry, "{text}");
            if let Some(wait) = headers.get(RETRY_AFTER) {
                let wait: u64 = wait.to_str().unwrap().parse().unwrap();
                assert!((1..=30).contains(&wait), "{text}");
            }
            let failure = Failure::not_started(code, "why \"so\"");
            let shown = object(&failure, RequestId([7; 16]));
            let value: serde_json::Value = serde_json::from_str(&shown).unwrap();
            let error = &value["error"];
            assert_eq!(error["message"], "why \"so\"");
            assert_eq!(error["code"], *text);
            assert!(error["type"].is_string() && error["param"].is_null());
            assert_eq!(error["request_id"], "07".repeat(16));
        }
    }

    #[test]
    fn openclaw_is_sent_to_its_fallback_models() {
        for code in Code::ALL {
            let expected = match code.as_str() {
                "no_route" | "peer_unreachable" | "overloaded" | "stream_lost" | "timeout"
                | "deadline_exceeded" | "shutting_down" => 404,
                _ => code.http_status(),
            };
            let response = answer(*code, true);
            assert_eq!(response.status().as_u16(), expected, "{code:?}");
            assert!(!(expected == 404 && response.headers().contains_key(RETRY_AFTER)));
        }
    }

    #[test]
    fn events_are_whole_and_never_done() {
        let failure = Failure::started(Code::StreamLost, "gone");
        let plain = event(&failure, RequestId([1; 16]), false, false);
        assert!(plain.starts_with(b"data: {\"error\":{") && plain.ends_with(b"}}\n\n"));
        let torn = event(&failure, RequestId([1; 16]), true, true);
        assert!(torn.starts_with(b"\n\nevent: error\ndata: {\"type\":\"error\",\"error\":{"));
    }
}
