//! What the tests of links, registry and mesh share.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::{sync::Notify, time::timeout};

use super::{
    carriage::{Carriage, Network, Posture},
    link::{Arrived, BadFrame, Ending, Flow, Link, LinkOwner, Setup},
    memory::{self, MemorySink, MemoryStream},
    session::{Class, Peer, SendError, Session, SessionHandler},
    transport::{Message, MessageSink, MessageStream},
};
use crate::{
    crypto::{
        identity::PublicKey,
        seal::{Opener, Sealer, TAG_BYTES},
        secret::Secret,
        stretch::SecretId,
    },
    drain::Tasks,
    ids::{Boot, LinkId, NodeId, SessionId},
    trust::Level,
    wire::{
        frame::{LinkHeader, RoutedHeader, Ulid, put_routed},
        inner::{self, Inner},
        limits::REKEY_RECORDS,
        record::{self, Kind, Record},
    },
};

/// What a [`Recorder`] was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Up(NodeId),
    Frame(NodeId, Class, Vec<u8>),
    Lost(NodeId),
    Gossip,
    Goaway,
    Measured,
    Ended(Ending),
}

/// Handler and owner that writes down every call.
#[derive(Default)]
pub(crate) struct Recorder {
    events: Mutex<Vec<Event>>,
    changed: Notify,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

impl Recorder {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    fn note(&self, event: Event) {
        self.events.lock().unwrap().push(event);
        self.changed.notify_waiters();
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    /// JSON texts of the frames so far, without those that only begin a session.
    pub(crate) fn frames(&self) -> Vec<String> {
        let text = |inner: Vec<u8>| {
            let inner = Inner::decode(inner.into()).unwrap();
            String::from_utf8(inner.json.to_vec()).unwrap()
        };
        self.events()
            .into_iter()
            .filter_map(|event| match event {
                Event::Frame(_, _, inner) => Some(text(inner)),
                _ => None,
            })
            .filter(|json| json != "{\"type\":\"noop\"}")
            .collect()
    }

    pub(crate) fn ending(&self) -> Option<Ending> {
        self.events().into_iter().find_map(|event| match event {
            Event::Ended(ending) => Some(ending),
            _ => None,
        })
    }

    /// Waits until `good` holds; fails with what it has after two minutes of the test's clock.
    pub(crate) async fn until(&self, good: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if good(self) {
                    return;
                }
                changed.await;
            }
        };
        if timeout(Duration::from_secs(120), wait).await.is_err() {
            panic!("never happened; so far: {:?}", self.events());
        }
    }
}

impl SessionHandler for Recorder {
    fn up(&self, session: &Arc<dyn Session>) {
        self.note(Event::Up(session.peer().node.clone()));
    }
    fn frame(&self, session: &Arc<dyn Session>, class: Class, inner: Bytes) {
        let node = session.peer().node.clone();
        self.note(Event::Frame(node, class, inner.to_vec()));
    }
    fn lost(&self, session: &Arc<dyn Session>) {
        self.note(Event::Lost(session.peer().node.clone()));
    }
}

/// Stands for the seal of a session in tests of links alone: 16 bytes that only these bytes have.
fn mark(inner: &[u8]) -> [u8; TAG_BYTES] {
    let digest: [u8; 32] = Sha256::digest(inner).into();
    *digest.first_chunk().unwrap()
}

/// A routed frame from `f` for `t` as a link takes it.
pub(crate) fn routed_frame(
    (f, t): (&str, &str),
    s: SessionId,
    n: u64,
    class: Class,
    json: &[u8],
    data: &[u8],
) -> BytesMut {
    let mut buffer = BytesMut::new();
    record::begin(&mut buffer, Kind::Routed, class);
    put_routed(&mut buffer, Ulid(u128::from(n)), &node(f), &node(t), &s, n);
    record::end_header(&mut buffer);
    buffer.extend_from_slice(&[0; TAG_BYTES]);
    let mut body = BytesMut::new();
    inner::put(&mut body, json, data).unwrap();
    let mark = mark(&body);
    buffer.extend_from_slice(&body);
    buffer.extend_from_slice(&mark);
    buffer
}

