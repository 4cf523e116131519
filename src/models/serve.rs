//! Calls the provider of a lent model: for another node ([`super::inbound`]) or for a local client
//! ([`super::outbound`]), by the same rules.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Route,
    answer::{Answer, AnswerBody, Clock, ServedBody, late},
    endpoint::Endpoint,
    headers,
    idempotency::{Idempotency, Turn},
    lent::{Lent, LentModel, LentModels},
    outbound::is_event_stream,
    provider::{Client, Pieces, ProviderAnswer, ProviderError},
    splice,
};
use crate::{
    once::Key,
    wire::{
        code::{Code, Failure},
        limits::{PROVIDER_ERROR_BYTES, PROVIDER_ERROR_TIMEOUT},
    },
};

/// A request for a model we lend.
#[derive(Debug)]
pub struct Ask {
    /// Which route.
    pub route: Route,
    /// The client's headers that pass.
    pub headers: HeaderMap,
    /// The body as the client sent it.
    pub body: Bytes,
    /// Where `model` stands in it.
    pub span: Range<usize>,
    /// Set when the request carries an `Idempotency-Key`.
    pub once: Option<Key>,
    /// Time limits; none where the exchange keeps them.
    pub clock: Option<Clock>,
}

/// Serves lent models; cheap to clone.
#[derive(Debug, Clone)]
pub struct Server {
    lent: LentModels,
    client: Client,
    answered: Idempotency,
    answer_limit: u64,
}

impl Server {
    /// A server of what `lent` lends, with answers up to `answer_limit` bytes.
    #[must_use]
    pub fn new(lent: LentModels, client: Client, answer_limit: u64) -> Self {
        Self {
            lent,
            client,
            answered: Idempotency::default(),
            answer_limit,
        }
    }

    /// What is lent.
    #[must_use]
    pub const fn lent(&self) -> &LentModels {
        &self.lent
    }

    /// Asks the provider of `lent`; resolves at the head of its answer, or with the whole of it when it
    /// is an error.
    ///
    /// # Errors
    /// `overloaded` when all places are taken; `upstream_error` when the provider cannot be reached,
    /// broke off, or answered 5xx; `timeout`, `deadline_exceeded`; `idempotency_mismatch`.
    pub async fn serve(&self, lent: &Lent, mut ask: Ask) -> Result<Answer, Failure> {
        let Some(key) = ask.once.take() else {
            return self.run(lent, ask).await;
        };
        let tail = ask.route.tail().as_bytes();
        match self.answered.turn(key, &[tail, &ask.body]).await? {
            Turn::Answered(answer) => Ok(*answer),
            Turn::Run(ticket) => Ok(ticket.record(self.run(lent, ask).await?)),
        }
    }

    async fn run(&self, lent: &Lent, ask: Ask) -> Result<Answer, Failure> {
        let model = &lent.model;
        let Some(place) = lent.enter() else {
            return Err(Failure {
                retry_after: Some(Duration::from_secs(1)),
                ..Failure::not_started(
                    Code::Overloaded,
                    format!(
                        "model `{}` serves as many requests as it may",
                        model.offer.id
                    ),
                )
            });
        };
        let pieces = splice::splice(&ask.body, &ask.span, &model.upstream);
        // A body that names the model as the provider does goes out untouched, escapes included.
        let body = if ask.body[ask.span.clone()] == pieces[1][..] {
            Pieces::new([ask.body.clone()])
        } else {
            Pieces::new(pieces)
        };
        let clock = ask.clock;
        let asked = Instant::now();
        let within = async {
            let mut endpoint = model.endpoint.clone();
            let mut answer = self.post(model, &endpoint, &ask, body.clone()).await?;
            if answer.status == StatusCode::UNAUTHORIZED {
                // Read first: if there is no other key, this is the answer.
                let refused = error_body(&endpoint, answer).await;
                match self.lent.fresh_endpoint(&model.offer.id, &endpoint).await {
                    None => return finish_error(&model.offer.id, refused),
                    Some(fresh) => {
                        endpoint = fresh;
                        answer = self.post(model, &endpoint, &ask, body).await?;
                    }
                }
            }
            if answer.status.is_client_error() || answer.status.is_server_error() {
                let read = error_body(&endpoint, answer).await;
                return finish_error(&model.offer.id, read);
            }
            Ok(Answer {
                status: answer.status.as_u16(),
                headers: passing(&answer.headers),
                length: answer.length,
                body: AnswerBody::Provider(ServedBody {
                    body: answer.body,
                    clock,
                    bytes: 0,
                    limit: self.answer_limit,
                    place,
                    asked: is_event_stream(&answer.headers).then_some(asked),
                }),
            })
        };
        match clock {
            None => within.await,
            Some(clock) => timeout_at(clock.next_limit(false), within)
                .await
                .unwrap_or_else(|_| Err(late(clock))),
        }
    }

