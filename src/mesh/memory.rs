//! A transport without sockets, for tests: two ends joined by bounded queues, and a tap through
//! which a test sees, alters, repeats or drops every message on its way.

use std::{fmt, sync::Arc};

use tokio::sync::mpsc;

use super::transport::{Message, MessageSink, MessageStream, TransportError};

/// Which way a message travels, seen from the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the first end to the second.
    Forward,
    /// From the second end to the first.
    Back,
}

/// What a test does with one message: what it returns travels on in its stead, in order.
pub type Tap = dyn Fn(Direction, Message) -> Vec<Message> + Send + Sync;

/// Messages that fit into one direction before [`MessageSink::feed`] waits.
const QUEUE: usize = 256;

/// One end of a pair.
#[derive(Debug)]
pub struct End {
    /// Its sending half.
    pub sink: MemorySink,
    /// Its receiving half.
    pub stream: MemoryStream,
}

/// Sends to the other end, through the tap.
pub struct MemorySink {
    direction: Direction,
    tap: Arc<Tap>,
    // Emptied by `close`, which is how the other end learns of it.
    queue: Option<mpsc::Sender<Message>>,
}

impl fmt::Debug for MemorySink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySink")
            .field("direction", &self.direction)
            .finish_non_exhaustive()
    }
}

/// Receives from the other end.
#[derive(Debug)]
pub struct MemoryStream {
    queue: mpsc::Receiver<Message>,
}

/// Two joined ends that pass everything on as it is.
#[must_use]
pub fn pair() -> (End, End) {
    tapped_pair(|_, message| vec![message])
}

/// Two joined ends with `tap` between them.
pub fn tapped_pair(
    tap: impl Fn(Direction, Message) -> Vec<Message> + Send + Sync + 'static,
) -> (End, End) {
    let tap: Arc<Tap> = Arc::new(tap);
    let (forward, from_first) = mpsc::channel(QUEUE);
    let (back, from_second) = mpsc::channel(QUEUE);
    let end = |direction, queue, stream| End {
        sink: MemorySink {
            direction,
            tap: tap.clone(),
            queue: Some(queue),
        },
        stream: MemoryStream { queue: stream },
    };
    (
        end(Direction::Forward, forward, from_second),
        end(Direction::Back, back, from_first),
    )
}

impl MessageSink for MemorySink {
    async fn feed(&mut self, message: Message) -> Result<(), TransportError> {
        for message in (self.tap)(self.direction, message) {
            let queue = self.queue.as_ref().ok_or(TransportError::Closed)?;
            queue
                .send(message)
                .await
                .map_err(|_| TransportError::Closed)?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), TransportError> {
        match &self.queue {
            Some(queue) if !queue.is_closed() => Ok(()),
            _ => Err(TransportError::Closed),
        }
    }

    async fn close(&mut self, code: u16, reason: &str) {
        let reason = reason.to_owned();
        // The other end may be gone already; then nobody is left to tell.
        let _ = self.feed(Message::Close { code, reason }).await;
        self.queue = None;
    }
}

impl MessageStream for MemoryStream {
    async fn next(&mut self) -> Result<Option<Message>, TransportError> {
        Ok(self.queue.recv().await)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    #[tokio::test]
    async fn messages_pass_in_order_and_close_ends_them() {
        let (mut a, mut b) = pair();
        a.sink.feed(Message::Text("one".into())).await.unwrap();
        a.sink
            .feed(Message::Binary(BytesMut::from(&b"two"[..])))
            .await
            .unwrap();
        a.sink.flush().await.unwrap();
        a.sink.close(4400, "protocol_error").await;
        assert_eq!(
            b.stream.next().await.unwrap(),
            Some(Message::Text("one".into()))
        );
        assert_eq!(
            b.stream.next().await.unwrap(),
            Some(Message::Binary(BytesMut::from(&b"two"[..])))
        );
        assert!(matches!(
            b.stream.next().await.unwrap(),
            Some(Message::Close { code: 4400, .. })
        ));
        assert_eq!(b.stream.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn tap_alters_repeats_and_drops() {
        let (mut a, mut b) = tapped_pair(|direction, message| match (direction, message) {
            (Direction::Forward, Message::Text(text)) if text == "drop" => vec![],
            (Direction::Forward, Message::Text(text)) => {
                vec![Message::Text(text.to_uppercase()), Message::Text(text)]
            }
            (_, other) => vec![other],
        });
        for text in ["drop", "x"] {
            a.sink.feed(Message::Text(text.into())).await.unwrap();
        }
        for expected in ["X", "x"] {
            assert_eq!(
                b.stream.next().await.unwrap(),
                Some(Message::Text(expected.into()))
            );
        }
    }
}
