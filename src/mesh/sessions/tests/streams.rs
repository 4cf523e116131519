//! Requests of exchanges over sessions whose relay alters, holds back, loses and lies.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;

use super::*;
use crate::{
    exchange::{
        Call, End, Exchange, InboundHandler, Incoming, Item, Kind as RequestKind, NewRequest,
        Timeouts,
    },
    ids::RequestId,
};

/// Streams numbers for a model request; counts how often it was asked to run a tool.
#[derive(Debug)]
pub(super) struct Worker {
    tasks: Tasks,
    ran: AtomicUsize,
}

const CHUNKS: usize = 150;
const EVERY: Duration = Duration::from_millis(20);

pub(super) fn well() -> End {
    End {
        ok: true,
        ..End::default()
    }
}

async fn count(mut incoming: Incoming) {
    incoming.reply.accept().await.unwrap();
    for n in 0..CHUNKS {
        if incoming
            .reply
            .chunk(format!("{n},").into(), None)
            .await
            .is_err()
        {
            return;
        }
        tokio::time::sleep(EVERY).await;
    }
    let _ = incoming.reply.end(well()).await;
}

impl InboundHandler for Worker {
    fn handle(&self, mut incoming: Incoming) {
        if incoming.kind == RequestKind::Model {
            self.tasks.spawn(count(incoming));
            return;
        }
        self.ran.fetch_add(1, Ordering::Relaxed);
        self.tasks.spawn(async move {
            incoming.reply.accept().await.unwrap();
            tokio::time::sleep(20 * SECOND).await;
            let _ = incoming.reply.end(well()).await;
        });
    }
}

pub(super) struct Working {
    pub(super) trio: Trio,
    pub(super) home: Exchange,
    pub(super) office: Arc<Worker>,
}

pub(super) fn exchange() -> (Exchange, Arc<Worker>) {
    let tasks = Tasks::new();
    let worker = Arc::new(Worker {
        tasks: tasks.clone(),
        ran: AtomicUsize::new(0),
    });
    (Exchange::new(tasks, worker.clone()), worker)
}

async fn working() -> Working {
    let (home, _) = exchange();
    let (office, worker) = exchange();
    Working {
        trio: Trio::with(Arc::new(home.clone()), Arc::new(office)).await,
        home,
        office: worker,
    }
}

pub(super) fn request(kind: RequestKind) -> NewRequest {
    let fields = match kind {
        RequestKind::Model => r#""model":"m","path":"/v1/chat/completions","stream":true"#,
        _ => r#""tool":"exec","args":{}"#,
    };
    NewRequest {
        rid: RequestId::random(),
        kind,
        fields: fields.to_owned(),
        body: Bytes::new(),
        class: Class::Interactive,
        idempotent: !kind.once(),
        timeouts: Timeouts {
            accept: 60 * SECOND,
            idle: None,
            deadline: 600 * SECOND,
            until_first_byte: false,
        },
    }
}

impl Working {
    async fn ask(&self, kind: RequestKind) -> Call {
        let session = self.trio.home.open("office").await;
        self.home.open(&session, request(kind)).unwrap()
    }

    pub(super) async fn stream(&self) -> Call {
        self.ask(RequestKind::Model).await
    }

    async fn tool(&self) -> Call {
        self.ask(RequestKind::Tool).await
    }

    /// What the relay's altering cost, at both ends.
    fn unopened(&self) -> u64 {
        self.trio.home.dropped(Reason::BadBody) + self.trio.office.dropped(Reason::BadBody)
    }
}

/// Reads an answer to its end.
pub(super) async fn all(call: &mut Call) -> Result<String, Failure> {
    let mut text = Vec::new();
    while let Some(item) = timeout(200 * SECOND, call.next()).await.unwrap()? {
        if let Item::Chunk { data, .. } = item {
            text.extend_from_slice(&data);
        }
    }
    Ok(String::from_utf8(text).unwrap())
}

pub(super) fn whole() -> String {
    (0..CHUNKS).map(|n| format!("{n},")).collect()
}

