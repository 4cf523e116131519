//! The three kinds of api a chat can go to, by the kind the model's provider speaks: what to post
//! where, and what an event of the answer means.

use serde_json::{Value, json};

/// A kind of api.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/responses`.
    Responses,
    /// `/v1/messages`.
    Messages,
}

/// What an event brings.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Piece {
    /// Part of the answer.
    pub(super) content: Option<String>,
    /// Part of the model's thoughts.
    pub(super) thought: Option<String>,
    /// Why the model stopped.
    pub(super) finish: Option<Value>,
    /// What was used.
    pub(super) usage: Option<Value>,
    /// Whether the answer is whole.
    pub(super) done: bool,
}

impl Dialect {
    /// The kind for a provider's api, in OpenClaw's words.
    pub(super) fn of(api: &str) -> Self {
        if api.ends_with("-responses") {
            Self::Responses
        } else if api == "anthropic-messages" {
            Self::Messages
        } else {
            Self::Chat
        }
    }

    /// Where to post.
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Messages => "/v1/messages",
        }
    }

    /// What to post.
    pub(super) fn body(
        self,
        model: &str,
        system: Option<&str>,
        text: &str,
        max_tokens: Option<u64>,
    ) -> Value {
        let user = json!({"role": "user", "content": text});
        let mut body = json!({"model": model, "stream": true});
        match self {
            Self::Chat => {
                let system = system.map(|text| json!({"role": "system", "content": text}));
                body["messages"] = system.into_iter().chain([user]).collect();
                body["stream_options"] = json!({"include_usage": true});
            }
            Self::Responses => {
                body["input"] = json!([user]);
                if let Some(system) = system {
                    body["instructions"] = system.into();
                }
            }
            Self::Messages => {
                body["messages"] = json!([user]);
                // Required there, unlike elsewhere.
                body["max_tokens"] = max_tokens.unwrap_or(4096).into();
                if let Some(system) = system {
                    body["system"] = system.into();
                }
            }
        }
        body
    }

    /// What an event means. Unknown ones mean nothing.
    pub(super) fn read(self, event: &Value) -> Piece {
        let text = |value: &Value| value.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
        let some = |value: &Value| (!value.is_null()).then(|| value.clone());
        let kind = event["type"].as_str().unwrap_or_default();
        match self {
            Self::Chat => {
                let choice = &event["choices"][0];
                let delta = &choice["delta"];
                Piece {
                    content: text(&delta["content"]),
                    thought: text(&delta["reasoning_content"])
                        .or_else(|| text(&delta["reasoning"])),
                    finish: some(&choice["finish_reason"]),
                    usage: some(&event["usage"]),
                    done: false,
                }
            }
            Self::Responses => match kind {
                "response.output_text.delta" => Piece {
                    content: text(&event["delta"]),
                    ..Piece::default()
                },
                "response.reasoning_text.delta" | "response.reasoning_summary_text.delta" => {
                    Piece {
                        thought: text(&event["delta"]),
                        ..Piece::default()
                    }
                }
                "response.completed" | "response.incomplete" => Piece {
                    finish: some(&event["response"]["status"]),
                    usage: some(&event["response"]["usage"]),
                    done: true,
                    ..Piece::default()
                },
                _ => Piece::default(),
            },
            Self::Messages => match kind {
                "content_block_delta" => Piece {
                    content: text(&event["delta"]["text"]),
                    thought: text(&event["delta"]["thinking"]),
                    ..Piece::default()
                },
                "message_delta" => Piece {
                    finish: some(&event["delta"]["stop_reason"]),
                    usage: some(&event["usage"]),
                    ..Piece::default()
                },
                "message_stop" => Piece {
                    done: true,
                    ..Piece::default()
                },
                _ => Piece::default(),
            },
        }
    }

    /// What an answer in one piece brings.
    pub(super) fn read_whole(self, body: &Value) -> Piece {
        let some = |value: &Value| (!value.is_null()).then(|| value.clone());
        let texts = |parts: &Value| -> String {
            let parts = parts.as_array().into_iter().flatten();
            parts.filter_map(|part| part["text"].as_str()).collect()
        };
        let (content, finish) = match self {
            Self::Chat => {
                let choice = &body["choices"][0];
                let content = choice["message"]["content"].as_str().unwrap_or_default();
                (content.to_owned(), &choice["finish_reason"])
            }
            Self::Responses => {
                let items = body["output"].as_array().into_iter().flatten();
                let content = items.map(|item| texts(&item["content"])).collect();
                (content, &body["status"])
            }
            Self::Messages => (texts(&body["content"]), &body["stop_reason"]),
        };
        Piece {
            content: (!content.is_empty()).then_some(content),
            finish: some(finish),
            usage: some(&body["usage"]),
            done: true,
            ..Piece::default()
        }
    }

    /// Message and code of an event that says the answer failed.
    pub(super) fn failure(event: &Value) -> Option<(String, Option<String>)> {
        let error = [&event["error"], &event["response"]["error"]]
            .into_iter()
            .find(|e| !e.is_null())
            .or_else(|| (event["type"] == "error").then_some(event))?;
        let message = error["message"]
            .as_str()
            .unwrap_or("the model failed")
            .to_owned();
        let code = error["code"].as_str().or_else(|| error["type"].as_str());
        Some((message, code.map(str::to_owned)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(dialect: Dialect, events: &[Value]) -> (String, bool) {
        let mut text = String::new();
        let mut done = false;
        for event in events {
            assert_eq!(Dialect::failure(event), None);
            let piece = dialect.read(event);
            text.extend(piece.content);
            done |= piece.done;
        }
        (text, done)
    }

    #[test]
    fn each_kind_of_stream_is_read() {
        let chat = [
            json!({"choices": [{"delta": {"role": "assistant", "content": "he"}}]}),
            json!({"choices": [{"delta": {"content": "llo"}, "finish_reason": "stop"}]}),
            json!({"choices": [], "usage": {"total_tokens": 3}}),
        ];
        assert_eq!(content(Dialect::Chat, &chat), ("hello".into(), false));
        let responses = [
            json!({"type": "response.created", "response": {"error": null}}),
            json!({"type": "response.output_text.delta", "delta": "hello"}),
            json!({"type": "response.completed", "response": {"status": "completed", "error": null}}),
        ];
        assert_eq!(
            content(Dialect::Responses, &responses),
            ("hello".into(), true)
        );
        let messages = [
            json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hello"}}),
            json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}),
            json!({"type": "message_stop"}),
        ];
        assert_eq!(
            content(Dialect::Messages, &messages),
            ("hello".into(), true)
        );
    }

    #[test]
    fn failures_are_told_in_their_words() {
        for event in [
            json!({"error": {"message": "gone", "code": "stream_lost"}}),
            json!({"type": "error", "error": {"message": "gone", "type": "stream_lost"}}),
            json!({"type": "error", "message": "gone", "code": "stream_lost"}),
            json!({"type": "response.failed", "response": {"error": {"message": "gone", "code": "stream_lost"}}}),
        ] {
            assert_eq!(
                Dialect::failure(&event),
                Some(("gone".into(), Some("stream_lost".into())))
            );
        }
    }

    #[test]
    fn kind_follows_the_provider() {
        assert_eq!(Dialect::of("openai-completions"), Dialect::Chat);
        assert_eq!(Dialect::of("azure-openai-responses"), Dialect::Responses);
        assert_eq!(Dialect::of("anthropic-messages"), Dialect::Messages);
        assert_eq!(Dialect::of(""), Dialect::Chat);
    }
}