/// Sends over a link as a session would.
pub(crate) trait Plain {
    fn send(&self, class: Class, json: &[u8], data: &[u8]) -> Result<(), SendError>;
    async fn some_room(&self, class: Class);
}

const FLOW: Flow = Flow(1);

impl Plain for Arc<Link> {
    fn send(&self, class: Class, json: &[u8], data: &[u8]) -> Result<(), SendError> {
        self.push(
            FLOW,
            class,
            routed_frame(("a", "b"), SID, 0, class, json, data),
        )
    }
    async fn some_room(&self, class: Class) {
        self.room(FLOW, class).await;
    }
}

impl LinkOwner for Recorder {
    fn routed(&self, link: &Arc<Link>, frame: Arrived) -> Result<(), BadFrame> {
        RoutedHeader::decode(frame.header())
            .map_err(|error| BadFrame::Protocol(error.to_string()))?;
        let rest = &frame.record.rest;
        let (body, tail) = rest.split_at(rest.len().saturating_sub(TAG_BYTES));
        if mark(body)[..] != *tail {
            return Err(BadFrame::Body);
        }
        let node = link.neighbour().node.clone();
        self.note(Event::Frame(node, frame.fixed.class, body.to_vec()));
        Ok(())
    }
    fn gossip(&self, _: &Arc<Link>, _: Bytes, _: Bytes) -> Result<(), &'static str> {
        self.note(Event::Gossip);
        Ok(())
    }
    fn compared(
        &self,
        _: &Arc<Link>,
        _: super::gossip::Comparison<'_>,
    ) -> Result<(), &'static str> {
        self.note(Event::Gossip);
        Ok(())
    }
    fn goaway(&self, _: &Arc<Link>) {
        self.note(Event::Goaway);
    }
    fn measured(&self, _: &Arc<Link>) {
        self.note(Event::Measured);
    }
    fn ended(&self, _: &Arc<Link>, ending: &Ending) {
        self.note(Event::Ended(ending.clone()));
    }
}

pub(crate) fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

pub(crate) fn peer_with(node: &NodeId, key: PublicKey) -> Peer {
    Peer {
        node: node.clone(),
        key,
        ..peer("x", 0)
    }
}

pub(crate) fn peer(name: &str, key: u8) -> Peer {
    Peer {
        node: node(name),
        key: PublicKey([key; 32]),
        boot: Boot([key; 16]),
        level: Level::Pinned,
        labels: Arc::new([]),
    }
}

pub(crate) const KEY_FORWARD: [u8; 32] = [1; 32];
pub(crate) const KEY_BACK: [u8; 32] = [2; 32];
pub(crate) const SID: SessionId = SessionId([3; 16]);

/// What a link in memory would be, had it a socket.
pub(crate) fn carriage() -> Carriage {
    Carriage {
        advertised: false,
        tls: Posture::Insecure,
        dialed: true,
        network: Network::Loopback,
        address: "127.0.0.1:1".into(),
        proxy: false,
    }
}

/// Setup of node `a` (the dialer) or `b` of a pair.
pub(crate) fn setup(a: bool, rekey_after: u64) -> Setup {
    let (them, send_key, recv_key) = if a {
        (peer("b", 2), KEY_FORWARD, KEY_BACK)
    } else {
        (peer("a", 1), KEY_BACK, KEY_FORWARD)
    };
    Setup {
        id: LinkId(u64::from(a)),
        peer: them,
        sid: SID,
        dialed: a,
        secret: SecretId(0),
        relay: false,
        carriage: carriage(),
        send_key: Secret::new(send_key),
        recv_key: Secret::new(recv_key),
        heartbeat: Duration::from_secs(15),
        rekey_after,
        queued: Arc::default(),
        traffic: Arc::default(),
    }
}

