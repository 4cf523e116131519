//! A provider that does what a test says, byte by byte, and remembers what it was sent.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::timeout,
};

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// One answer.
#[derive(Clone)]
pub struct Script {
    /// Written one after the other, each in its own write.
    pub pieces: Vec<Vec<u8>>,
    /// When set, each piece waits for a permit.
    pub gate: Option<Arc<Semaphore>>,
    /// What follows.
    pub then: Then,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The next request may come.
    KeepAlive,
    /// The connection is closed.
    Close,
    /// Nothing more, until the other side goes.
    Hang,
}

impl Script {
    pub fn raw(bytes: impl Into<Vec<u8>>, then: Then) -> Self {
        Self {
            pieces: vec![bytes.into()],
            gate: None,
            then,
        }
    }

    pub fn hang() -> Self {
        Self {
            pieces: vec![],
            gate: None,
            then: Then::Hang,
        }
    }

    pub fn json(status: u16, body: &str) -> Self {
        Self::reply(
            status,
            &[("content-type", "application/json")],
            body.as_bytes(),
        )
    }

    pub fn reply(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        Self::raw(bytes, Then::KeepAlive)
    }

    /// An event stream; each piece is one HTTP chunk.
    pub fn events(pieces: &[&[u8]], then: Then) -> Self {
        let mut out = vec![
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nx-vendor: yes\r\nset-cookie: no\r\n\r\n".to_vec(),
        ];
        for piece in pieces {
            let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
            chunk.extend_from_slice(piece);
            chunk.extend_from_slice(b"\r\n");
            out.push(chunk);
        }
        if then == Then::KeepAlive {
            out.push(b"0\r\n\r\n".to_vec());
        }
        Self {
            pieces: out,
            gate: None,
            then,
        }
    }

    pub fn gated(mut self, gate: &Arc<Semaphore>) -> Self {
        self.gate = Some(gate.clone());
        self
    }
}

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub head: String,
    pub body: Vec<u8>,
}

impl Recorded {
    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

#[derive(Default, Clone)]
struct Seen {
    requests: Vec<Recorded>,
    connections: usize,
    /// Clients that left while a script hung or wrote.
    gone: usize,
}

#[derive(Clone)]
pub struct FakeProvider {
    pub port: u16,
    scripts: Arc<Mutex<VecDeque<Script>>>,
    seen: Arc<watch::Sender<Seen>>,
}

impl FakeProvider {
    /// Answers requests with `scripts` in turn; the last one again and again.
    pub async fn start(scripts: Vec<Script>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let this = Self {
            port: listener.local_addr().unwrap().port(),
            scripts: Arc::new(Mutex::new(scripts.into())),
            seen: Arc::new(watch::Sender::default()),
        };
        let server = this.clone();
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                server.seen.send_modify(|seen| seen.connections += 1);
                stream.set_nodelay(true).unwrap();
                let server = server.clone();
                #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        this
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    pub fn requests(&self) -> Vec<Recorded> {
        self.seen.borrow().requests.clone()
    }

    pub fn connections(&self) -> usize {
        self.seen.borrow().connections
    }

    pub async fn wait_requests(&self, count: usize) -> Vec<Recorded> {
        self.wait(|seen| seen.requests.len() >= count).await;
        self.requests()
    }

    /// Waits until a client has left an unfinished answer.
    pub async fn wait_gone(&self, count: usize) {
        self.wait(|seen| seen.gone >= count).await;
    }

    async fn wait(&self, done: impl FnMut(&Seen) -> bool) {
        let mut seen = self.seen.subscribe();
        let waited = timeout(PATIENCE, seen.wait_for(done)).await;
        waited.expect("it happens in time").unwrap();
    }

    async fn serve(&self, mut stream: TcpStream) {
        let mut buffer = Vec::new();
        loop {
            let Some(request) = read_request(&mut stream, &mut buffer).await else {
                return;
            };
            self.seen.send_modify(|seen| seen.requests.push(request));
            let script = {
                let mut scripts = self.scripts.lock().unwrap();
                if scripts.len() > 1 {
                    scripts.pop_front().unwrap()
                } else {
                    scripts.front().expect("a script").clone()
                }
            };
            let left = || self.seen.send_modify(|seen| seen.gone += 1);
            for piece in &script.pieces {
                if let Some(gate) = &script.gate {
                    tokio::select! {
                        permit = gate.acquire() => permit.unwrap().forget(),
                        () = closed(&mut stream) => return left(),
                    }
                }
                if stream.write_all(piece).await.is_err() {
                    return left();
                }
            }
            match script.then {
                Then::KeepAlive => {}
                Then::Close => return,
                Then::Hang => {
                    closed(&mut stream).await;
                    return left();
                }
            }
        }
    }
}

/// Resolves when the other side closes or resets.
async fn closed(stream: &mut TcpStream) {
    let mut scratch = [0; 1024];
    while stream.read(&mut scratch).await.is_ok_and(|n| n > 0) {}
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Recorded> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
    let length = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length:")
                .map(|v| v.trim().parse().unwrap())
        })
        .unwrap_or(0_usize);
    buffer.drain(..end);
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer.drain(..length).collect();
    Some(Recorded { head, body })
}