    async fn post(
        &self,
        model: &LentModel,
        endpoint: &Arc<Endpoint>,
        ask: &Ask,
        body: Pieces,
    ) -> Result<ProviderAnswer, Failure> {
        let id = &model.offer.id;
        let answered = self
            .client
            .post(endpoint, ask.route, &ask.headers, body)
            .await;
        let news = model.provider_answers(answered.is_ok());
        answered
            .inspect(|_| {
                if news {
                    tracing::info!(model = %id, ?endpoint, "the provider answers again");
                }
            })
            .map_err(|error| {
                // The address stays in our own log; a provider that stays away is one line there.
                let why = chain(&error);
                if news {
                    tracing::warn!(model = %id, ?endpoint, error = %why, "the provider does not answer");
                } else {
                    tracing::debug!(model = %id, ?endpoint, error = %why, "the provider does not answer");
                }
                let what = match error {
                    ProviderError::Connect(_) => "cannot be reached",
                    ProviderError::Http(_) => "broke off before it answered",
                };
                let text = format!("the provider of model `{id}` {what}; the log of the node that lends it says more");
                Failure::started(Code::UpstreamError, text)
            })
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Headers for the client; the provider's `x-request-id` steps aside for ours.
fn passing(given: &HeaderMap) -> HeaderMap {
    let mut out = headers::pick(given, headers::response_passes);
    if let Some(id) = out.remove("x-request-id") {
        out.insert("x-upstream-request-id", id);
    }
    out
}

/// A provider's error, read as far as we pass it on.
struct ErrorBody {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    whole: bool,
}

async fn error_body(endpoint: &Endpoint, mut answer: ProviderAnswer) -> ErrorBody {
    let read = timeout(
        PROVIDER_ERROR_TIMEOUT,
        answer.body.collect(PROVIDER_ERROR_BYTES),
    );
    let (body, whole) = match read.await {
        Ok(Ok(read)) => read,
        // The status says enough.
        Ok(Err(_)) | Err(_) => (Bytes::new(), false),
    };
    ErrorBody {
        status: answer.status,
        headers: answer.headers,
        body: endpoint.redact(body),
        whole,
    }
}

/// 4xx goes through with its status and, up to its limit, its body; 5xx becomes `upstream_error`.
fn finish_error(model: &str, error: ErrorBody) -> Result<Answer, Failure> {
    let status = error.status;
    if status.is_client_error() && error.whole {
        return Ok(Answer {
            status: status.as_u16(),
            headers: passing(&error.headers),
            length: Some(error.body.len() as u64),
            body: AnswerBody::Whole(Some(error.body)),
        });
    }
    let mut shown = error.body;
    shown.truncate(PROVIDER_ERROR_BYTES);
    let text = String::from_utf8_lossy(&shown);
    let message = format!(
        "the provider of model `{model}` answered {}: {}",
        status.as_u16(),
        text.trim()
    );
    if status.is_client_error() {
        let mut body = String::from("{\"error\":{\"message\":");
        splice::push_string(&mut body, &message);
        body.push_str(",\"type\":\"upstream_error\",\"code\":\"upstream_error\",\"param\":null}}");
        let mut headers = passing(&error.headers);
        headers.remove(http::header::CONTENT_ENCODING);
        headers.insert(
            http::header::CONTENT_TYPE,
            http::HeaderValue::from_static("application/json"),
        );
        return Ok(Answer {
            status: status.as_u16(),
            headers,
            length: Some(body.len() as u64),
            body: AnswerBody::Whole(Some(body.into())),
        });
    }
    let seconds = error
        .headers
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    Err(Failure {
        retry_after: seconds.map(Duration::from_secs),
        ..Failure::started(Code::UpstreamError, message)
    })
}