/// One running end.
pub(crate) struct Side {
    pub(crate) link: Arc<Link>,
    pub(crate) seen: Arc<Recorder>,
}

pub(crate) fn start(setup: &Setup, end: memory::End, tasks: &Tasks) -> Side {
    let link = Link::new(setup);
    let seen = Recorder::new();
    link.run(setup, (end.sink, end.stream), seen.clone(), tasks);
    Side { link, seen }
}

/// Two linked nodes over a tapped pair.
pub(crate) fn linked(
    rekey_after: u64,
    tap: impl Fn(memory::Direction, Message) -> Vec<Message> + Send + Sync + 'static,
) -> (Side, Side, Tasks) {
    let tasks = Tasks::new();
    let (a, b) = memory::tapped_pair(tap);
    let a = start(&setup(true, rekey_after), a, &tasks);
    let b = start(&setup(false, rekey_after), b, &tasks);
    (a, b, tasks)
}

/// A neighbour under the test's own hand: node `a`, which can send anything that the seal allows.
pub(crate) struct Puppet {
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    pub(crate) sink: MemorySink,
    pub(crate) stream: MemoryStream,
}

/// A puppet linked to a real node `b`.
pub(crate) fn puppet() -> (Puppet, Side, Tasks) {
    let tasks = Tasks::new();
    let (a, b) = memory::pair();
    let side = start(&setup(false, REKEY_RECORDS), b, &tasks);
    let puppet = Puppet {
        sealer: Sealer::new(&KEY_FORWARD),
        opener: Opener::new(&KEY_BACK),
        sink: a.sink,
        stream: a.stream,
    };
    (puppet, side, tasks)
}

impl Puppet {
    pub(crate) async fn send(&mut self, message: Message) {
        // The link may have closed meanwhile; what it said is looked at by the test.
        let _ = self.sink.feed(message).await;
    }

    /// Seals and sends a record given from its fixed part on.
    pub(crate) async fn send_plain(&mut self, plain: &[u8]) {
        let mut record = BytesMut::from(&[0, 0][..]);
        record.extend_from_slice(plain);
        self.sealer.seal(&mut record).unwrap();
        self.send(Message::Binary(record)).await;
    }

    pub(crate) async fn send_record(&mut self, kind: Kind, header: &[u8], body: &[u8]) {
        let mut buffer = BytesMut::new();
        record::begin(&mut buffer, kind, Class::Interactive);
        buffer.extend_from_slice(header);
        record::end_header(&mut buffer);
        buffer.extend_from_slice(body);
        self.send_plain(&buffer[record::LENGTH_BYTES..]).await;
    }

    pub(crate) async fn send_link(&mut self, header: &LinkHeader<'_>) {
        let mut bytes = BytesMut::new();
        header.put(&mut bytes);
        self.send_record(Kind::Link, &bytes, b"").await;
    }

    /// The next record, opened.
    pub(crate) async fn record(&mut self) -> Option<Record> {
        match self.stream.next().await.unwrap()? {
            Message::Binary(record) => {
                let plain = self.opener.open(record).unwrap().into_plain();
                Some(Record::decode(plain.freeze()).unwrap())
            }
            other => panic!("not a record: {other:?}"),
        }
    }

    /// Reads to the close message and gives its code.
    pub(crate) async fn close_code(&mut self) -> u16 {
        loop {
            match self.stream.next().await.unwrap() {
                Some(Message::Close { code, reason }) => {
                    let text = crate::wire::close::CloseCode::from_number(code);
                    assert_eq!(
                        Some(reason.as_str()),
                        text.map(|c| c.text()),
                        "says no more"
                    );
                    return code;
                }
                Some(_) => {}
                None => panic!("closed without a code"),
            }
        }
    }
}
