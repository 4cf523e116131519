//! How answers about long work look: one JSON object that tells the outcome, or events while it runs.

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::{HeaderValue, Response, header::CONTENT_TYPE};
use serde_json::{Map, Value};

use crate::{
    ids::RequestId,
    proxy::{
        body::ReplyBody,
        error::{self, Asked},
        list::json,
    },
    wire::code::Failure,
};

/// What is told of an outcome, with the error it ended with.
pub(super) fn with_error(
    mut told: Map<String, Value>,
    failure: Option<&Failure>,
    id: RequestId,
) -> Value {
    if let Some(failure) = failure {
        let object: Value = serde_json::from_str(&error::object(failure, id)).unwrap_or_default();
        told.insert("error".into(), object["error"].clone());
    }
    Value::Object(told)
}

/// The whole answer as JSON; a failure with its status.
pub(super) fn whole(
    told: Map<String, Value>,
    failure: Option<&Failure>,
    asked: Asked,
) -> Response<ReplyBody> {
    text(
        with_error(told, failure, asked.id).to_string().into(),
        failure,
        asked,
    )
}

/// The same, already written.
pub(super) fn text(text: Bytes, failure: Option<&Failure>, asked: Asked) -> Response<ReplyBody> {
    let mut response = match failure {
        None => json(String::new(), asked),
        Some(failure) => error::response(failure, asked),
    };
    *response.body_mut() = ReplyBody::whole(text);
    response
}

/// One server-sent event.
pub(super) fn put_event(out: &mut Vec<u8>, name: &str, data: &Value) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    out.extend_from_slice(data.to_string().as_bytes());
    out.extend_from_slice(b"\n\n");
}

/// Events as they come; dropped with the client.
pub(super) fn events(
    pieces: impl Stream<Item = Bytes> + Send + 'static,
    asked: Asked,
) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::stream(Box::pin(pieces.map(Ok)), None));
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    error::stamp(&mut response, asked.id);
    response
}
