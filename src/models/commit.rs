//! When a streamed answer has begun in earnest (protocol 7): at the first content, reasoning or tool
//! delta. Until then another node may still be asked, so what came is held back. Pure.
//!
//! Used only while another candidate is left, and only on the first few events of a stream.

use serde_json::Value;

/// Events that only announce an answer, by their `type`.
const ANNOUNCEMENTS: &[&str] = &[
    "content_block_start",
    "message_start",
    "ping",
    "response.content_part.added",
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.queued",
];

/// An event longer than this is content, whatever it says.
const LONGEST: usize = 16 * 1024;

/// Watches the bytes of a stream for its commit point.
#[derive(Debug, Default)]
pub struct CommitPoint {
    line: Vec<u8>,
}

impl CommitPoint {
    /// Takes the next bytes; whether the stream is committed now.
    pub fn reached(&mut self, bytes: &[u8]) -> bool {
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() > LONGEST {
                return true;
            }
            if part.ends_with(b"\n") {
                let commits = commits(&self.line);
                self.line.clear();
                if commits {
                    return true;
                }
            }
        }
        false
    }
}

fn commits(line: &[u8]) -> bool {
    let Some(data) = line.trim_ascii().strip_prefix(b"data:") else {
        // Event names, comments, blank lines; but a stream that is no event stream is content.
        return !(line.trim_ascii().is_empty()
            || [&b":"[..], b"event:", b"id:", b"retry:"]
                .iter()
                .any(|prefix| line.starts_with(prefix)));
    };
    let Ok(event) = serde_json::from_slice::<Value>(data) else {
        return true;
    };
    if let Some(kind) = event.get("type").and_then(Value::as_str) {
        return !ANNOUNCEMENTS.contains(&kind);
    }
    match event.get("choices").and_then(Value::as_array) {
        Some(choices) => choices.iter().any(choice_commits),
        None => true,
    }
}

fn choice_commits(choice: &Value) -> bool {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
    };
    let text = choice.get("text").is_some_and(|text| !empty(text));
    let ended = choice.get("finish_reason").is_some_and(|why| !empty(why));
    let delta = choice.get("delta").and_then(Value::as_object);
    let delta = delta.is_some_and(|delta| delta.iter().any(|(key, v)| key != "role" && !empty(v)));
    text || ended || delta
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_do_not_commit_and_content_does() {
        for (text, commits) in [
            (": keep-alive\n\n", false),
            (
                "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{}}\n\n",
                false,
            ),
            ("data: {\"type\":\"response.created\"}\r\n\r\n", false),
            (
                "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n",
                false,
            ),
            ("data: {\"choices\":[]}\n\n", false),
            (
                "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n",
                true,
            ),
            (
                "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"a\"}}]}\n\n",
                true,
            ),
            (
                "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{}]}}]}\n\n",
                true,
            ),
            (
                "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
                true,
            ),
            ("data: {\"choices\":[{\"text\":\"a\"}]}\n\n", true),
            ("data: {\"type\":\"content_block_delta\"}\n\n", true),
            ("data: {\"error\":{}}\n\n", true),
            ("data: [DONE]\n\n", true),
            ("<html>\n", true),
        ] {
            assert_eq!(
                CommitPoint::default().reached(text.as_bytes()),
                commits,
                "{text}"
            );
            // However it is cut.
            let mut slowly = CommitPoint::default();
            assert_eq!(
                text.bytes().any(|b| slowly.reached(&[b])),
                commits,
                "{text}"
            );
        }
    }

    #[test]
    fn an_endless_line_commits() {
        assert!(CommitPoint::default().reached(&[b'x'; LONGEST + 1]));
    }
}
