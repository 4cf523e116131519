//! `clawmatrix chat`: one question to a model; the answer streams to the terminal.

mod dialect;

use std::io::{self, IsTerminal as _, Read as _};

use http_body_util::BodyExt as _;
use hyper::{Response, body::Incoming};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use self::dialect::{Dialect, Piece};
use super::{
    Context,
    client::{Client, block_on, whole},
    error::{CliError, USAGE},
    output::{self, Paint},
};
use crate::sse::Events;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model: `node/model`, or a bare model id.
    model: String,
    /// What to say; read from standard input when it is not given.
    text: Option<String>,
    /// A system message to put in front.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let text = match &args.text {
        Some(text) => text.clone(),
        None => from_stdin("nothing to say", "clawmatrix chat MODEL TEXT")?,
    };
    let client = Client::open(&context.common)?;
    let answer = block_on(ask(&client, args, &text, context))?;
    if context.common.json {
        output::json(&answer)?;
    }
    Ok(0)
}

/// A text from standard input; an empty one is wrong `usage`.
pub(super) fn from_stdin(nothing: &str, usage: &str) -> Result<String, CliError> {
    if io::stdin().is_terminal() {
        output::note("Type what to say, then Ctrl-D:");
    }
    let mut text = String::new();
    io::stdin()
        .lock()
        .read_to_string(&mut text)
        .map_err(|error| CliError::failed(format!("cannot read standard input: {error}"), ""))?;
    if text.trim().is_empty() {
        return Err(CliError::with(
            USAGE,
            nothing,
            format!("`{usage}`, or give the text on standard input"),
        ));
    }
    Ok(text)
}

async fn ask(
    client: &Client,
    args: &Args,
    text: &str,
    context: &Context,
) -> Result<Value, CliError> {
    // The provider's kind of api decides how to ask. A model nobody knows is told by the answer.
    let id = utf8_percent_encode(&args.model, NON_ALPHANUMERIC);
    let model = client
        .get(&format!("/v1/models/{id}"))
        .await
        .unwrap_or(Value::Null);
    let dialect = Dialect::of(model["api"].as_str().unwrap_or_default());
    let system = args.system.as_deref();
    let body = dialect.body(&args.model, system, text, model["max_tokens"].as_u64());
    let response = client.stream(dialect.path(), &body).await?;
    let route = response
        .headers()
        .get("x-clawmatrix-route")
        .and_then(|v| v.to_str().ok())
        .map(str::to_owned);
    let mut answer = Answer::new(dialect, context.common.json);
    let kind = response.headers().get("content-type");
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json")) {
        // A server that knows no streaming.
        answer.take_whole(&whole(response).await?)?;
    } else {
        follow(response, &mut answer).await?;
    }
    if !answer.done {
        return Err(incomplete("the stream ended without its end mark"));
    }
    answer.end_line()?;
    Ok(json!({
        "model": args.model,
        "content": answer.content,
        "finishReason": answer.finish,
        "usage": answer.usage,
        "route": route,
    }))
}

/// Takes a streamed answer.
async fn follow(mut response: Response<Incoming>, answer: &mut Answer) -> Result<(), CliError> {
    let mut events = Events::default();
    while let Some(frame) = response.frame().await {
        let frame = frame.map_err(|error| incomplete(&error.to_string()))?;
        let Some(bytes) = frame.data_ref() else {
            continue;
        };
        let found = events
            .feed(bytes)
            .map_err(|_| incomplete("an event of the stream is too long"))?;
        for event in found {
            answer.take(&event)?;
        }
    }
    Ok(())
}

fn incomplete(why: &str) -> CliError {
    CliError::failed(
        format!("the answer is incomplete: {why}"),
        "ask again; `clawmatrix status` shows the peers",
    )
}

/// What has come so far.
struct Answer {
    dialect: Dialect,
    quiet: bool,
    paint: Paint,
    content: String,
    finish: Value,
    usage: Value,
    done: bool,
}

impl Answer {
    fn new(dialect: Dialect, quiet: bool) -> Self {
        Self {
            dialect,
            quiet,
            paint: Paint::of_stderr(),
            content: String::new(),
            finish: Value::Null,
            usage: Value::Null,
            done: false,
        }
    }

