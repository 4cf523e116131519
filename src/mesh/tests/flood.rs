//! What floods of members cost the others (T52): the flooder's link is closed, and meanwhile the
//! round trips of an honest neighbour stay what they were.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::Instant,
};

use super::{
    door::{close_code, frame, upgraded},
    *,
};
use crate::{
    crypto::{handshake::Initiator, transcript::Carrier},
    mesh::session::{Session, SessionRef},
    wire::{close::CloseCode, inner::Inner},
};

/// Round trips of one phase; phases with and without floods take turns, so that whatever else the
/// machine does falls on both.
const ROUND_TRIPS: usize = 100;
const PHASES: usize = 20;
/// Below this a p99 tells what the scheduler did, not what the node does.
const FLOOR: Duration = Duration::from_millis(5);
/// Members that flood; each may link 60 times a minute, all of one address 300 times (protocol 3.5).
const FLOODERS: usize = 5;
const LINKS_EACH: usize = 24;

/// Sends every frame back, or into a queue.
#[derive(Debug)]
struct Echo(Option<mpsc::Sender<Bytes>>);

impl SessionHandler for Echo {
    fn up(&self, _: &Arc<dyn Session>) {}
    fn frame(&self, session: &Arc<dyn Session>, class: Class, inner: Bytes) {
        let json = Inner::decode(inner).unwrap().json;
        if json.as_ref() == b"{\"type\":\"noop\"}" {
            return;
        }
        match &self.0 {
            Some(queue) => queue.try_send(json).unwrap(),
            None => session.send(class, &json, b"").unwrap(),
        }
    }
    fn lost(&self, _: &Arc<dyn Session>) {}
}

/// The next text message of the node.
async fn text(socket: &mut TcpStream) -> Option<String> {
    let mut head = [0; 2];
    socket.read_exact(&mut head).await.ok()?;
    let length = match head[1] {
        126 => usize::from(socket.read_u16().await.ok()?),
        short => usize::from(short),
    };
    let mut text = vec![0; length];
    socket.read_exact(&mut text).await.ok()?;
    (head[0] == 0x81).then(|| String::from_utf8(text).unwrap())
}

/// A link of `us` whose socket the test writes to as it likes.
async fn linked(us: &Ourselves, port: u16) -> Option<TcpStream> {
    let mut socket = upgraded(Ipv4Addr::LOCALHOST, port).await?;
    let (initiator, m1) = Initiator::hello(us.local(Carrier::Link), node("office"));
    socket.write_all(&frame(0x81, m1.as_bytes())).await.ok()?;
    let known = initiator.open(&text(&mut socket).await?).unwrap();
    let (proving, m3) = known.prove(&MeshKey::from_bytes([1; 32]));
    socket.write_all(&frame(0x81, m3.as_bytes())).await.ok()?;
    proving.confirm(&text(&mut socket).await?).unwrap();
    Some(socket)
}

/// Links and floods again and again while `on`; counts links that were cut for it.
async fn flood(port: u16, on: &AtomicBool, cut: &AtomicUsize) {
    let mut fragments = frame(0x02, b"x");
    fragments.extend(frame(0x00, b"x").repeat(19_999));
    let floods = [frame(0x89, b"").repeat(20_000), fragments];
    let members: Vec<_> = (0..FLOODERS)
        .map(|number| ourselves(&format!("flooder-{number}"), 1))
        .collect();
    for round in 0..LINKS_EACH {
        for member in &members {
            while !on.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let mut socket = linked(member, port).await.expect("a member may link");
            // The node may close while this is still being written.
            let _ = socket.write_all(&floods[round % floods.len()]).await;
            // A reset may overtake the code; that the connection ends is what counts.
            let code = close_code(&mut socket).await;
            assert!(code.is_none_or(|code| code == CloseCode::RateLimited as u16));
            cut.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Times of round trips from `home`, in order of length.
async fn round_trips(session: &SessionRef, echoes: &mut mpsc::Receiver<Bytes>) -> Vec<Duration> {
    let mut times = Vec::new();
    for n in 0..ROUND_TRIPS {
        let json = format!("{{\"n\":{n}}}");
        let began = Instant::now();
        session
            .send(Class::Interactive, json.as_bytes(), b"")
            .unwrap();
        assert_eq!(echoes.recv().await.unwrap(), json);
        times.push(began.elapsed());
    }
    times
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// T52, the second half: others keep their p99 within a factor of two.
#[tokio::test]
async fn floods_leave_the_round_trips_of_others_as_they_were() {
    let office = Node::handled(ourselves("office", 1), 0, Arc::new(Echo(None))).await;
    let (queue, mut echoes) = mpsc::channel(1);
    let home = Node::handled(ourselves("home", 1), 0, Arc::new(Echo(Some(queue)))).await;
    home.dial(&office);
    home.linked_to("office").await;
    let session = home.mesh.session(&office.name).await.unwrap();
    let on = Arc::new(AtomicBool::new(false));
    let cut = Arc::new(AtomicUsize::new(0));
    // A thread of its own, as it would be another machine.
    let flooder = thread::spawn({
        let (on, cut, port) = (on.clone(), cut.clone(), office.port);
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(flood(port, &on, &cut));
        }
    });
    round_trips(&session, &mut echoes).await;
    let (mut quiet, mut flooded) = (Vec::new(), Vec::new());
    for _ in 0..PHASES {
        quiet.extend(round_trips(&session, &mut echoes).await);
        on.store(true, Ordering::Relaxed);
        let before = cut.load(Ordering::Relaxed);
        // As long as it takes to have been flooded for certain.
        while cut.load(Ordering::Relaxed) < before + 4 && !flooder.is_finished() {
            flooded.extend(round_trips(&session, &mut echoes).await);
        }
        on.store(false, Ordering::Relaxed);
        if flooder.is_finished() {
            break;
        }
    }
    on.store(true, Ordering::Relaxed);
    while !flooder.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    flooder.join().unwrap();
    assert_eq!(cut.load(Ordering::Relaxed), FLOODERS * LINKS_EACH);
    let (quiet, flooded) = (p99(quiet), p99(flooded));
    assert!(
        flooded <= 2 * quiet.max(FLOOR),
        "p99 {quiet:?}, under floods {flooded:?}"
    );
}
