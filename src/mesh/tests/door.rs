//! Strangers and misbehaving neighbours on real sockets (protocol 3.5, 5.5).

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::Instant,
};

use super::*;
use crate::mesh::{
    link::{Ending, Link},
    testkit,
    ws::Ws,
};
use crate::wire::{close::CloseCode, limits::REKEY_RECORDS};

const UPGRADE: &str = "GET /mesh/v1 HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\n\
    upgrade: websocket\r\nsec-websocket-version: 13\r\n\
    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: clawmatrix.v1\r\n\r\n";

async fn from(address: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((address, 0)))?;
    socket
        .connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .await
}

/// An upgraded connection; none when the node dropped it.
pub(super) async fn upgraded(address: Ipv4Addr, port: u16) -> Option<TcpStream> {
    let mut socket = from(address, port).await.ok()?;
    socket.write_all(UPGRADE.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(socket.read_u8().await.ok()?);
    }
    answer.starts_with(b"HTTP/1.1 101").then_some(socket)
}

/// One masked frame; the mask is zero, which the protocol allows.
pub(super) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        short @ 0..126 => bytes.push(0x80 | short as u8),
        long => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(long as u16).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// Reads to the end; gives the close code if there was a close frame.
pub(super) async fn close_code(socket: &mut TcpStream) -> Option<u16> {
    let mut bytes = Vec::new();
    let _ = timeout(Duration::from_secs(30), socket.read_to_end(&mut bytes))
        .await
        .expect("the node closes");
    let at = bytes.windows(2).rposition(|w| w[0] == 0x88 && w[1] >= 2)?;
    let code = bytes.get(at + 2..at + 4)?;
    Some(u16::from_be_bytes([code[0], code[1]]))
}

/// Resident memory of this process in bytes.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap();
    kib.parse::<usize>().unwrap() * 1024
}

/// T47.
#[tokio::test]
async fn half_open_sockets_do_not_keep_an_honest_node_out() {
    const SOCKETS: u32 = 4000;
    let office = Node::start("office", 1).await;
    let mut sockets = Vec::new();
    let before = resident_bytes();
    for n in 0..SOCKETS {
        let address = Ipv4Addr::new(127, 0, 1 + (n / 200) as u8, 1 + (n % 200) as u8);
        sockets.push(from(address, office.port).await.unwrap());
    }
    let home = Node::start("home", 1).await;
    let began = Instant::now();
    home.dial(&office);
    home.linked_to("office").await;
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    let overflow = office
        .mesh
        .drops()
        .into_iter()
        .find(|(name, _)| *name == Reason::PendingOverflow.as_str());
    assert!(overflow.is_some_and(|(_, count)| count >= u64::from(SOCKETS) - 256));
    // The strangers' own ends are in it too.
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 20 << 20, "{grown} bytes");
    drop(sockets);
}

/// A path to `to` for connections, of which the first so many are swallowed without a word.
async fn path(listener: TcpListener, to: u16, swallowed: tokio::sync::watch::Receiver<usize>) {
    let mut held = Vec::new();
    loop {
        let (near, _) = listener.accept().await.unwrap();
        let far = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
        let (mut swallowed, number) = (swallowed.clone(), held.len());
        held.push(tokio::task::JoinSet::from_iter([async move {
            let (mut near, mut far) = (near, far);
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                _ = swallowed.wait_for(|first| number < *first) => {}
            }
            // Both sockets stay open, and nobody reads them.
            std::future::pending::<()>().await;
        }]));
    }
}

/// Where a path to a node begins, and how it is dialed over that path.
async fn through_a_path(to: &Node) -> (TcpListener, PeerConfig) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut peer = to.peer();
    peer.url.set_port(Some(port)).unwrap();
    (listener, peer)
}

/// T78 over real sockets: a path that swallows everything without a word. The request that waits on
/// it finds out within 15 s.
#[tokio::test]
async fn a_path_that_swallows_everything_is_given_up() {
    let office = Node::start("office", 1).await;
    let home = Node::start("home", 1).await;
    let (listener, peer) = through_a_path(&office).await;
    let (swallow, swallowed) = tokio::sync::watch::channel(0);
    let test = async {
        home.mesh.dial(vec![peer]);
        home.linked_to("office").await;
        let session = home.mesh.session(&office.name).await.unwrap();
        swallow.send_replace(usize::MAX);
        // A link that has just been heard is not suspected yet.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let began = Instant::now();
        session.send(Class::Interactive, b"{}", b"").unwrap();
        home.sees("office", |view| view.reach == Reach::Unreachable)
            .await;
        assert!(
            began.elapsed() < Duration::from_secs(15),
            "{:?}",
            began.elapsed()
        );
    };
    tokio::select! {
        () = path(listener, office.port, swallowed) => {}
        () = test => {}
    }
}

