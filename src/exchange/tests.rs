//! Two exchanges over an in-memory cable that delays, drops, doubles, fills up and breaks.

mod cancel;
mod carrier;
mod credit;
mod halves;
mod life;
mod loss;
mod memory;
mod random;
mod refusal;
mod slow;

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use serde_json::value::RawValue;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::*;
use crate::{
    crypto::identity::PublicKey,
    ids::{Boot, NodeId, SessionId},
    mesh::session::{Peer, SendError, Session},
    trust::Level,
    wire::{code::Stage, inner},
};

const SECOND: Duration = Duration::from_secs(1);

/// What the cable does with one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Deliver,
    Drop,
    Twice,
    /// Later than those behind it.
    Late(Duration),
}

type Judge = Box<dyn FnMut(Class, &[u8]) -> Fate + Send>;

/// One end's view of the cable.
struct End1 {
    id: SessionId,
    peer: Peer,
    began: Instant,
    /// Added to `elapsed`: a clock that went on alone.
    skew: Mutex<Duration>,
    queue: Mutex<VecDeque<(Class, Bytes)>>,
    room: AtomicUsize,
    ready: Notify,
    freed: Notify,
    gone: AtomicBool,
    failed: Mutex<Option<&'static str>>,
    rtt: Duration,
    sent: AtomicU64,
}

impl fmt::Debug for End1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session with {}", self.peer.node)
    }
}

impl Session for End1 {
    fn id(&self) -> SessionId {
        self.id
    }
    fn peer(&self) -> &Peer {
        &self.peer
    }
    fn elapsed(&self) -> Duration {
        self.began.elapsed() + *self.skew.lock().unwrap()
    }
    fn rtt(&self) -> Option<Duration> {
        Some(self.rtt)
    }
    fn send(&self, class: Class, json: &[u8], data: &[u8]) -> Result<(), SendError> {
        if self.gone.load(Relaxed) {
            return Err(SendError::Gone);
        }
        let mut buffer = BytesMut::new();
        inner::put(&mut buffer, json, data).map_err(|_| SendError::TooLarge)?;
        let mut queue = self.queue.lock().unwrap();
        if class != Class::Control {
            let held: usize = queue.iter().map(|(_, frame)| frame.len()).sum();
            if held >= self.room.load(Relaxed) {
                return Err(SendError::Full);
            }
        }
        self.sent.fetch_add(1, Relaxed);
        queue.push_back((class, buffer.freeze()));
        self.ready.notify_one();
        Ok(())
    }
    fn room(&self, _class: Class) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.freed.notified())
    }
    fn fail(&self, reason: &'static str) {
        self.failed.lock().unwrap().get_or_insert(reason);
        self.gone.store(true, Relaxed);
    }
}

/// Keeps what arrives, for the test to take.
#[derive(Debug)]
struct Inbox(mpsc::Sender<Incoming>);

impl InboundHandler for Inbox {
    fn handle(&self, incoming: Incoming) {
        // A full inbox drops the request, which answers it.
        let _ = self.0.try_send(incoming);
    }
}

/// One node.
struct Node {
    exchange: Exchange,
    inbox: mpsc::Receiver<Incoming>,
    name: NodeId,
    key: PublicKey,
    boot: Boot,
}

impl Node {
    fn new(name: &str, byte: u8) -> Self {
        Self::with_limits(name, byte, Limits::default())
    }

    fn with_limits(name: &str, byte: u8, limits: Limits) -> Self {
        let (sender, inbox) = mpsc::channel(4096);
        Self {
            exchange: Exchange::with_limits(Tasks::new(), Arc::new(Inbox(sender)), limits),
            inbox,
            name: name.parse().unwrap(),
            key: PublicKey([byte; 32]),
            boot: Boot::random(),
        }
    }

    fn peer(&self) -> Peer {
        Peer {
            node: self.name.clone(),
            key: self.key,
            boot: self.boot,
            level: Level::Pinned,
            labels: Arc::new([]),
        }
    }

    async fn incoming(&mut self) -> Incoming {
        within(self.inbox.recv()).await.expect("a request")
    }
}