/// T31, T32: body, class, header and number altered by turns: counted, never believed, sent again.
/// An altered `ttl` harms nothing.
#[tokio::test(start_paused = true)]
async fn a_stream_survives_a_relay_that_alters_frames() {
    let working = working().await;
    let mut call = working.stream().await;
    let altered = Arc::new(Mutex::new(0_u64));
    let (count, mut n) = (altered.clone(), 0_u64);
    working.trio.relay.does(move |_, mut frame| {
        frame.ttl = 3;
        if frame.kind != Kind::Routed {
            return vec![frame];
        }
        n += 1;
        if n % 5 != 0 {
            return vec![frame];
        }
        *count.lock().unwrap() += 1;
        match n / 5 % 4 {
            0 => {
                let middle = frame.body.len() / 2;
                frame.body[middle] ^= 1;
            }
            1 => frame.header.push(b' '),
            2 if frame.class == Class::Bulk => frame.class = Class::Interactive,
            2 => frame.class = Class::Bulk,
            _ => {
                let text = String::from_utf8(frame.header).unwrap();
                frame.header = text.replace("\"n\":", "\"n\":1").into_bytes();
            }
        }
        vec![frame]
    });
    assert_eq!(all(&mut call).await.unwrap(), whole());
    let altered = *altered.lock().unwrap();
    assert!(altered > 30, "{altered}");
    until("all of them counted", || working.unopened() == altered).await;
    // The relay's links are not to blame: whoever sits farther away may have altered them.
    assert_eq!(working.trio.home.open_links(), 1);
    assert_eq!(working.trio.office.open_links(), 1);
}

/// T33 for streams: a relay that says everything twice, the second time much later.
#[tokio::test(start_paused = true)]
async fn a_stream_survives_a_relay_that_repeats_and_reorders() {
    let working = working().await;
    let mut call = working.stream().await;
    let mut held: Vec<Frame> = Vec::new();
    working.trio.relay.does(move |_, frame| {
        if frame.kind != Kind::Routed {
            return vec![frame];
        }
        held.push(frame.clone());
        if held.len() < 7 {
            return vec![frame];
        }
        let mut late = std::mem::take(&mut held);
        late.reverse();
        late.insert(0, frame);
        late
    });
    assert_eq!(all(&mut call).await.unwrap(), whole());
}

