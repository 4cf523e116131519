//! Bodies of answers to local clients: a few bytes, or a stream that is forwarded as it comes.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::Stream;
use hyper::body::{Body, Frame, SizeHint};

use super::{io::Busy, tokens::InFlight};

/// The answer ends here, incomplete; hyper closes the connection, which is how HTTP says so.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off")]
pub struct Broken;

/// A stream of bytes.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, Broken>> + Send>>;

enum Content {
    Whole(Option<Bytes>),
    Stream {
        stream: ByteStream,
        left: Option<u64>,
    },
}

/// The body of one answer. Holds what must live as long as the answer does.
pub struct ReplyBody {
    content: Content,
    held: Option<(Busy, Option<InFlight>)>,
}

impl fmt::Debug for ReplyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplyBody")
    }
}

impl ReplyBody {
    /// No body.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            content: Content::Whole(None),
            held: None,
        }
    }

    /// Bytes that are all there.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            content: Content::Whole((!bytes.is_empty()).then_some(bytes)),
            held: None,
        }
    }

    /// Bytes as they come; with a `length` they go out under `content-length`.
    #[must_use]
    pub fn stream(stream: ByteStream, length: Option<u64>) -> Self {
        Self {
            content: Content::Stream {
                stream,
                left: length,
            },
            held: None,
        }
    }

    /// Keeps the guards of the request until the last byte is written or the client is gone.
    pub fn hold(&mut self, busy: Busy, in_flight: Option<InFlight>) {
        self.held = Some((busy, in_flight));
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let item = match &mut self.content {
            Content::Whole(bytes) => bytes.take().map(Ok),
            Content::Stream { stream, left } => {
                let item = ready!(stream.as_mut().poll_next(cx));
                if let (Some(Ok(bytes)), Some(left)) = (&item, left) {
                    *left = left.saturating_sub(bytes.len() as u64);
                }
                item
            }
        };
        Poll::Ready(item.map(|item| item.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Content::Stream {
                left: Some(left), ..
            } => SizeHint::with_exact(*left),
            Content::Stream { left: None, .. } => SizeHint::new(),
        }
    }
}