/// A cable between two nodes; each side has its end of it.
struct Cable {
    a: Arc<End1>,
    b: Arc<End1>,
    session_a: SessionRef,
    session_b: SessionRef,
    exchange_a: Exchange,
    exchange_b: Exchange,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// How a cable behaves.
struct Manner {
    delay: Duration,
    room: usize,
    /// Judges frames from a to b, and from b to a.
    up: Judge,
    down: Judge,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(1),
            room: 512 * 1024,
            up: Box::new(|_, _| Fate::Deliver),
            down: Box::new(|_, _| Fate::Deliver),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a cable is no task of the node")]
fn spawn<F>(task: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(task)
}

/// Carries frames from one end to the other, control first, as a link does.
async fn carry(
    from: Arc<End1>,
    to: SessionRef,
    handler: Exchange,
    delay: Duration,
    mut judge: Judge,
) {
    loop {
        let frame = {
            let mut queue = from.queue.lock().unwrap();
            let at = queue
                .iter()
                .position(|(class, _)| *class == Class::Control)
                .unwrap_or(0);
            queue.remove(at)
        };
        let Some((class, bytes)) = frame else {
            from.ready.notified().await;
            continue;
        };
        from.freed.notify_waiters();
        let json = inner::Inner::decode(bytes.clone()).unwrap().json;
        let fate = judge(class, &json);
        let late = if let Fate::Late(more) = fate {
            more
        } else {
            Duration::ZERO
        };
        let times = match fate {
            Fate::Drop => 0,
            Fate::Twice => 2,
            Fate::Deliver | Fate::Late(_) => 1,
        };
        for _ in 0..times {
            let (to, handler, bytes) = (Arc::clone(&to), handler.clone(), bytes.clone());
            let at = Instant::now() + delay + late;
            spawn(async move {
                tokio::time::sleep_until(at).await;
                handler.frame(&to, class, bytes);
            });
        }
        tokio::task::yield_now().await;
    }
}

impl Cable {
    fn new(a: &Node, b: &Node, manner: Manner) -> Self {
        let id = SessionId::random();
        let end = |peer: Peer| {
            Arc::new(End1 {
                id,
                peer,
                began: Instant::now(),
                skew: Mutex::default(),
                queue: Mutex::default(),
                room: AtomicUsize::new(manner.room),
                ready: Notify::new(),
                freed: Notify::new(),
                gone: AtomicBool::new(false),
                failed: Mutex::default(),
                rtt: manner.delay * 2,
                sent: AtomicU64::new(0),
            })
        };
        let (end_a, end_b) = (end(b.peer()), end(a.peer()));
        let session_a: SessionRef = end_a.clone();
        let session_b: SessionRef = end_b.clone();
        a.exchange.up(&session_a);
        b.exchange.up(&session_b);
        let (delay, up, down) = (manner.delay, manner.up, manner.down);
        let tasks = vec![
            spawn(carry(
                end_a.clone(),
                session_b.clone(),
                b.exchange.clone(),
                delay,
                up,
            )),
            spawn(carry(
                end_b.clone(),
                session_a.clone(),
                a.exchange.clone(),
                delay,
                down,
            )),
        ];
        Self {
            a: end_a,
            b: end_b,
            session_a,
            session_b,
            exchange_a: a.exchange.clone(),
            exchange_b: b.exchange.clone(),
            tasks,
        }
    }

    /// Cuts it; both sides learn at once.
    fn cut(&self) {
        for task in &self.tasks {
            task.abort();
        }
        self.a.gone.store(true, Relaxed);
        self.b.gone.store(true, Relaxed);
        self.exchange_a.lost(&self.session_a);
        self.exchange_b.lost(&self.session_b);
    }

    /// Hands a frame to the far side as if the near one had sent it.
    fn forge_to_b(&self, json: &str, data: &[u8]) {
        let mut buffer = BytesMut::new();
        inner::put(&mut buffer, json.as_bytes(), data).unwrap();
        self.exchange_b
            .frame(&self.session_b, Class::Interactive, buffer.freeze());
    }

