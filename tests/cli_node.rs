//! Verbs that speak to a running node, against a scripted local API.
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// What the scripted node does with a request.
type Script = fn(&str, &mut TcpStream);

/// A state folder whose endpoint is a scripted node.
struct FakeNode {
    home: tempfile::TempDir,
    state: PathBuf,
    /// First line and body of each request.
    asked: mpsc::Receiver<(String, String)>,
    /// A message when a client has closed its connection while the script waited for that.
    gone: mpsc::Receiver<()>,
}

impl FakeNode {
    fn start(script: Script) -> Self {
        let home = tempfile::tempdir().unwrap();
        let state = home.path().join("state");
        fs::create_dir_all(state.join("run")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint = format!(r#"{{"proxyPort":{port},"listenPort":null,"pid":1}}"#);
        fs::write(state.join("run/endpoint"), endpoint).unwrap();
        fs::write(state.join("run/token"), "the-token\n").unwrap();
        let (tell, asked) = mpsc::sync_channel(16);
        let (tell_gone, gone) = mpsc::sync_channel(16);
        // Ends with the process: accept has no other end.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some((line, body)) = read_request(&stream) else {
                    continue;
                };
                let _ = tell.try_send((line.clone(), body));
                script(&line, &mut stream);
                if line.contains("hang") || line.contains("/chat/") {
                    // Reads until the client closes.
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
                    let closed = matches!(stream.read(&mut [0; 1]), Ok(0));
                    if closed {
                        let _ = tell_gone.try_send(());
                    }
                }
            }
        });
        Self {
            home,
            state,
            asked,
            gone,
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clawmatrix"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.home.path())
            .env("CLAWMATRIX_STATE_DIR", &self.state)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        told(&self.command(args).output().unwrap())
    }
}

fn told(output: &Output) -> (i32, String, String) {
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout.clone()).unwrap(),
        String::from_utf8(output.stderr.clone()).unwrap(),
    )
}

/// First line and body; none for a connection that asks nothing. Every request must be authorised.
fn read_request(stream: &TcpStream) -> Option<(String, String)> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|n| *n > 0)?;
    let (mut length, mut authorised) = (0, false);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end().to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
        authorised |= line == "authorization: bearer the-token";
    }
    assert!(authorised, "{first}");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((
        first.trim_end().to_owned(),
        String::from_utf8(body).unwrap(),
    ))
}

fn answer(stream: &mut TcpStream, status: &str, kind: &str, body: &str) {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    // A client that went away is part of some tests.
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body.as_bytes()));
}

fn stream_head(stream: &mut TcpStream) {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let _ = stream.write_all(head.as_bytes());
}

fn chunk(stream: &mut TcpStream, text: &str) {
    let _ = stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes());
}

fn unknown_model(stream: &mut TcpStream) {
    answer(
        stream,
        "404 Not Found",
        "application/json",
        r#"{"error":{"message":"no live node lends that model","type":"not_found_error","code":"model_not_found"}}"#,
    );
}

fn chats(line: &str, stream: &mut TcpStream) {
    if !line.starts_with("POST /v1/chat/completions") {
        return unknown_model(stream);
    }
    stream_head(stream);
    for part in ["Hello", ", ", "world"] {
        chunk(
            stream,
            &format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{part}\"}}}}]}}\n\n"),
        );
    }
    chunk(stream, "data: [DONE]\n\n");
    let _ = stream.write_all(b"0\r\n\r\n");
}

#[test]
fn chat_streams_the_answer_to_standard_output() {
    let node = FakeNode::start(chats);
    let (code, out, err) = node.run(&["chat", "office-01/claude", "hi there"]);
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (0, "Hello, world\n", "")
    );
    let asked: Vec<_> = node.asked.try_iter().collect();
    assert_eq!(asked[0].0, "GET /v1/models/office%2D01%2Fclaude HTTP/1.1");
    let body: serde_json::Value = serde_json::from_str(&asked[1].1).unwrap();
    assert_eq!(body["model"], "office-01/claude");
    assert_eq!(body["messages"][0]["content"], "hi there");
}

