//! The answer to a `handoff_req` as bytes: one JSON object a line (protocol 7.6). Pieces arrive cut
//! anywhere; a line that is too long or no event ends the stream.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::record::{Ended, Event, Outcome, ToolUse};
use crate::wire::{
    code::{Code, Failure, Stage},
    limits::HANDOFF_LINE_BYTES,
};

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// Further text.
    Delta(String),
    /// A tool begins or has ended.
    Tool(ToolUse),
    /// The end.
    End(EndLine),
}

/// How it ended.
#[derive(Debug, Serialize, Deserialize)]
pub struct EndLine {
    outcome: Outcome,
    #[serde(default)]
    result: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<ErrorLine>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ErrorLine {
    code: String,
    message: String,
    stage: Stage,
}

impl Line {
    /// The line of an event; none for the begin, which is the head of the answer.
    #[must_use]
    pub fn of(event: &Event) -> Option<Self> {
        match event {
            Event::Started(_) => None,
            Event::Delta(text) => Some(Self::Delta(text.clone())),
            Event::Tool(tool) => Some(Self::Tool(tool.clone())),
            Event::Ended(ended) => Some(Self::End(EndLine {
                outcome: ended.outcome,
                result: ended.result.clone(),
                error: ended.failure.as_ref().map(|failure| ErrorLine {
                    code: failure.code.as_str().to_owned(),
                    message: failure.message.clone(),
                    stage: failure.stage,
                }),
            })),
        }
    }

    /// Appends it to `out`.
    pub fn put(&self, out: &mut Vec<u8>) {
        // Strings and numbers always serialise; a vector always takes them.
        if serde_json::to_writer(&mut *out, self).is_ok() {
            out.push(b'\n');
        }
    }
}

impl EndLine {
    /// What the other node says of the end.
    #[must_use]
    pub fn ended(self) -> Ended {
        let failure = self.error.map(|error| Failure {
            // A code of a later version is none of ours; its text still tells a person.
            code: Code::from_text(&error.code).unwrap_or(Code::UpstreamError),
            message: error.message,
            retryable: false,
            stage: error.stage,
            retry_after: None,
        });
        let failure = match (self.outcome.success(), failure) {
            (true, _) => None,
            (false, Some(failure)) => Some(failure),
            (false, None) => Some(Failure::started(
                Code::UpstreamError,
                "the agent failed without a reason",
            )),
        };
        Ended {
            outcome: self.outcome,
            result: self.result,
            failure,
        }
    }
}

/// Cuts bytes into lines.
#[derive(Debug, Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Takes bytes and gives the lines they complete.
    ///
    /// # Errors
    /// `protocol_error` when one is too long or no event.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<Vec<Line>, Failure> {
        let broken = |text: &str| Failure::started(Code::ProtocolError, text);
        let mut lines = Vec::new();
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            self.0.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = serde_json::from_slice(&self.0)
                .map_err(|_| broken("the node sent what is no event of a handoff"))?;
            lines.push(line);
            self.0.clear();
        }
        self.0.extend_from_slice(bytes);
        if self.0.len() > HANDOFF_LINE_BYTES {
            return Err(broken("the node sent an event without end"));
        }
        Ok(lines)
    }
}

/// Puts what a line says into `record`-like sinks: shared by live and re-attached followers.
pub fn apply(line: Line, record: &super::record::Record) -> Option<Arc<Ended>> {
    match line {
        Line::Delta(text) => record.delta(&text),
        Line::Tool(tool) => record.tool(tool),
        Line::End(end) => return Some(Arc::new(end.ended())),
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::record::{Phase, Record};

    fn bytes(record: &Record) -> Vec<u8> {
        let mut out = Vec::new();
        let mut cursor = super::super::record::Cursor::default();
        while let Some(event) = record.poll(&mut cursor) {
            let last = matches!(event, Event::Ended(_));
            if let Some(line) = Line::of(&event) {
                line.put(&mut out);
            }
            if last {
                break;
            }
        }
        out
    }

    fn told() -> Record {
        let record = Record::new();
        record.delta("one\ntwo \u{1f600}");
        record.tool(ToolUse {
            name: "read".into(),
            phase: Phase::End,
            failed: true,
        });
        record.delta("three");
        record.end(Ended::failed(Failure::started(Code::Timeout, "too slow")));
        record
    }

    #[test]
    fn events_come_through_however_they_are_cut() {
        let bytes = bytes(&told());
        for size in 1..bytes.len() {
            let mut lines = Lines::default();
            let copy = Record::new();
            let mut ended = None;
            for piece in bytes.chunks(size) {
                for line in lines.feed(piece).unwrap() {
                    ended = apply(line, &copy).or(ended);
                }
            }
            assert_eq!(copy.text(), "one\ntwo \u{1f600}three");
            assert_eq!(copy.cursor().tools, 1);
            let ended = ended.unwrap();
            assert_eq!(ended.outcome, Outcome::Failed);
            let failure = ended.failure.as_ref().unwrap();
            assert_eq!(
                (failure.code, &*failure.message),
                (Code::Timeout, "too slow")
            );
        }
    }

    #[test]
    fn what_is_no_event_is_an_error() {
        for bad in [
            "\n",
            "{}\n",
            "{\"delta\":1}\n",
            "{\"other\":{}}\n",
            "\u{0}\n",
        ] {
            let failed = Lines::default().feed(bad.as_bytes()).unwrap_err();
            assert_eq!(failed.code, Code::ProtocolError, "{bad:?}");
        }
        let endless = vec![b'x'; HANDOFF_LINE_BYTES + 1];
        assert!(Lines::default().feed(&endless).is_err());
    }

    #[test]
    fn a_failure_without_reason_gets_one() {
        let line = "{\"end\":{\"outcome\":\"failed\"}}\n";
        let lines = Lines::default().feed(line.as_bytes()).unwrap();
        let Some(Line::End(end)) = lines.into_iter().next() else {
            panic!("no end");
        };
        assert!(end.ended().failure.is_some());
    }
}
