//! Two nodes with a neighbour between them that does with their frames what a test tells it. Numbers
//! T.. are those of protocol 10.

mod alone;
mod blackhole;
mod chaos;
mod handshakes;
mod hostile;
mod liars;
mod loops;
mod sizes;
mod streams;
mod vectors;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::*;
use crate::{
    config::TrustConfig,
    crypto::{
        identity::Identity,
        seal::{Opener, Sealer, TAG_BYTES},
        stretch::{MeshKey, MeshKeys},
        transcript::Carrier,
    },
    ids::MeshName,
    mesh::{
        gossip::Comparison,
        handshake::{Established, Params, initiate, respond},
        hops::Hop,
        link::{Ending, LinkOwner, Setup},
        memory::{self, MemorySink, MemoryStream},
        testkit::{Recorder, carriage, node},
        transport::{Message, MessageSink, MessageStream},
    },
    trust::{TrustStore, Via},
    wire::{
        close::CloseCode,
        frame::LinkHeader,
        limits::{REKEY_RECORDS, SESSION_IDLE},
        record::{FIXED_BYTES, Record},
    },
};

const SECOND: Duration = Duration::from_secs(1);
/// Frames that may wait for the writer of a relay.
const WAITING: usize = 16 * 1024;

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToOffice,
    ToHome,
}

/// One record as the relay has it: routed ones as they are, with the end-to-end seal on their body.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Frame {
    kind: Kind,
    ttl: u8,
    class: Class,
    header: Vec<u8>,
    body: Vec<u8>,
}

impl Frame {
    fn new(kind: Kind, header: impl Into<Vec<u8>>, body: impl Into<Vec<u8>>) -> Self {
        Self {
            kind,
            ttl: 8,
            class: Class::Interactive,
            header: header.into(),
            body: body.into(),
        }
    }

    /// A frame without end-to-end seal from `f` for `t`.
    fn plain(kind: Kind, f: &str, t: &str, s: &SessionId, body: impl Into<Vec<u8>>) -> Self {
        let mut header = BytesMut::new();
        put_routed(&mut header, Ulid::random(), &node(f), &node(t), s, 0);
        Self::new(kind, header.to_vec(), body)
    }

    fn reset(f: &str, t: &str, s: &SessionId) -> Self {
        let body = format!("{{\"y\":\"e2e_reset\",\"s\":\"{s}\"}}");
        Self::plain(Kind::RoutedNotice, f, t, &SessionId([0; 16]), body)
    }

    fn head(&self) -> RoutedHeader<'_> {
        RoutedHeader::decode(&self.header).unwrap()
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// Whether it is the handshake message of this type.
    fn says(&self, kind: &str) -> bool {
        let wanted = format!("{{\"type\":\"{kind}\",");
        self.kind == Kind::RoutedHandshake && self.text().starts_with(&wanted)
    }

    fn read(opened: crate::crypto::seal::Opened) -> Self {
        let rest = opened.rest.to_vec();
        let record = Record::decode(opened.into_plain().freeze()).unwrap();
        Self {
            kind: record.kind,
            ttl: record.ttl,
            class: record.class,
            header: record.header.to_vec(),
            body: [&record.body[..], &rest].concat(),
        }
    }

    fn seal(&self, sealer: &mut Sealer) -> BytesMut {
        let mut buffer = BytesMut::new();
        record::begin(&mut buffer, self.kind, self.class);
        buffer[LENGTH_BYTES + 2] = self.ttl;
        buffer.extend_from_slice(&self.header);
        record::end_header(&mut buffer);
        if self.kind == Kind::Routed {
            buffer.extend_from_slice(&[0; TAG_BYTES]);
            buffer.extend_from_slice(&self.body);
            let covered = FIXED_BYTES + self.header.len();
            sealer.seal_before_rest(&mut buffer, covered).unwrap();
        } else {
            buffer.extend_from_slice(&self.body);
            sealer.seal(&mut buffer).unwrap();
        }
        buffer
    }
}

type Script = Box<dyn FnMut(Way, Frame) -> Vec<Frame> + Send>;

/// What the tasks of one relay share.
struct Desk {
    script: Mutex<Script>,
    seen: Mutex<Vec<(Way, Frame)>>,
    out: Mutex<HashMap<NodeId, mpsc::Sender<Frame>>>,
}

/// A neighbour of both nodes, of our own making: it can do whatever the seals of its links allow.
#[derive(Clone)]
struct Relay {
    us: Ourselves,
    desk: Arc<Desk>,
    tasks: Tasks,
}

impl Relay {
    fn new(name: &str, relays: bool) -> Self {
        let mut us = ourselves(name);
        us.params.relay = relays;
        Self {
            us,
            desk: Arc::new(Desk {
                script: Mutex::new(Box::new(|_, frame| vec![frame])),
                seen: Mutex::default(),
                out: Mutex::default(),
            }),
            tasks: Tasks::new(),
        }
    }

    /// Puts another script in force.
    fn does(&self, script: impl FnMut(Way, Frame) -> Vec<Frame> + Send + 'static) {
        *self.desk.script.lock().unwrap() = Box::new(script);
    }

