//! The reading task of a link: open, decode, hand on. Whatever a neighbour sends ends in a delivered
//! frame, a counted drop, or the end of this link and nothing else.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, timeout};

use super::{Arrived, BadFrame, Ending, Link, LinkOwner, lock};
use crate::{
    crypto::seal::Opener,
    mesh::{
        bucket::Bucket,
        drops::Reason,
        gossip::Comparison as Said,
        transport::{Message, MessageStream, TransportError},
    },
    wire::{
        close::CloseCode,
        frame::LinkHeader,
        limits::{BAD_BODIES, BAD_BODY_WINDOW, CLOSE_LINGER, ROUTED_FRAMES_PER_SECOND},
        record::{Fixed, Kind, Record},
    },
};

/// Bytes read before other tasks get a turn: records that are already in a buffer never wait for
/// the socket, so nothing else would interrupt a fast neighbour.
const YIELD_AFTER_BYTES: usize = 256 * 1024;
/// Over what time routed frames are counted.
const PACE_PERIOD: Duration = Duration::from_secs(1);
/// Pause of a link that has brought too many.
const PACE_PAUSE: Duration = Duration::from_millis(20);
/// Messages thrown away while a closed connection winds down.
const LINGER_MESSAGES: usize = 64;

/// Tells the owner of the end, also when the task is dropped before its first turn or at the end of a
/// drain.
pub(super) struct Lost {
    link: Arc<Link>,
    owner: Arc<dyn LinkOwner>,
}

impl Lost {
    pub(super) fn new(link: Arc<Link>, owner: Arc<dyn LinkOwner>) -> Self {
        Self { link, owner }
    }
}

impl Drop for Lost {
    fn drop(&mut self) {
        self.link.finish(Ending::Ours {
            code: CloseCode::ShuttingDown,
            why: "task dropped".to_owned(),
        });
        if let Some(ending) = self.link.ending.get() {
            self.owner.ended(&self.link, ending);
        }
    }
}

pub(super) async fn run<R: MessageStream>(lost: Lost, mut stream: R, opener: Opener) {
    let mut reader = Reader {
        lost: &lost,
        opener,
        bucket: Bucket::for_link(Instant::now()),
        pace: Pace::default(),
        bad_bodies: 0,
        bad_since: Instant::now(),
    };
    if let Some(ending) = reader.until_end(&mut stream).await {
        lost.link.finish(ending);
    }
    drop(lost);
    linger(&mut stream).await;
}

/// Reads on for a moment without looking: a socket closed with unread bytes would be reset, and the
/// reset can overtake the close code.
async fn linger<R: MessageStream>(stream: &mut R) {
    let _ = timeout(CLOSE_LINGER, async {
        for _ in 0..LINGER_MESSAGES {
            if !matches!(stream.next().await, Ok(Some(_))) {
                break;
            }
        }
    })
    .await;
}

struct Reader<'a> {
    lost: &'a Lost,
    opener: Opener,
    // Link and gossip frames; relayed frames are paced instead.
    bucket: Bucket,
    pace: Pace,
    bad_bodies: u32,
    bad_since: Instant,
}

/// Routed frames of one link within a second (protocol 5.5).
#[derive(Debug, Default)]
struct Pace {
    frames: u32,
    since: Option<Instant>,
}

impl Pace {
    fn count(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= PACE_PERIOD {
            *self = Self {
                frames: 0,
                since: Some(now),
            };
        }
        self.frames += 1;
    }

    fn is_over(&self) -> bool {
        self.frames >= ROUTED_FRAMES_PER_SECOND
    }
}

/// Why a record ends the link.
type Refusal = (CloseCode, String);

fn protocol(error: impl ToString) -> Refusal {
    (CloseCode::ProtocolError, error.to_string())
}