/// A connection that was cut is not waited for: a new one is there before the old one is given up.
#[tokio::test]
async fn a_connection_in_doubt_is_replaced_while_it_is_up() {
    let office = Node::start("office", 1).await;
    let home = Node::start("home", 1).await;
    let (listener, peer) = through_a_path(&office).await;
    let (swallow, swallowed) = tokio::sync::watch::channel(0);
    let test = async {
        home.mesh.dial(vec![peer]);
        home.linked_to("office").await;
        let session = home.mesh.session(&office.name).await.unwrap();
        swallow.send_replace(1);
        tokio::time::sleep(Duration::from_secs(2)).await;
        // All that somebody sends who waits for an answer.
        session.waits();
        let unreached = home.sees("office", |view| view.reach != Reach::Direct);
        let answered = async {
            loop {
                session.send(Class::Interactive, b"{}", b"").unwrap();
                if !office.seen.frames().is_empty() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            view = unreached => panic!("left without a link: {view:?}"),
            () = answered => {}
        }
    };
    tokio::select! {
        () = path(listener, office.port, swallowed) => {}
        () = test => {}
    }
}

/// T48 after the upgrade, in real time.
#[tokio::test]
async fn silence_and_dripping_after_the_upgrade_end_within_eleven_seconds() {
    let office = Node::start("office", 1).await;
    let began = Instant::now();
    let mut silent = upgraded(Ipv4Addr::new(127, 0, 0, 2), office.port)
        .await
        .unwrap();
    let mut dripping = upgraded(Ipv4Addr::new(127, 0, 0, 3), office.port)
        .await
        .unwrap();
    let hello = frame(0x81, &[b' '; 100]);
    let (mut read, mut write) = dripping.split();
    let drip = async {
        for byte in &hello {
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let ended = async {
        assert_eq!(
            close_code(&mut silent).await,
            Some(CloseCode::Timeout as u16)
        );
        let mut rest = Vec::new();
        let _ = read.read_to_end(&mut rest).await;
        began.elapsed()
    };
    tokio::pin!(drip, ended);
    let ended = tokio::select! {
        elapsed = &mut ended => elapsed,
        () = &mut drip => ended.await,
    };
    assert!(ended < Duration::from_secs(14), "{ended:?}");
}

/// T49.
#[tokio::test]
async fn failing_source_is_held_back_and_others_are_not() {
    let office = Node::start("office", 1).await;
    let (bad, good) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
    let mut answered = 0;
    for _ in 0..50 {
        if let Some(mut socket) = upgraded(bad, office.port).await {
            answered += 1;
            socket.write_all(&frame(0x81, b"{}")).await.unwrap();
            assert_eq!(close_code(&mut socket).await, Some(4401));
        }
    }
    assert!(
        (11..=12).contains(&answered),
        "five free, six a minute: {answered}"
    );
    assert!(upgraded(good, office.port).await.is_some());
}

/// T51, T42 and T22 at the door: nothing large is ever read, nothing binary is kept.
#[tokio::test]
async fn strangers_cannot_send_large_frames_or_records() {
    let office = Node::start("office", 1).await;
    let mut huge = vec![0x82, 0x80 | 127];
    huge.extend_from_slice(&(16u64 << 20).to_be_bytes());
    huge.extend_from_slice(&[0; 4]);
    for bytes in [
        huge,
        frame(0x82, &[0; 2049]),
        frame(0x82, &[0; 100]),
        frame(0x81, &[b' '; 2049]),
    ] {
        let mut socket = upgraded(Ipv4Addr::new(127, 0, 0, 4), office.port)
            .await
            .unwrap();
        socket.write_all(&bytes).await.unwrap();
        assert_eq!(close_code(&mut socket).await, Some(4401));
    }
}

#[tokio::test]
async fn ping_flood_of_a_stranger_is_cut() {
    let office = Node::start("office", 1).await;
    let mut socket = upgraded(Ipv4Addr::LOCALHOST, office.port).await.unwrap();
    let pings = frame(0x89, b"").repeat(20_000);
    // The node may close while this is still being written.
    let _ = socket.write_all(&pings).await;
    let began = Instant::now();
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest).await;
    assert!(began.elapsed() < Duration::from_secs(5));
}

/// T52: floods of an authenticated neighbour close its link and no other. What others feel of it:
/// `flood.rs`.
#[tokio::test]
async fn floods_of_pings_or_fragments_close_one_link() {
    let mut one_byte_fragments = frame(0x02, b"x");
    one_byte_fragments.extend(frame(0x00, b"x").repeat(19_999));
    let mut declared = vec![0x82, 0x80 | 127];
    declared.extend_from_slice(&(16u64 << 20).to_be_bytes());
    declared.extend_from_slice(&[0; 4]);
    let cases = [
        (frame(0x89, b"").repeat(20_000), CloseCode::RateLimited),
        (one_byte_fragments, CloseCode::RateLimited),
        (declared, CloseCode::RecordFailure),
        (frame(0x83, b"x"), CloseCode::ProtocolError),
    ];
    let (other_a, other_b, _tasks) = testkit::linked(REKEY_RECORDS, |_, message| vec![message]);
    for (bytes, code) in cases {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (near, _) = listener.accept().await.unwrap();
        let ws = Ws::accepted(near).await;
        ws.grow().await;
        let setup = testkit::setup(false, REKEY_RECORDS);
        let (link, seen) = (Link::new(&setup), Recorder::new());
        link.run(&setup, ws.split(), seen.clone(), &Tasks::new());
        let _ = far.write_all(&bytes).await;
        seen.until(|seen| seen.ending().is_some()).await;
        let Some(Ending::Ours { code: found, .. }) = seen.ending() else {
            panic!("not ours: {:?}", seen.ending());
        };
        assert_eq!(found, code);
    }
    assert!(other_a.link.is_open() && other_b.link.is_open());
}

#[tokio::test]
async fn old_plugin_is_recognised() {
    let office = Node::start("office", 1).await;
    let mut socket = from(Ipv4Addr::LOCALHOST, office.port).await.unwrap();
    let old = UPGRADE
        .replace("/mesh/v1", "/")
        .replace("sec-websocket-protocol: clawmatrix.v1\r\n", "");
    socket.write_all(old.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 426"), "{answer}");
    assert!(
        office
            .mesh
            .drops()
            .contains(&(Reason::OldPlugin.as_str(), 1))
    );
}