    fn obeys(&self) {
        self.does(|_, frame| vec![frame]);
    }

    /// Routed frames it was given so far.
    fn seen(&self) -> Vec<(Way, Frame)> {
        self.desk.seen.lock().unwrap().clone()
    }

    /// Handshake messages of this type that went this way.
    fn heard(&self, way: Way, kind: &str) -> Vec<Frame> {
        let seen = self.seen();
        let wanted = seen
            .into_iter()
            .filter(|(w, frame)| *w == way && frame.says(kind));
        wanted.map(|(_, frame)| frame).collect()
    }

    /// Sends a frame to a node out of the blue.
    fn inject(&self, to: &str, frame: Frame) {
        let out = self.desk.out.lock().unwrap().get(&node(to)).cloned();
        out.unwrap().try_send(frame).unwrap();
    }

    /// Links it to `site`, and gives that node's end.
    async fn link(&self, site: &Site) -> Arc<Link> {
        let (mut ours, mut theirs) = memory::pair();
        let dialing = initiate(
            &mut ours.sink,
            &mut ours.stream,
            &self.us,
            &site.us.node_id,
            Vec::new(),
        );
        let accepting = respond(&mut theirs.sink, &mut theirs.stream, &site.us, Vec::new());
        let (dialed, accepted) = tokio::join!(dialing, accepting);
        let accepted = accepted.unwrap();
        self.work(site.us.node_id.clone(), dialed.unwrap(), ours);
        site.admit(accepted, theirs)
    }

    fn work(&self, of: NodeId, established: Established, end: memory::End) {
        let (frames, waiting) = mpsc::channel(WAITING);
        let sealer = Sealer::new(established.send_key.reveal());
        let opener = Opener::new(established.recv_key.reveal());
        self.desk
            .out
            .lock()
            .unwrap()
            .insert(of.clone(), frames.clone());
        self.tasks.spawn(write(end.sink, sealer, waiting));
        self.tasks
            .spawn(read(of, end.stream, opener, frames, self.desk.clone()));
    }
}

async fn write(mut sink: MemorySink, mut sealer: Sealer, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        let record = Message::Binary(frame.seal(&mut sealer));
        if sink.feed(record).await.is_err() {
            return;
        }
    }
}

async fn read(
    of: NodeId,
    mut stream: MemoryStream,
    mut opener: Opener,
    back: mpsc::Sender<Frame>,
    desk: Arc<Desk>,
) {
    let way = if of.as_str() == "home" {
        Way::ToOffice
    } else {
        Way::ToHome
    };
    while let Ok(Some(Message::Binary(record))) = stream.next().await {
        let frame = Frame::read(opener.open(record).unwrap());
        match frame.kind {
            Kind::Link => {
                if let Ok(LinkHeader::Ping { n }) = LinkHeader::decode(&frame.header) {
                    let mut pong = BytesMut::new();
                    LinkHeader::Pong { n }.put(&mut pong);
                    let _ = back.send(Frame::new(Kind::Link, pong.to_vec(), b"")).await;
                }
            }
            Kind::Gossip => {}
            Kind::Routed | Kind::RoutedHandshake | Kind::RoutedNotice => {
                desk.seen.lock().unwrap().push((way, frame.clone()));
                let passed = (desk.script.lock().unwrap())(way, frame);
                let to = node(if way == Way::ToOffice {
                    "office"
                } else {
                    "home"
                });
                let out = desk.out.lock().unwrap().get(&to).cloned();
                for frame in passed {
                    if let Some(out) = &out {
                        let _ = out.send(frame).await;
                    }
                }
            }
        }
    }
}

/// The sessions of one real node and the links they use, without the tables of the rest of the mesh,
/// so that a test decides which way frames take.
struct Site {
    us: Ourselves,
    sessions: Sessions,
    hops: Arc<Hops>,
    links: Mutex<Vec<Arc<Link>>>,
    tasks: Tasks,
}

/// Hands what is for its node to the sessions.
#[derive(Debug)]
struct Door(NodeId, Sessions);

impl LinkOwner for Door {
    fn routed(&self, link: &Arc<Link>, frame: Arrived) -> Result<(), BadFrame> {
        let header = read_header(&frame)?;
        if header.t == self.0.as_str() {
            return self.1.arrived(link, frame);
        }
        link.drops.count(Reason::NotForUs);
        Ok(())
    }
    fn gossip(&self, _: &Arc<Link>, _: Bytes, _: Bytes) -> Result<(), &'static str> {
        Ok(())
    }
    fn compared(&self, _: &Arc<Link>, _: Comparison<'_>) -> Result<(), &'static str> {
        Ok(())
    }
    fn goaway(&self, _: &Arc<Link>) {}
    fn measured(&self, _: &Arc<Link>) {}
    fn ended(&self, _: &Arc<Link>, _: &Ending) {}
}