impl Reader<'_> {
    /// Reads until the connection ends; none when the link was ended elsewhere.
    async fn until_end<R: MessageStream>(&mut self, stream: &mut R) -> Option<Ending> {
        let link = self.lost.link.clone();
        let stopped = link.stop.cancelled();
        tokio::pin!(stopped);
        let mut since_yield = 0;
        loop {
            let message = tokio::select! {
                biased;
                () = &mut stopped => return None,
                message = stream.next() => message,
            };
            let refusal = match message {
                Ok(Some(Message::Binary(record))) => {
                    since_yield += record.len();
                    link.traffic.received(record.len());
                    match self.record(record) {
                        Ok(()) => {
                            if self.pace.is_over() {
                                // TCP pushes back meanwhile; nothing is lost.
                                tokio::time::sleep(PACE_PAUSE).await;
                            }
                            if since_yield >= YIELD_AFTER_BYTES {
                                since_yield = 0;
                                tokio::task::yield_now().await;
                            }
                            continue;
                        }
                        Err(refusal) => refusal,
                    }
                }
                Ok(Some(Message::Text(_))) => protocol("text message on a link"),
                Ok(Some(Message::Close { code, .. })) => return Some(Ending::Theirs { code }),
                Ok(None) => return Some(Ending::Broken("connection closed".to_owned())),
                Err(error @ TransportError::TooLarge) => {
                    (CloseCode::RecordFailure, error.to_string())
                }
                Err(error @ TransportError::Flood) => (CloseCode::RateLimited, error.to_string()),
                Err(error @ TransportError::Protocol(_)) => protocol(error),
                Err(TransportError::Closed) => {
                    return Some(Ending::Broken("connection closed".to_owned()));
                }
                Err(TransportError::Io(error)) => {
                    return Some(Ending::Broken(format!("connection failed: {error}")));
                }
            };
            link.drops.count(Reason::Misbehaviour);
            let (code, why) = refusal;
            return Some(Ending::Ours { code, why });
        }
    }

    fn record(&mut self, record: bytes::BytesMut) -> Result<(), Refusal> {
        let opened = self
            .opener
            .open(record)
            .map_err(|error| (CloseCode::RecordFailure, error.to_string()))?;
        let now = Instant::now();
        let link = &self.lost.link;
        if lock(&link.live).heard(now) {
            link.ticked.notify_one();
        }
        let fixed = Fixed::read(opened.plain()).map_err(protocol)?;
        if !opened.rest.is_empty() && fixed.kind != Kind::Routed {
            return Err(protocol("unsealed bytes after a record of this kind"));
        }
        match fixed.kind {
            Kind::Routed | Kind::RoutedHandshake | Kind::RoutedNotice => {
                self.pace.count(now);
                let frame = Arrived {
                    fixed,
                    record: opened,
                };
                match self.lost.owner.routed(link, frame) {
                    Ok(()) => Ok(()),
                    Err(BadFrame::Protocol(why)) => Err(protocol(why)),
                    Err(BadFrame::Body) => self.bad_body(now),
                }
            }
            Kind::Link => {
                self.rated(now)?;
                let record = Record::decode(opened.into_plain().freeze()).map_err(protocol)?;
                self.link_message(&record, now)
            }
            Kind::Gossip => {
                self.rated(now)?;
                let record = Record::decode(opened.into_plain().freeze()).map_err(protocol)?;
                self.lost
                    .owner
                    .gossip(link, record.header, record.body)
                    .map_err(protocol)
            }
        }
    }

    fn rated(&mut self, now: Instant) -> Result<(), Refusal> {
        if self.bucket.take(1, now) {
            Ok(())
        } else {
            Err((CloseCode::RateLimited, "too many link frames".to_owned()))
        }
    }

    fn bad_body(&mut self, now: Instant) -> Result<(), Refusal> {
        self.lost.link.drops.count(Reason::BadBody);
        if now.saturating_duration_since(self.bad_since) > BAD_BODY_WINDOW {
            self.bad_since = now;
            self.bad_bodies = 0;
        }
        self.bad_bodies += 1;
        if self.bad_bodies > BAD_BODIES {
            return Err((CloseCode::RecordFailure, "too many bad bodies".to_owned()));
        }
        Ok(())
    }

    fn compared(&self, message: Said<'_>) -> Result<(), Refusal> {
        let owner = &self.lost.owner;
        owner.compared(&self.lost.link, message).map_err(protocol)
    }

    fn link_message(&mut self, record: &Record, now: Instant) -> Result<(), Refusal> {
        let link = &self.lost.link;
        match LinkHeader::decode(&record.header).map_err(protocol)? {
            LinkHeader::Ping { n } => link.send_link(&LinkHeader::Pong { n }),
            LinkHeader::Pong { n } => {
                let first = {
                    let mut live = lock(&link.live);
                    let known = live.rtt().is_some();
                    live.pong(n, now);
                    !known && live.rtt().is_some()
                };
                if first {
                    self.lost.owner.measured(link);
                }
            }
            LinkHeader::Goaway { .. } => {
                if !link.going_away.swap(true, Ordering::Relaxed) {
                    self.lost.owner.goaway(link);
                }
            }
            // The close that follows ends the link.
            LinkHeader::Bye => link.going_away.store(true, Ordering::Relaxed),
            LinkHeader::Digest { ls } => return self.compared(Said::Digest(ls, &record.body)),
            LinkHeader::Vector { ask } => return self.compared(Said::Vector(ask, &record.body)),
            LinkHeader::Want => return self.compared(Said::Want(&record.body)),
            LinkHeader::Unknown => link.drops.count(Reason::UnknownLinkType),
        }
        Ok(())
    }
}
