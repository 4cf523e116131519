//! The answer to a `tool_req` as bytes (protocol 8.7): frames of u8 kind, u32 length and content, cut
//! anywhere. Kinds of later versions are skipped.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::{Event, Stream};
use crate::wire::{
    code::{Code, Failure},
    limits::TOOL_FRAME_BYTES,
};

const ALIVE: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const BODY: u8 = 3;
/// Kind and length.
const HEAD_BYTES: usize = 5;

/// The frame of an event; none for begin and end, which are head and end of the answer.
#[must_use]
pub fn encode(event: &Event) -> Option<Bytes> {
    let (kind, data) = match event {
        Event::Started(_) | Event::Waits(_) | Event::GoesOn | Event::End(_) => return None,
        Event::Alive => (ALIVE, &b""[..]),
        Event::Output(Stream::Out, data) => (STDOUT, &data[..]),
        Event::Output(Stream::Err, data) => (STDERR, &data[..]),
        Event::Body(data) => (BODY, &data[..]),
    };
    let mut out = BytesMut::with_capacity(HEAD_BYTES + data.len());
    for piece in pieces(data) {
        out.put_u8(kind);
        // A piece is at most `TOOL_FRAME_BYTES` long.
        out.put_u32(u32::try_from(piece.len()).unwrap_or(0));
        out.put_slice(piece);
    }
    Some(out.freeze())
}

fn pieces(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let empty = data.is_empty().then_some(data);
    empty.into_iter().chain(data.chunks(TOOL_FRAME_BYTES))
}

/// Cuts bytes into events.
#[derive(Debug, Default)]
pub struct Frames(BytesMut);

impl Frames {
    /// Takes bytes and gives what they complete.
    ///
    /// # Errors
    /// `protocol_error` for a frame that is too long.
    pub fn feed(&mut self, data: &[u8]) -> Result<Vec<Event>, Failure> {
        self.0.extend_from_slice(data);
        let mut events = Vec::new();
        while self.0.len() >= HEAD_BYTES {
            let mut head = &self.0[..HEAD_BYTES];
            let (kind, length) = (head.get_u8(), head.get_u32() as usize);
            if length > TOOL_FRAME_BYTES {
                return Err(Failure::started(
                    Code::ProtocolError,
                    "the node sent output in a frame that is too long",
                ));
            }
            if self.0.len() < HEAD_BYTES + length {
                break;
            }
            self.0.advance(HEAD_BYTES);
            let data = self.0.split_to(length).freeze();
            events.extend(match kind {
                ALIVE => Some(Event::Alive),
                STDOUT => Some(Event::Output(Stream::Out, data)),
                STDERR => Some(Event::Output(Stream::Err, data)),
                BODY => Some(Event::Body(data)),
                _ => None,
            });
        }
        Ok(events)
    }

    /// Whether nothing is left of a frame.
    #[must_use]
    pub fn whole(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_encoded_comes_back_however_it_is_cut() {
        let long = Bytes::from(vec![7; TOOL_FRAME_BYTES + 3]);
        let mut sent = Vec::new();
        for event in [
            Event::Output(Stream::Out, Bytes::from_static(b"one")),
            Event::Alive,
            Event::Output(Stream::Err, Bytes::from_static(b"two")),
            Event::Body(long.clone()),
        ] {
            sent.extend_from_slice(&encode(&event).unwrap());
        }
        // A kind of a later version.
        sent.extend_from_slice(&[9, 0, 0, 0, 1, 1]);
        for step in [1, 2, 5, 7, 4096, sent.len()] {
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            for piece in sent.chunks(step) {
                seen.extend(frames.feed(piece).unwrap());
            }
            assert!(frames.whole());
            let mut kinds = String::new();
            let mut body = BytesMut::new();
            for event in seen {
                match event {
                    Event::Output(Stream::Out, data) if data == "one" => kinds.push('o'),
                    Event::Output(Stream::Err, data) if data == "two" => kinds.push('e'),
                    Event::Alive => kinds.push('a'),
                    Event::Body(data) => body.extend_from_slice(&data),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!((kinds.as_str(), body.freeze()), ("oae", long.clone()));
        }
        assert!(encode(&Event::Started("a".parse().unwrap())).is_none());
    }

    #[test]
    fn a_frame_that_is_too_long_ends_the_answer() {
        let failed = Frames::default()
            .feed(&[1, 255, 255, 255, 255])
            .unwrap_err();
        assert_eq!(failed.code, Code::ProtocolError);
    }

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_an_error(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Frames::default().feed(&data);
        }
    }
}
