//! Agents that an OpenAI-style server of the configuration runs: how a node without OpenClaw takes
//! handoffs.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    config::AgentEndpoint,
    drain::Tasks,
    handoff::{
        record::{Ended, Record},
        runner::{AgentRun, AgentRunner, Begun, RunGuard},
    },
    models::{
        Route,
        endpoint::{Endpoint, EndpointError},
        provider::{Client, Pieces},
    },
    sse::Events,
    wire::{
        code::{Code, Failure},
        limits::{HANDOFF_TEXT_BYTES, PROVIDER_ERROR_BYTES},
    },
};

/// Header in which OpenClaw's own endpoint takes the session; others ignore it.
const SESSION_KEY: &str = "x-openclaw-session-key";

/// One agent behind a server.
#[derive(Debug)]
pub(super) struct EndpointAgent {
    client: Client,
    endpoint: Arc<Endpoint>,
    model: String,
    tasks: Tasks,
}

/// One event of a streamed chat completion.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
}

impl EndpointAgent {
    pub(super) fn new(
        config: &AgentEndpoint,
        client: Client,
        tasks: Tasks,
    ) -> Result<Self, EndpointError> {
        let endpoint = Endpoint::new(
            None,
            &config.base_url,
            "openai-completions",
            config.api_key.as_ref(),
            &BTreeMap::new(),
        )?;
        Ok(Self {
            client,
            endpoint: Arc::new(endpoint),
            model: config.model.clone(),
            tasks,
        })
    }
}

impl AgentRunner for EndpointAgent {
    fn start(&self, run: AgentRun, record: Record, begun: Begun) -> Result<RunGuard, Failure> {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let client = self.client.clone();
        let endpoint = Arc::clone(&self.endpoint);
        let model = self.model.clone();
        self.tasks.spawn(async move {
            let ended = tokio::select! {
                biased;
                () = stopped.cancelled() => return,
                ended = ask(&client, &endpoint, &model, run, &record, begun) => ended,
            };
            record.end(ended.unwrap_or_else(|failure| Ended {
                result: record.text(),
                ..Ended::failed(failure)
            }));
        });
        Ok(RunGuard::new(move || stop.cancel()))
    }
}

async fn ask(
    client: &Client,
    endpoint: &Endpoint,
    model: &str,
    run: AgentRun,
    record: &Record,
    begun: Begun,
) -> Result<Ended, Failure> {
    let body = json!({
        "model": model,
        "stream": true,
        "messages": [{"role": "user", "content": run.prompt}],
        "user": run.session_key,
    });
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(session) = HeaderValue::try_from(&run.session_key) {
        headers.insert(SESSION_KEY, session);
    }
    let body = Pieces::new([Bytes::from(body.to_string())]);
    let posted = client
        .post(endpoint, Route::ChatCompletions, &headers, body)
        .await;
    let mut answer = posted.map_err(|error| {
        tracing::warn!(agent = run.agent, %error, "the agent's server cannot be asked");
        Failure::not_started(Code::UpstreamError, "the agent's server cannot be reached")
    })?;
    if !answer.status.is_success() {
        let said = answer.body.collect(PROVIDER_ERROR_BYTES).await;
        let said = said
            .map(|(bytes, _)| endpoint.redact(bytes))
            .unwrap_or_default();
        let text = format!(
            "the agent's server answered {}: {}",
            answer.status.as_u16(),
            String::from_utf8_lossy(&said)
        );
        // A 4xx is a refusal; after a 5xx nobody knows what was done.
        return Err(if answer.status.is_client_error() {
            Failure::not_started(Code::UpstreamError, text)
        } else {
            Failure {
                retryable: false,
                ..Failure::started(Code::UpstreamError, text)
            }
        });
    }
    begun();
    let broke_off = || Failure {
        retryable: false,
        ..Failure::started(Code::UpstreamError, "the agent's server broke off")
    };
    let mut events = Events::default();
    let mut text = String::new();
    let mut finished = false;
    while let Some(piece) = answer.body.next().await.map_err(|_| broke_off())? {
        for event in events.feed(&piece.data).map_err(|_| broke_off())? {
            if event == "[DONE]" {
                finished = true;
                continue;
            }
            let Ok(chunk) = serde_json::from_str::<Chunk>(&event) else {
                continue;
            };
            for choice in chunk.choices {
                finished |= choice.finish_reason.is_some();
                if let Some(delta) = choice.delta.content {
                    if text.len() + delta.len() <= HANDOFF_TEXT_BYTES {
                        text.push_str(&delta);
                    }
                    record.delta(&delta);
                }
            }
        }
        if piece.last {
            break;
        }
    }
    if !finished {
        return Err(broke_off());
    }
    Ok(Ended::answered(&text))
}
