//! A real node that talks as much as it can, and what others may find of its secrets (T115). The
//! local API and the listener asked by a page for a WebSocket (T111).
#![cfg(target_os = "linux")]
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    env, fs,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use clawmatrix::telemetry::{self, Format, Redactor};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const SECRET: &str = "marker-of-the-mesh-9f31c2a7d05be846";
const KEY: &str = "sk-marker-of-the-provider-71c4";

/// A provider that refuses every key and repeats it in its answer, as some do.
fn provider() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Ends with the process: accept has no other end.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut bytes = [0; 16 * 1024];
            let _ = stream.read(&mut bytes);
            let body = format!(r#"{{"error":{{"message":"Incorrect API key provided: {KEY}"}}}}"#);
            let _ = write!(
                stream,
                "HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    port
}

struct Node {
    child: Child,
    state: tempfile::TempDir,
    log: std::path::PathBuf,
}

impl Node {
    /// A node whose configuration comes over standard input, logging everything it can.
    fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let log = state.path().join("log");
        let folder = state.path().join("state");
        let config = format!(
            r#"{{"nodeId":"office-01","secret":"{SECRET}","listen":true,"listenHost":"127.0.0.1","listenPort":0,"proxyPort":0,
            "peers":[{{"nodeId":"nowhere-01","url":"ws://127.0.0.1:9"}}],
            "models":[{{"id":"m","baseUrl":"http://127.0.0.1:{}/v1","apiKey":"{KEY}"}}]}}"#,
            provider()
        );
        let mut child = Command::new(env!("CARGO_BIN_EXE_clawmatrix"))
            .args(["run", "--config", "-", "--state-dir"])
            .arg(&folder)
            .env_clear()
            .env("CLAWMATRIX_LOG", "trace")
            .current_dir(state.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(config.as_bytes()).unwrap();
        drop(input);
        let node = Self { child, state, log };
        node.until(|node| node.read("run/endpoint").is_some());
        node
    }

    fn until(&self, good: impl Fn(&Self) -> bool) {
        for _ in 0..3000 {
            if good(self) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("never happened: {}", fs::read_to_string(&self.log).unwrap());
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.state.path().join("state").join(name)).ok()
    }

    fn port(&self, name: &str) -> u16 {
        let endpoint: serde_json::Value =
            serde_json::from_str(&self.read("run/endpoint").unwrap()).unwrap();
        u16::try_from(endpoint[name].as_u64().unwrap()).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ask(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// What anybody who may look sees of a process. The environment of one that leaves no core belongs to
/// root alone: whoever runs this as another user is refused, which is as good as seeing nothing.
fn of_process(pid: u32, name: &str) -> String {
    match fs::read(Path::new("/proc").join(pid.to_string()).join(name)) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => String::new(),
        Err(error) => panic!("{name} of {pid}: {error}"),
    }
}

/// Lets processes that this one starts write cores, where the hard limit allows any.
fn allow_cores() {
    let now = getrlimit(Resource::Core);
    let all = Rlimit {
        current: now.maximum,
        ..now
    };
    setrlimit(Resource::Core, all).unwrap();
}

/// Ends a process as a crash would.
fn crash(child: &mut Child) -> ExitStatus {
    Command::new("kill")
        .args(["-ABRT", &child.id().to_string()])
        .status()
        .unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(6));
    status
}

/// Whether a crash leaves a core on this machine at all: else none of the node proves nothing.
fn crashes_leave_cores() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let mut other = Command::new("sleep")
        .arg("60")
        .current_dir(folder.path())
        .spawn()
        .unwrap();
    crash(&mut other).core_dumped()
}

#[test]
fn secrets_are_in_no_argument_environment_log_or_answer() {
    let node = Node::start();
    let token = node.read("run/token").unwrap().trim().to_owned();
    let api = node.port("proxyPort");
    let body = r#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;
    let answer = ask(
        api,
        &format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{api}\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        ),
    );
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(answer.contains("error=provider"), "{answer}");
    // A token that is none: the true one and one letter more.
    let wrong = ask(
        api,
        &format!(
            "GET /api/v1/status HTTP/1.1\r\nhost: 127.0.0.1:{api}\r\nauthorization: Bearer {token}x\r\nconnection: close\r\n\r\n"
        ),
    );
    assert!(wrong.starts_with("HTTP/1.1 401"), "{wrong}");
    node.until(|node| fs::read_to_string(&node.log).unwrap().contains("DEBUG"));
    let pid = node.child.id();
    let seen = [
        ("argv", of_process(pid, "cmdline")),
        ("environment", of_process(pid, "environ")),
        ("log", fs::read_to_string(&node.log).unwrap()),
        ("answer", answer),
        ("refusal", wrong),
    ];
    assert!(seen[2].1.contains("DEBUG"), "everything is logged");
    for (place, text) in &seen {
        for marker in [SECRET, KEY, &token] {
            assert!(!text.contains(marker), "{place} holds `{marker}`:\n{text}");
        }
    }
}

#[test]
fn a_crashed_node_leaves_no_core() {
    allow_cores();
    if !crashes_leave_cores() {
        eprintln!("skipped: this machine writes no cores of anything");
        return;
    }
    let mut node = Node::start();
    assert!(!crash(&mut node.child).core_dumped());
    let left = fs::read_dir(node.state.path()).unwrap();
    let left = left.map(|entry| entry.unwrap().file_name());
    let cores: Vec<_> = left
        .filter(|name| name.to_string_lossy().starts_with("core"))
        .collect();
    assert!(cores.is_empty(), "{cores:?}");
}

/// Set for the half of the next test that panics.
const PANICS: &str = "CLAWMATRIX_TEST_PANICS";

#[test]
fn a_panic_tells_no_secret() {
    if let Some(format) = env::var_os(PANICS) {
        let redactor = Redactor::default();
        redactor.learn(SECRET);
        let format = if format == "json" {
            Format::Json
        } else {
            Format::Text
        };
        let log = telemetry::start(format, &redactor);
        let wrong = thread::spawn(|| panic!("cannot use `{SECRET}` here")).join();
        assert!(wrong.is_err());
        log.flush();
        return;
    }
    for format in ["json", "text"] {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "a_panic_tells_no_secret", "--nocapture"])
            .env(PANICS, format)
            .output()
            .unwrap();
        assert!(output.status.success());
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told);
        assert!(told.contains("cannot use `[secret]` here"), "{told}");
        assert!(told.contains("secrets_stay_inside.rs"), "{told}");
        assert!(!told.contains(SECRET), "{told}");
    }
}

#[test]
fn a_page_gets_no_websocket_on_either_port() {
    let node = Node::start();
    let token = node.read("run/token").unwrap().trim().to_owned();
    let api = node.port("proxyPort");
    let upgrade = |port: u16, path: &str, more: &str| {
        ask(
            port,
            &format!(
                "GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
            ),
        )
    };
    for origin in ["http://evil.example", "null", "http://127.0.0.1"] {
        let page = format!("origin: {origin}\r\nsec-websocket-protocol: clawmatrix.v1\r\n");
        let mesh = upgrade(node.port("listenPort"), "/mesh/v1", &page);
        assert!(mesh.starts_with("HTTP/1.1 403"), "{mesh}");
        for path in ["/ws/events", "/api/v1/status", "/mesh/v1"] {
            let authorised =
                format!("{page}authorization: Bearer {token}\r\nconnection: close\r\n");
            let local = upgrade(api, path, &authorised);
            assert!(local.starts_with("HTTP/1.1 403"), "{path}: {local}");
        }
    }
}
