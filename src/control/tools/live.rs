//! A tool followed as events, and one that has ended told once more as such.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::stream;
use http::Response;
use serde_json::{Value, json};

use super::{Answer, Work, requests::Done};
use crate::{
    control::answer::{self, put_event, with_error},
    proxy::{body::ReplyBody, error::Asked},
    tools::{Event, Stream},
};

/// What a command prints.
const OUTPUT: [&str; 2] = ["stdout", "stderr"];

/// Bytes as pieces of text, a character never cut; what is no text as base64.
#[derive(Debug, Default)]
struct Decoder(Vec<u8>);

impl Decoder {
    fn feed(&mut self, data: &[u8]) -> Option<Value> {
        self.0.extend_from_slice(data);
        let whole = match std::str::from_utf8(&self.0) {
            Ok(_) => self.0.len(),
            // A character that lacks its end waits for it.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return self.rest(),
        };
        let text = String::from_utf8_lossy(&self.0[..whole]).into_owned();
        self.0.drain(..whole);
        (!text.is_empty()).then(|| json!({"text": text}))
    }

    fn rest(&mut self) -> Option<Value> {
        let left = std::mem::take(&mut self.0);
        (!left.is_empty()).then(|| json!({"base64": BASE64_STANDARD.encode(left)}))
    }
}

/// A command followed as events. Gone with its client, which cancels it.
struct Live {
    work: Work,
    first: Option<Event>,
    /// None once it has ended.
    answer: Option<Answer>,
    out: Decoder,
    err: Decoder,
}

pub(super) fn events(
    work: Work,
    answer: Answer,
    first: Event,
    asked: Asked,
) -> Response<ReplyBody> {
    let live = Live {
        work,
        first: Some(first),
        answer: Some(answer),
        out: Decoder::default(),
        err: Decoder::default(),
    };
    let pieces = stream::unfold(
        live,
        |mut live| async move { Some((live.next().await?, live)) },
    );
    answer::events(pieces, asked)
}

impl Live {
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while out.is_empty() && self.answer.is_some() {
            let event = match self.first.take() {
                Some(first) => first,
                None => self.work.next().await?,
            };
            self.put(&mut out, event);
        }
        (!out.is_empty()).then(|| out.into())
    }

    fn put_approval(&self, out: &mut Vec<u8>, state: &str) {
        if let Some(answer) = &self.answer {
            put_event(out, "approval", &answer.approval(state));
        }
    }

    fn put(&mut self, out: &mut Vec<u8>, event: Event) {
        match &event {
            // The head goes out, so that the client knows that it runs.
            Event::Started(_) | Event::Alive => out.extend_from_slice(b": alive\n\n"),
            Event::Waits(_) => self.put_approval(out, "pending"),
            Event::GoesOn => self.put_approval(out, "approved"),
            Event::Output(Stream::Out, data) => put_output(out, "stdout", self.out.feed(data)),
            Event::Output(Stream::Err, data) => put_output(out, "stderr", self.err.feed(data)),
            Event::Body(_) => {}
            Event::End(_) => {
                put_output(out, "stdout", self.out.rest());
                put_output(out, "stderr", self.err.rest());
            }
        }
        if let Event::End(ended) = event {
            if let Some(mut answer) = self.answer.take() {
                let (told, failure) = answer.told(ended);
                answer.slot.end(told.clone(), failure.as_ref());
                put_end(out, with_error(told, failure.as_ref(), answer.id));
            }
        } else if let Some(answer) = &mut self.answer {
            answer.take(event);
        }
    }
}

/// The last event, without the output that was told before.
fn put_end(out: &mut Vec<u8>, mut told: Value) {
    if let Value::Object(told) = &mut told {
        for name in OUTPUT {
            told.remove(name);
            told.remove(&format!("{name}Encoding"));
        }
    }
    put_event(out, "end", &told);
}

/// A command that has ended, once more as events.
pub(super) fn again(done: &Done, asked: Asked) -> Response<ReplyBody> {
    let mut out = Vec::new();
    let told: Value = serde_json::from_slice(&done.text).unwrap_or_default();
    for name in OUTPUT {
        let text = told[name].as_str().filter(|text| !text.is_empty());
        let kind = match told[format!("{name}Encoding")] {
            Value::Null => "text",
            _ => "base64",
        };
        put_output(&mut out, name, text.map(|text| json!({kind: text})));
    }
    put_end(&mut out, told);
    answer::events(stream::iter([Bytes::from(out)]), asked)
}

fn put_output(out: &mut Vec<u8>, name: &str, data: Option<Value>) {
    if let Some(mut data) = data {
        // Some readers see the data alone.
        data["stream"] = json!(name);
        put_event(out, name, &data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_text_however_it_is_cut_and_base64_otherwise() {
        let mut decoder = Decoder::default();
        let text = "añ日🙂";
        let mut seen = String::new();
        for byte in text.as_bytes() {
            if let Some(piece) = decoder.feed(&[*byte]) {
                seen.push_str(piece["text"].as_str().unwrap());
            }
        }
        assert_eq!((seen.as_str(), decoder.rest()), (text, None));
        assert_eq!(decoder.feed(b"a\xff"), Some(json!({"base64": "Yf8="})));
        assert_eq!(decoder.feed(b"ok\xe6"), Some(json!({"text": "ok"})));
        assert_eq!(decoder.rest(), Some(json!({"base64": "5g=="})));
    }
}