    fn take(&mut self, event: &str) -> Result<(), CliError> {
        if event == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let Ok(event) = serde_json::from_str::<Value>(event) else {
            return Err(incomplete("an event of the stream is not JSON"));
        };
        if let Some((message, code)) = Dialect::failure(&event) {
            let code = code.map_or(String::new(), |c| format!(" ({})", output::clean(&c)));
            self.end_line()?;
            return Err(CliError::failed(
                format!("{}{code}", output::clean(&message)),
                "the answer above is incomplete",
            ));
        }
        self.show(self.dialect.read(&event))
    }

    /// Takes an answer that came in one piece.
    fn take_whole(&mut self, body: &[u8]) -> Result<(), CliError> {
        let body: Value = serde_json::from_slice(body)
            .map_err(|_| incomplete("it is not JSON, though it says so"))?;
        self.show(self.dialect.read_whole(&body))?;
        self.done = true;
        Ok(())
    }

    fn show(&mut self, piece: Piece) -> Result<(), CliError> {
        self.done |= piece.done;
        self.usage = piece.usage.unwrap_or(self.usage.take());
        self.finish = piece.finish.unwrap_or(self.finish.take());
        // Thoughts are no part of the result: dimmed, to standard error, for a person only.
        if let Some(thought) = &piece.thought
            && !self.quiet
            && io::stderr().is_terminal()
        {
            self.note(thought);
        }
        if let Some(content) = &piece.content {
            self.content.push_str(content);
            if !self.quiet {
                output::print(&shown(content))?;
            }
        }
        Ok(())
    }

    fn note(&self, thought: &str) {
        // Standard error may be closed; the answer is what counts.
        let _ = io::Write::write_all(
            &mut io::stderr(),
            self.paint.dim(&shown(thought)).as_bytes(),
        );
    }

    /// Ends the line of an answer that does not end it itself.
    fn end_line(&self) -> Result<(), CliError> {
        if self.quiet || self.content.is_empty() || self.content.ends_with('\n') {
            return Ok(());
        }
        output::print("\n")
    }
}

/// A model's text as it may reach a terminal: line breaks and tabs, no other control characters.
/// Into a file or pipe it goes unchanged.
fn shown(text: &str) -> String {
    if !io::stdout().is_terminal() {
        return text.to_owned();
    }
    text.chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_put_together_from_events() {
        let mut answer = Answer::new(Dialect::Chat, true);
        for event in [
            r#"{"choices":[{"delta":{"role":"assistant","content":"he"}}]}"#,
            r#"{"choices":[{"delta":{"content":"llo"},"finish_reason":"stop"}]}"#,
            r#"{"choices":[],"usage":{"total_tokens":3}}"#,
            "[DONE]",
        ] {
            answer.take(event).unwrap();
        }
        assert_eq!(answer.content, "hello");
        assert_eq!(answer.finish, "stop");
        assert_eq!(answer.usage["total_tokens"], 3);
        assert!(answer.done);
    }

    #[test]
    fn an_answer_in_one_piece_is_taken_too() {
        for (dialect, body) in [
            (
                Dialect::Chat,
                r#"{"choices":[{"message":{"content":"hello"},"finish_reason":"stop"}],"usage":{}}"#,
            ),
            (
                Dialect::Responses,
                r#"{"status":"stop","output":[{"type":"reasoning","summary":[]},{"content":[{"text":"hel"},{"text":"lo"}]}],"usage":{}}"#,
            ),
            (
                Dialect::Messages,
                r#"{"content":[{"type":"text","text":"hello"}],"stop_reason":"stop","usage":{}}"#,
            ),
        ] {
            let mut answer = Answer::new(dialect, true);
            answer.take_whole(body.as_bytes()).unwrap();
            assert_eq!((answer.content.as_str(), answer.done), ("hello", true));
            assert_eq!(
                (&answer.finish, &answer.usage),
                (&json!("stop"), &json!({}))
            );
        }
        assert!(
            Answer::new(Dialect::Chat, true)
                .take_whole(b"<html>")
                .is_err()
        );
    }

    #[test]
    fn error_event_is_a_failure_in_its_words() {
        let mut answer = Answer::new(Dialect::Chat, true);
        let error = answer
            .take(r#"{"error":{"message":"node left","code":"stream_lost"}}"#)
            .unwrap_err();
        assert_eq!(error.message(), "node left (stream_lost)");
        assert!(!answer.done);
    }
}