    fn forge_to_a(&self, json: &str, data: &[u8]) {
        let mut buffer = BytesMut::new();
        inner::put(&mut buffer, json.as_bytes(), data).unwrap();
        self.exchange_a
            .frame(&self.session_a, Class::Interactive, buffer.freeze());
    }
}

/// Two nodes and a cable.
struct Pair {
    a: Node,
    b: Node,
    cable: Cable,
}

impl Pair {
    fn new() -> Self {
        Self::with(Manner::default())
    }

    fn with(manner: Manner) -> Self {
        let (a, b) = (Node::new("home-01", 1), Node::new("office-01", 2));
        let cable = Cable::new(&a, &b, manner);
        Self { a, b, cable }
    }

    fn open(&self, request: NewRequest) -> Call {
        self.a
            .exchange
            .open(&self.cable.session_a, request)
            .expect("room for a request")
    }

    /// Opens a request and takes it at the other side.
    async fn start(&mut self, request: NewRequest) -> (Call, Incoming) {
        let call = self.open(request);
        let incoming = self.b.incoming().await;
        assert_eq!(incoming.rid, call.rid());
        (call, incoming)
    }

    /// Waits until neither side has anything open or held.
    async fn quiet(&self) {
        let quiet = || {
            [&self.a, &self.b].iter().all(|node| {
                let stats = node.exchange.stats();
                stats.outbound_open + stats.inbound_open + stats.bytes_held == 0
            })
        };
        until(quiet).await;
    }
}

fn request(body: impl Into<Bytes>) -> NewRequest {
    NewRequest {
        rid: RequestId::random(),
        kind: Kind::Model,
        fields: r#""model":"m","path":"/v1/chat/completions","stream":true"#.to_owned(),
        body: body.into(),
        class: Class::Interactive,
        idempotent: true,
        timeouts: Timeouts {
            accept: 5 * SECOND,
            idle: Some(300 * SECOND),
            deadline: 600 * SECOND,
            until_first_byte: true,
        },
    }
}

/// One that may run once only.
fn once(body: impl Into<Bytes>) -> NewRequest {
    NewRequest {
        kind: Kind::Tool,
        fields: r#""tool":"exec","args":{}"#.to_owned(),
        idempotent: false,
        timeouts: Timeouts {
            accept: 5 * SECOND,
            idle: None,
            deadline: 1800 * SECOND,
            until_first_byte: false,
        },
        ..request(body)
    }
}

fn good() -> End {
    End {
        ok: true,
        usage: RawValue::from_string(r#"{"total_tokens":3}"#.to_owned()).ok(),
        result: None,
    }
}

/// Everything an answer was.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    accepted: bool,
    status: Option<u16>,
    data: Vec<u8>,
    ok: bool,
    items: usize,
}

async fn answer(call: &mut Call) -> Result<Answer, Failure> {
    let mut answer = Answer::default();
    while let Some(item) = within(call.next()).await? {
        answer.items += 1;
        let fin = match item {
            Item::Accept | Item::Waits(_) => {
                answer.accepted = true;
                None
            }
            Item::Head {
                status, data, fin, ..
            } => {
                answer.status = Some(status);
                answer.data.extend_from_slice(&data);
                fin
            }
            Item::Chunk { data, fin } => {
                answer.data.extend_from_slice(&data);
                fin
            }
            Item::End(end) => Some(end),
        };
        if let Some(end) = fin {
            answer.ok = end.ok;
        }
    }
    Ok(answer)
}

async fn body(reader: &mut BodyReader) -> Result<Vec<u8>, Failure> {
    let mut whole = Vec::new();
    while let Some(bytes) = within(reader.next()).await? {
        whole.extend_from_slice(&bytes);
    }
    Ok(whole)
}

/// Bytes that differ at every place.
fn noise(len: usize) -> Bytes {
    let mut x = 0x2545_f491_u32;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x.to_le_bytes()[0]
        })
        .collect::<Vec<u8>>()
        .into()
}

/// Fails instead of hanging.
async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(3600 * SECOND, future)
        .await
        .expect("in time")
}

async fn until(mut condition: impl FnMut() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn drops(node: &Node, why: DropReason) -> u64 {
    node.exchange.stats().drops[why as usize].1
}
