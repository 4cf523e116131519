//! `modelIdentity` (contract 2): tells a model by which name it is known here, in front of its system
//! message. Only chat completions whose `proxyModels` entry has a description are touched, and only at
//! that one place: every other byte of the body stays as it was.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::models::splice::push_string;

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    messages: &'a RawValue,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
}

/// `body` with `[Model: description]` at the head of its system message, which is made when there is
/// none. A body that is no chat completion comes back as it was.
#[must_use]
pub fn insert(body: &Bytes, description: &str) -> Bytes {
    edit(body, description).map_or_else(
        || body.clone(),
        |(at, end, text)| {
            let mut out = Vec::with_capacity(body.len() + text.len());
            out.extend_from_slice(&body[..at]);
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(&body[end..]);
            out.into()
        },
    )
}

/// What to put in place of which bytes.
fn edit(body: &Bytes, description: &str) -> Option<(usize, usize, String)> {
    let note = format!("[Model: {description}]");
    let parsed: Body<'_> = serde_json::from_slice(body).ok()?;
    let offset = |part: &str| part.as_ptr() as usize - body.as_ptr() as usize;
    let messages = parsed.messages.get();
    let list: Vec<&RawValue> = serde_json::from_str(messages).ok()?;
    let first = list.first();
    let message = first.and_then(|first| serde_json::from_str::<Message<'_>>(first.get()).ok());
    if let Some(message) = message
        && matches!(&*message.role, "system" | "developer")
        && let Some(content) = message.content
    {
        let at = offset(content.get());
        let mut text = String::new();
        if content.get().starts_with('"') {
            push_string(&mut text, &format!("{note}\n\n"));
            // The closing quote is the old text's.
            text.pop();
            return Some((at, at + 1, text));
        }
        if content.get().starts_with('[') {
            let parts: Vec<&RawValue> = serde_json::from_str(content.get()).ok()?;
            text.push_str("[{\"type\":\"text\",\"text\":");
            push_string(&mut text, &note);
            text.push_str(if parts.is_empty() { "}" } else { "}," });
            return Some((at, at + 1, text));
        }
    }
    let mut text = String::from("[{\"role\":\"system\",\"content\":");
    push_string(&mut text, &note);
    text.push_str(if list.is_empty() { "}" } else { "}," });
    let at = offset(messages);
    Some((at, at + 1, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(body: &str) -> String {
        let body = Bytes::copy_from_slice(body.as_bytes());
        String::from_utf8(insert(&body, "Big \"one\"").to_vec()).unwrap()
    }

    #[test]
    fn the_note_comes_first_and_nothing_else_changes() {
        for (before, after) in [
            (
                r#"{"a":1e400, "messages" : [ {"content": "Be kind.", "role":"system"},{"role":"user"}] }"#,
                r#"{"a":1e400, "messages" : [ {"content": "[Model: Big \"one\"]\n\nBe kind.", "role":"system"},{"role":"user"}] }"#,
            ),
            (
                r#"{"messages":[{"role":"developer","content":[{"type":"text","text":"x"}]}]}"#,
                r#"{"messages":[{"role":"developer","content":[{"type":"text","text":"[Model: Big \"one\"]"},{"type":"text","text":"x"}]}]}"#,
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}]}"#,
                r#"{"messages":[{"role":"system","content":"[Model: Big \"one\"]"},{"role":"user","content":"x"}]}"#,
            ),
            (
                r#"{"messages":[]}"#,
                r#"{"messages":[{"role":"system","content":"[Model: Big \"one\"]"}]}"#,
            ),
        ] {
            assert_eq!(with(before), after);
        }
    }

    #[test]
    fn what_is_no_chat_stays_as_it_was() {
        for body in [
            r#"{"input":"x"}"#,
            r#"{"messages":3}"#,
            "no",
            r#"{"messages":[1"#,
        ] {
            assert_eq!(with(body), body);
        }
    }
}