/// T37: a storm of forged resets costs a handshake every two seconds at most, and nothing that runs.
#[tokio::test(start_paused = true)]
async fn forged_resets_harm_nothing_that_runs() {
    let working = working().await;
    let (mut call, mut tool) = (working.stream().await, working.tool().await);
    let session = working.trio.home.open("office").await;
    let relay = working.trio.relay.clone();
    let storm = async {
        let began = Instant::now();
        while began.elapsed() < 30 * SECOND {
            for _ in 0..20 {
                relay.inject("home", Frame::reset("office", "home", &session.id()));
                let back = working.trio.office.sessions().ready(&node("home"));
                if let Some(back) = back {
                    relay.inject("office", Frame::reset("home", "office", &back.id()));
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (text, ran, ()) = tokio::join!(all(&mut call), all(&mut tool), storm);
    assert_eq!(text.unwrap(), whole());
    assert!(ran.is_ok(), "{ran:?}");
    assert_eq!(working.office.ran.load(Ordering::Relaxed), 1);
    for way in [Way::ToOffice, Way::ToHome] {
        let begun = relay.heard(way, "auth_hello").len();
        assert!(begun <= 17, "{begun} handshakes in 30 s");
    }
}

/// T39, T124: a relay keeps a request that may run only once, the node asked restarts, the relay lets
/// it go. It never runs, and the asker learns that nobody knows.
#[tokio::test(start_paused = true)]
async fn what_may_run_once_does_not_run_after_a_restart() {
    let mut working = working().await;
    // A session is up, so that the request can be held back alone.
    let mut first = working.stream().await;
    all(&mut first).await.unwrap();
    let held = Arc::new(Mutex::new(Vec::new()));
    let keep = held.clone();
    working.trio.relay.does(move |way, frame| {
        if way == Way::ToOffice && frame.kind == Kind::Routed {
            keep.lock().unwrap().push(frame);
            return vec![];
        }
        vec![frame]
    });
    let mut tool = working.tool().await;
    until("the request is held", || !held.lock().unwrap().is_empty()).await;
    let (office, worker) = exchange();
    working.trio.restart_office(Arc::new(office)).await;
    working.trio.relay.obeys();
    for frame in held.lock().unwrap().drain(..) {
        working.trio.relay.inject("office", frame);
    }
    let failure = all(&mut tool).await.unwrap_err();
    assert_eq!(failure.code, Code::OutcomeUnknown);
    assert_eq!(worker.ran.load(Ordering::Relaxed), 0);
    assert_eq!(working.office.ran.load(Ordering::Relaxed), 0);
    assert!(working.trio.office.dropped(Reason::UnknownSession) > 0);
    // With the process that is there now everything works.
    let mut tool = working.tool().await;
    assert_eq!(all(&mut tool).await, Ok(String::new()));
    assert_eq!(worker.ran.load(Ordering::Relaxed), 1);
}

/// 4.6: nothing authenticated for 30 s while a request is open ends the session; the
/// relay's own signs of life do not count.
#[tokio::test(start_paused = true)]
async fn silence_ends_a_session_although_its_link_lives() {
    let working = working().await;
    let mut call = working.stream().await;
    while !matches!(call.next().await.unwrap(), Some(Item::Chunk { .. })) {}
    working.trio.relay.does(|_, frame| match frame.kind {
        Kind::Routed => vec![],
        _ => vec![frame],
    });
    let silent = Instant::now();
    let failure = all(&mut call).await.unwrap_err();
    assert_eq!(failure.code, Code::StreamLost);
    let waited = silent.elapsed().as_secs();
    assert!((29..=32).contains(&waited), "{waited} s");
    until("the session is over", || {
        working.trio.home.sessions().count() == 0
    })
    .await;
    assert_eq!(working.trio.home.open_links(), 1);
    working.trio.relay.obeys();
    assert_eq!(all(&mut working.stream().await).await.unwrap(), whole());
}

/// 6.6: what heals within 30 s costs nothing but the wait.
#[tokio::test(start_paused = true)]
async fn a_stream_outlives_twenty_silent_seconds() {
    let working = working().await;
    let mut call = working.stream().await;
    while !matches!(call.next().await.unwrap(), Some(Item::Chunk { .. })) {}
    working.trio.relay.does(|_, _| vec![]);
    let relay = working.trio.relay.clone();
    let heal = async {
        tokio::time::sleep(20 * SECOND).await;
        relay.obeys();
    };
    let (rest, ()) = tokio::join!(all(&mut call), heal);
    assert!(whole().ends_with(&rest.unwrap()));
}

/// T60 as far as sessions go: the relay dies in the middle of a stream and another way is there.
#[tokio::test(start_paused = true)]
async fn a_stream_goes_on_over_another_way() {
    let working = working().await;
    let second = Relay::new("second", true);
    let trio = &working.trio;
    let ways = (
        second.link(&trio.home).await,
        second.link(&trio.office).await,
    );
    let first = |site: &Site| site.links.lock().unwrap()[0].clone();
    let (at_home, at_office) = (first(&trio.home), first(&trio.office));
    let mut call = working.stream().await;
    let mut text = Vec::new();
    let mut broken = None;
    while let Some(item) = timeout(60 * SECOND, call.next()).await.unwrap().unwrap() {
        if let Item::Chunk { data, .. } = item {
            if let Some(at) = broken.take() {
                let at: Instant = at;
                assert!(at.elapsed() < 5 * SECOND, "resumed within 5 s");
            }
            text.extend_from_slice(&data);
        }
        if text.len() > 60 && trio.home.open_links() == 2 {
            trio.relay.does(|_, _| vec![]);
            broken = Some(Instant::now());
            for (site, link) in [(&trio.home, &at_home), (&trio.office, &at_office)] {
                link.end(CloseCode::Timeout, "cut by the test");
                assert_eq!(site.open_links(), 1);
            }
            trio.home.leads("office", &ways.0);
            trio.office.leads("home", &ways.1);
        }
    }
    assert_eq!(String::from_utf8(text).unwrap(), whole());
    assert_eq!(trio.home.sessions().count(), 1, "the same session");
}

/// Counts how often an exchange is told that a frame of its was dropped.
#[derive(Debug)]
struct Counted(Exchange, AtomicUsize);

impl SessionHandler for Counted {
    fn up(&self, session: &SessionRef) {
        self.0.up(session);
    }
    fn frame(&self, session: &SessionRef, class: Class, inner: Bytes) {
        self.0.frame(session, class, inner);
    }
    fn rerouted(&self, session: &SessionRef) {
        self.0.rerouted(session);
    }
    fn dropped(&self, session: &SessionRef) {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.dropped(session);
    }
    fn lost(&self, session: &SessionRef) {
        self.0.lost(session);
    }
}

/// T122: a relay says ten times of each frame that it dropped it, and that its session is unknown.
/// One hint in a round trip is followed, the stream is whole, and it costs no more handshakes than resets.
#[tokio::test(start_paused = true)]
async fn a_storm_of_hints_costs_a_round_a_round_trip() {
    let (home, _) = exchange();
    let (office, _worker) = exchange();
    let told = Arc::new(Counted(office, AtomicUsize::new(0)));
    let working = Working {
        trio: Trio::with(Arc::new(home.clone()), told.clone()).await,
        home,
        office: _worker,
    };
    let relay = working.trio.relay.clone();
    working.trio.relay.does(move |way, frame| {
        if frame.kind == Kind::Routed {
            let (f, t) = if way == Way::ToOffice {
                ("office", "home")
            } else {
                ("home", "office")
            };
            let (i, s) = (frame.head().i, frame.head().s);
            let nobody = SessionId([0; 16]);
            for _ in 0..10 {
                let body = format!(
                    "{{\"y\":\"link_drop\",\"i\":\"{i}\",\"s\":\"{s}\",\"why\":\"queue_full\"}}"
                );
                let drop = Frame::plain(Kind::RoutedNotice, f, t, &nobody, body);
                relay.inject(t, drop);
                relay.inject(t, Frame::reset(f, t, &s));
            }
        }
        vec![frame]
    });
    let began = Instant::now();
    let text = all(&mut working.stream().await).await.unwrap();
    assert_eq!(text, whole());
    let trips = began.elapsed().as_millis() / 20 + 1;
    let followed = told.1.load(Ordering::Relaxed);
    assert!(followed > 10, "the storm was there: {followed}");
    assert!(
        followed as u128 <= trips,
        "{followed} hints in {trips} round trips"
    );
    // As for a storm of resets alone (T37): a question now and then.
    let asked = [Way::ToOffice, Way::ToHome].map(|way| working.trio.relay.heard(way, "auth_hello"));
    let asked = asked.iter().map(Vec::len).sum::<usize>() as u64;
    let most = 1 + began.elapsed().as_secs().div_ceil(2);
    assert!(asked <= most, "{asked} handshakes, {most} at most");
    let sessions = working.trio.home.sessions().count() as u64;
    assert!(
        sessions <= asked,
        "{sessions} sessions of {asked} handshakes"
    );
}

/// Works until nobody wants it to.
#[derive(Debug)]
struct Endless {
    tasks: Tasks,
    at_work: Arc<AtomicBool>,
    speaks: bool,
}

impl InboundHandler for Endless {
    fn handle(&self, mut incoming: Incoming) {
        let (at_work, speaks) = (self.at_work.clone(), self.speaks);
        at_work.store(true, Ordering::Relaxed);
        self.tasks.spawn(async move {
            let _ = incoming.reply.accept().await;
            if speaks {
                while incoming.reply.chunk("token ".into(), None).await.is_ok() {
                    tokio::time::sleep(EVERY).await;
                }
            } else {
                incoming.reply.cancelled().await;
            }
            at_work.store(false, Ordering::Relaxed);
        });
    }
}

/// T123: the asking node dies in the middle of a request, and whatever tells of it is lost too. The
/// work ends within 35 s, be it silent or busy.
#[tokio::test(start_paused = true)]
async fn work_for_a_node_that_died_ends() {
    for speaks in [false, true] {
        let tasks = Tasks::new();
        let at_work = Arc::new(AtomicBool::new(false));
        let (home, worker) = exchange();
        let office = Exchange::new(
            tasks.clone(),
            Arc::new(Endless {
                tasks,
                at_work: at_work.clone(),
                speaks,
            }),
        );
        let working = Working {
            trio: Trio::with(Arc::new(home.clone()), Arc::new(office.clone())).await,
            home,
            office: worker,
        };
        let mut call = working.stream().await;
        call.next().await.unwrap();
        tokio::time::sleep(2 * SECOND).await;
        assert!(at_work.load(Ordering::Relaxed));
        working.trio.relay.does(|_, _| vec![]);
        let died = Instant::now();
        until("the work is over", || !at_work.load(Ordering::Relaxed)).await;
        let took = died.elapsed();
        assert!(took < 35 * SECOND, "{took:?} (speaks: {speaks})");
        until("nothing is left of it", || office.stats().inbound_open == 0).await;
    }
}