fn ourselves(name: &str) -> Ourselves {
    Ourselves {
        node_id: node(name),
        mesh: "test".parse::<MeshName>().unwrap(),
        identity: Arc::new(Identity::generate()),
        keys: MeshKeys::ready(MeshKey::from_bytes([7; 32]), Vec::new()),
        trust: TrustStore::in_memory(&TrustConfig::default(), &[]).unwrap(),
        params: Params {
            relay: false,
            hb: 15,
            boot: Boot::random(),
            sw: "clawmatrix/test".into(),
        },
    }
}

impl Site {
    fn new(us: Ourselves, handler: Arc<dyn SessionHandler>) -> Self {
        let (hops, tasks) = (Arc::<Hops>::default(), Tasks::new());
        Self {
            sessions: Sessions::new(
                us.clone(),
                hops.clone(),
                handler,
                Arc::default(),
                tasks.clone(),
                CancellationToken::new(),
            ),
            us,
            hops,
            links: Mutex::default(),
            tasks,
        }
    }

    /// The same node after a restart: it remembers its key and its pins, and nothing else.
    fn restarted(&self, handler: Arc<dyn SessionHandler>) -> Self {
        let mut us = self.us.clone();
        us.params.boot = Boot::random();
        Self::new(us, handler)
    }

    fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    fn admit(&self, established: Established, end: memory::End) -> Arc<Link> {
        let mut links = self.links.lock().unwrap();
        let setup = Setup {
            id: LinkId(links.len() as u64),
            peer: established.peer,
            sid: established.sid,
            dialed: false,
            secret: established.secret,
            relay: established.params.relay,
            carriage: carriage(),
            send_key: established.send_key,
            recv_key: established.recv_key,
            heartbeat: 15 * SECOND,
            rekey_after: REKEY_RECORDS,
            queued: Arc::default(),
            traffic: Arc::default(),
        };
        let link = Link::new(&setup);
        let door = Arc::new(Door(self.us.node_id.clone(), self.sessions.clone()));
        link.run(&setup, (end.sink, end.stream), door, &self.tasks);
        links.push(link.clone());
        link
    }

    /// Everything for `to` goes over `link` from now on.
    fn leads(&self, to: &str, link: &Arc<Link>) {
        let hop = Hop {
            link: link.clone(),
            direct: false,
            rtt: Some(Duration::from_millis(10)),
        };
        self.hops.replace(HashMap::from([(node(to), hop)]));
        self.sessions().rerouted();
    }

    /// What its links and sessions dropped for this reason.
    fn dropped(&self, reason: Reason) -> u64 {
        let links = self.links.lock().unwrap();
        let on_links: u64 = links.iter().map(|link| link.drops.get(reason)).sum();
        on_links + self.sessions.0.drops.get(reason)
    }

    /// Links that are still up.
    fn open_links(&self) -> usize {
        let links = self.links.lock().unwrap();
        links.iter().filter(|link| link.is_open()).count()
    }

    async fn open(&self, to: &str) -> SessionRef {
        self.sessions().session(&node(to)).await.unwrap()
    }
}

/// Two nodes and the relay between them.
struct Trio {
    home: Site,
    office: Site,
    relay: Relay,
}

impl Trio {
    async fn with(home: Arc<dyn SessionHandler>, office: Arc<dyn SessionHandler>) -> Self {
        let trio = Self {
            home: Site::new(ourselves("home"), home),
            office: Site::new(ourselves("office"), office),
            relay: Relay::new("relay", true),
        };
        let link = trio.relay.link(&trio.home).await;
        trio.home.leads("office", &link);
        let link = trio.relay.link(&trio.office).await;
        trio.office.leads("home", &link);
        trio
    }

    /// Office stops without a word and is there again at once.
    async fn restart_office(&mut self, handler: Arc<dyn SessionHandler>) {
        for link in self.office.links.lock().unwrap().iter() {
            link.end(CloseCode::ShuttingDown, "stopped by the test");
        }
        self.office = self.office.restarted(handler);
        let link = self.relay.link(&self.office).await;
        self.office.leads("home", &link);
    }
}

/// A trio whose nodes write down what their sessions bring.
struct Heard {
    trio: Trio,
    home_saw: Arc<Recorder>,
    office_saw: Arc<Recorder>,
}

impl std::ops::Deref for Heard {
    type Target = Trio;
    fn deref(&self) -> &Trio {
        &self.trio
    }
}

async fn heard() -> Heard {
    let (home, office) = (Recorder::new(), Recorder::new());
    Heard {
        trio: Trio::with(home.clone(), office.clone()).await,
        home_saw: home,
        office_saw: office,
    }
}

/// Waits until `good` holds; the clock of these tests is paused, so this takes no time.
async fn until(what: &str, good: impl Fn() -> bool) {
    let wait = async {
        while !good() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(120 * SECOND, wait).await.is_ok(), "never: {what}");
}

/// Sends a numbered frame.
fn say(session: &SessionRef, class: Class, n: usize) {
    let json = format!("{{\"n\":{n}}}");
    session.send(class, json.as_bytes(), b"").unwrap();
}

fn numbered(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers
        .into_iter()
        .map(|n| format!("{{\"n\":{n}}}"))
        .collect()
}
