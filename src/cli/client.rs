//! A small client for the local API of the running node.

use std::{collections::VecDeque, net::Ipv4Addr, path::Path, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::{
    Common,
    error::CliError,
    locate::{self, Running},
};
use crate::{drain::Tasks, sse::Events};

/// A control request that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest answer that is read whole.
const ANSWER_BYTES: usize = 96 << 20;

/// What most requests are answered in.
const JSON: &str = "application/json";
/// What is answered as it comes.
const EVENTS: &str = "text/event-stream";

/// Speaks to one running node.
#[derive(Debug)]
pub(super) struct Client {
    node: Running,
    token: String,
    tasks: Tasks,
}

impl Client {
    /// A client of the running node, with its launch token.
    pub(super) fn open(common: &Common) -> Result<Self, CliError> {
        Self::of(locate::running(common)?)
    }

    /// A client of the running node; none when none runs, and the state folder is free.
    pub(super) fn find(common: &Common) -> Result<Option<Self>, CliError> {
        locate::pick(locate::live(common))?
            .map(Self::of)
            .transpose()
    }

    /// A client of this node.
    pub(super) fn of(node: Running) -> Result<Self, CliError> {
        let token = read_token(&node.state)?;
        Ok(Self {
            node,
            token,
            tasks: Tasks::new(),
        })
    }

    /// A client of this node with a token of the person's own.
    pub(super) fn with_token(node: Running, token: String) -> Self {
        Self {
            node,
            token,
            tasks: Tasks::new(),
        }
    }

    /// `GET`, answered in JSON.
    pub(super) async fn get(&self, path: &str) -> Result<Value, CliError> {
        self.call(Method::GET, path, None).await
    }

    /// A request answered in JSON; null when the answer is empty.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, CliError> {
        let answer = tokio::time::timeout(TIMEOUT, async {
            let response = self.send(method, path, body, JSON).await?;
            let status = response.status();
            let bytes = whole(response).await?;
            if !status.is_success() {
                return Err(refusal(status, &bytes));
            }
            if bytes.is_empty() {
                return Ok(Value::Null);
            }
            serde_json::from_slice(&bytes).map_err(|_| {
                CliError::failed(
                    "the node's answer is not JSON",
                    "is another program on its port?",
                )
            })
        });
        answer.await.unwrap_or_else(|_| {
            Err(CliError::failed(
                "the node did not answer within 30 s",
                "look at its log",
            ))
        })
    }

    /// A `POST` that may take as long as it takes, answered in JSON.
    pub(super) async fn post_long(&self, path: &str, body: &Value) -> Result<Value, CliError> {
        let response = self.send(Method::POST, path, Some(body), JSON).await?;
        let status = response.status();
        let bytes = whole(response).await?;
        if !status.is_success() {
            return Err(refusal(status, &bytes));
        }
        serde_json::from_slice(&bytes)
            .map_err(|_| CliError::failed("the node's answer is not JSON", ""))
    }

    /// The same for a tool: when a person there is asked first, whoever waits here is told so.
    pub(super) async fn post_patient(&self, path: &str, body: &Value) -> Result<Value, CliError> {
        let response = self.stream(path, body).await?;
        let kind = response.headers().get(header::CONTENT_TYPE);
        if kind.is_none_or(|kind| !kind.as_bytes().starts_with(b"text/event-stream")) {
            let bytes = whole(response).await?;
            return serde_json::from_slice(&bytes)
                .map_err(|_| CliError::failed("the node's answer is not JSON", ""));
        }
        let mut told = Told::new(response);
        while let Some(event) = told.next().await? {
            if event.get("error").is_some() {
                return Err(refusal(StatusCode::OK, event.to_string().as_bytes()));
            }
            if event.get("outcome").is_some() {
                return Ok(event);
            }
            let message = event["message"].as_str().unwrap_or_default();
            super::output::note(&super::output::clean(message));
        }
        Err(CliError::failed(
            "the node's answer broke off: it has no end",
            "",
        ))
    }

    /// A request whose answer is read by the caller as it comes. An error status is an error.
    pub(super) async fn stream(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<Response<Incoming>, CliError> {
        let response = self.send(Method::POST, path, Some(body), EVENTS).await?;
        succeeded(response).await
    }

    /// What a `POST` tells until it ends.
    pub(super) async fn tell(&self, path: &str, body: &Value) -> Result<Told, CliError> {
        Ok(Told::new(self.stream(path, body).await?))
    }

    /// The same, where an error that tells an outcome is an answer, too.
    pub(super) async fn tell_any(&self, path: &str, body: &Value) -> Result<Told, CliError> {
        let response = self.send(Method::POST, path, Some(body), EVENTS).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(Told::new(response));
        }
        let bytes = whole(response).await?;
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(answer) if answer["outcome"].is_string() => Ok(Told::of(&answer)),
            _ => Err(refusal(status, &bytes)),
        }
    }

    /// What a `GET` tells until it ends.
    pub(super) async fn watch(&self, path: &str) -> Result<Told, CliError> {
        let response = self.send(Method::GET, path, None, EVENTS).await?;
        Ok(Told::new(succeeded(response).await?))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        accept: &'static str,
    ) -> Result<Response<Incoming>, CliError> {
        let port = self.node.endpoint.proxy_port;
        let gone = |error: &dyn std::fmt::Display| {
            CliError::failed(
                format!("the node on port {port} does not answer: {error}"),
                "it may be stopping; try again",
            )
        };
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .map_err(|e| gone(&e))?;
        // Small writes must not wait for company.
        stream.set_nodelay(true).map_err(|e| gone(&e))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| gone(&e))?;
        // Ends with the connection, which ends when request and answer are dropped.
        self.tasks.spawn(async move {
            // A broken connection is told by the answer that does not come.
            let _ = connection.await;
        });
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, format!("127.0.0.1:{port}"))
            .header(header::ACCEPT, accept)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        let bytes = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let request = request
            .body(Full::new(bytes))
            .map_err(|error| CliError::failed(format!("cannot ask for `{path}`: {error}"), ""))?;
        sender.send_request(request).await.map_err(|e| gone(&e))
    }
}