#[test]
fn chat_takes_standard_input_and_answers_in_json() {
    let node = FakeNode::start(chats);
    let mut child = node
        .command(&["chat", "m", "--json", "--system", "be brief"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"from a pipe")
        .unwrap();
    let (code, out, err) = told(&child.wait_with_output().unwrap());
    assert_eq!(code, 0, "{err}");
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(answer["content"], "Hello, world");
    let body = node.asked.try_iter().nth(1).unwrap().1;
    assert!(
        body.contains("from a pipe") && body.contains("be brief"),
        "{body}"
    );
}

#[test]
fn broken_stream_is_a_failure_that_keeps_what_came() {
    let node = FakeNode::start(|line, stream| {
        if !line.starts_with("POST") {
            return unknown_model(stream);
        }
        stream_head(stream);
        chunk(
            stream,
            "data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\n",
        );
        chunk(
            stream,
            "data: {\"error\":{\"message\":\"node left\",\"code\":\"stream_lost\"}}\n\n",
        );
        let _ = stream.write_all(b"0\r\n\r\n");
    });
    let (code, out, err) = node.run(&["chat", "m", "hi"]);
    assert_eq!((code, out.as_str()), (1, "half\n"));
    assert!(
        err.contains("node left (stream_lost)") && err.contains("incomplete"),
        "{err}"
    );
}

#[test]
fn error_answers_are_told_in_their_words() {
    let node = FakeNode::start(|_, stream| unknown_model(stream));
    let (code, out, err) = node.run(&["chat", "nobody/has-it", "hi"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        err.contains("no live node lends that model (model_not_found)"),
        "{err}"
    );
}

#[test]
fn interrupt_is_code_130_and_closes_the_request() {
    let node = FakeNode::start(|line, stream| {
        if !line.starts_with("POST") {
            return unknown_model(stream);
        }
        stream_head(stream);
        chunk(
            stream,
            "data: {\"choices\":[{\"delta\":{\"content\":\"begun\\n\"}}]}\n\n",
        );
    });
    let mut child = node
        .command(&["chat", "m", "hi"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first output says that the command waits for more.
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "begun\n");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    node.gone.recv_timeout(Duration::from_secs(10)).unwrap();
}

const STATUS: &str = r#"{"nodeId":"home-01","version":"0.1.0","keyId":"ab12","uptimeMs":1,"listen":false,
    "proxyPort":19001,"agents":[],"models":[],"tags":[],"warnings":["`secret` is weak"],
    "peers":[{"nodeId":"office-01","connected":false,"state":"unreachable","agents":[],"models":[],"tags":[],
    "reachableVia":null,"latencyMs":null,"problem":"shared secrets differ"}]}"#;

fn states(line: &str, stream: &mut TcpStream) {
    let peers: serde_json::Value = serde_json::from_str(STATUS).unwrap();
    let peers = peers["peers"].to_string();
    match line.split(' ').nth(1) {
        Some("/api/v1/status") => answer(stream, "200 OK", "application/json", STATUS),
        Some("/api/v1/peers") => answer(stream, "200 OK", "application/json", &peers),
        Some("/api/v1/models/forget") => {
            answer(stream, "200 OK", "application/json", r#"{"forgotten":2}"#)
        }
        _ => unknown_model(stream),
    }
}

#[test]
fn status_and_peers_come_from_the_running_node() {
    let node = FakeNode::start(states);
    let (code, out, err) = node.run(&["status"]);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.starts_with("ClawMatrix Cluster\n") && out.contains("office-01 (unreachable)"),
        "{out}"
    );
    assert!(out.contains("`secret` must match on both nodes"), "{out}");
    let (_, out, _) = node.run(&["status", "--json"]);
    let whole: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        whole,
        serde_json::from_str::<serde_json::Value>(STATUS).unwrap()
    );
    let (code, out, _) = node.run(&["peers"]);
    let peers: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &peers[0]["nodeId"]), (0, &"office-01".into()));
}

#[test]
fn doctor_tells_of_the_peer_that_is_not_reached() {
    let node = FakeNode::start(states);
    let (code, out, _) = node.run(&["doctor"]);
    assert_eq!(code, 1, "{out}");
    assert!(
        out.contains("error: peer: office-01 is not reached: shared secrets differ"),
        "{out}"
    );
    assert!(out.contains("warning: node: `secret` is weak"), "{out}");
}

#[test]
fn models_of_a_node_are_forgotten() {
    let node = FakeNode::start(states);
    let (code, out, err) = node.run(&["models", "forget", "attic"]);
    assert_eq!(
        (code, out.as_str()),
        (0, "forgot 2 models of attic\n"),
        "{err}"
    );
    let body = node.asked.try_iter().next().unwrap().1;
    assert_eq!(body, r#"{"node":"attic","model":null}"#);
    let node = FakeNode::start(|_, stream| {
        answer(stream, "200 OK", "application/json", r#"{"forgotten":0}"#);
    });
    let (code, out, err) = node.run(&["models", "forget", "attic"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("no such model of `attic`"), "{err}");
}