/// Events of an answer, one by one.
#[derive(Debug)]
pub(super) struct Told {
    /// None when all of it is here.
    response: Option<Response<Incoming>>,
    events: Events,
    ready: VecDeque<String>,
}

impl Told {
    fn new(response: Response<Incoming>) -> Self {
        Self {
            response: Some(response),
            // A file comes in one event, at the end.
            events: Events::up_to(ANSWER_BYTES),
            ready: VecDeque::new(),
        }
    }

    fn of(event: &Value) -> Self {
        Self {
            response: None,
            events: Events::default(),
            ready: VecDeque::from([event.to_string()]),
        }
    }

    /// The next one; none when the answer has ended.
    pub(super) async fn next(&mut self) -> Result<Option<Value>, CliError> {
        let broken =
            |why: String| CliError::failed(format!("the node's answer broke off: {why}"), "");
        loop {
            if let Some(event) = self.ready.pop_front() {
                let event = serde_json::from_str(&event);
                return event.map(Some).map_err(|e| broken(e.to_string()));
            }
            let Some(response) = &mut self.response else {
                return Ok(None);
            };
            let Some(frame) = response.frame().await else {
                return Ok(None);
            };
            let frame = frame.map_err(|error| broken(error.to_string()))?;
            if let Some(bytes) = frame.data_ref() {
                let events = self.events.feed(bytes);
                self.ready
                    .extend(events.map_err(|error| broken(error.to_string()))?);
            }
        }
    }
}

/// An error status is an error.
async fn succeeded(response: Response<Incoming>) -> Result<Response<Incoming>, CliError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let bytes = whole(response).await?;
    Err(refusal(status, &bytes))
}

pub(super) async fn whole(response: Response<Incoming>) -> Result<Bytes, CliError> {
    http_body_util::Limited::new(response.into_body(), ANSWER_BYTES)
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| {
            CliError::failed(format!("the node's answer broke off: {error}"), "try again")
        })
}

/// An error answer in its own words (contract 3).
fn refusal(status: StatusCode, bytes: &[u8]) -> CliError {
    let body: Value = serde_json::from_slice(bytes).unwrap_or(Value::Null);
    let error = &body["error"];
    let message = error["message"].as_str().map_or_else(
        || format!("the node answered {status}"),
        super::output::clean,
    );
    let code = error["code"].as_str().unwrap_or_default();
    let hint = match (status, code) {
        (StatusCode::UNAUTHORIZED, "" | "unauthorized" | "invalid_api_key") => {
            "the node was restarted, or another program has its port; try again"
        }
        (StatusCode::NOT_FOUND, "") => "the node is of another version; restart it",
        _ => error["hint"].as_str().unwrap_or_default(),
    };
    let message = if code.is_empty() {
        message
    } else {
        format!("{message} ({})", super::output::clean(code))
    };
    CliError::failed(message, hint)
}

fn read_token(state: &Path) -> Result<String, CliError> {
    let path = state.join("run/token");
    std::fs::read_to_string(&path)
        .map(|t| t.trim().to_owned())
        .map_err(|error| {
            CliError::failed(
                format!("cannot read the node's token `{}`: {error}", path.display()),
                "run the command as the account that runs the node",
            )
        })
}

/// Runs one command's future to its end; Ctrl-C drops it, which cancels what it asked for.
pub(super) fn block_on<T>(
    future: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("cannot start: {error}"), ""))?;
    runtime.block_on(async {
        tokio::select! {
            result = future => result,
            interrupt = tokio::signal::ctrl_c() => Err(match interrupt {
                Ok(()) => CliError::with(super::error::INTERRUPTED, "interrupted", ""),
                Err(error) => CliError::failed(format!("cannot watch for Ctrl-C: {error}"), ""),
            }),
        }
    })
}
