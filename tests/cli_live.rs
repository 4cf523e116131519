//! Commands against real nodes: two of them, linked, on free ports.
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

/// How long a node may take for what it should do at once; generous, for busy machines.
const PATIENCE: Duration = Duration::from_secs(20);

struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// A folder for one mesh.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.write("secret", "Zx7-pq2LmV9sKd0-tR4wYh8uB3nC6jF1\n");
        place
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        let mut options = fs::OpenOptions::new();
        let file = options
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(path);
        std::io::Write::write_all(&mut file.unwrap(), text.as_bytes()).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clawmatrix"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.0.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        let output = self.command(args).output().unwrap();
        Ran {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Starts the node `name` and waits until its endpoint is written.
    fn start(&self, name: &str, config: &Value) -> Node<'_> {
        self.write(&format!("{name}.json"), &config.to_string());
        let (file, state) = (self.path(&format!("{name}.json")), self.path(name));
        let log = fs::File::create(self.path(&format!("{name}.log"))).unwrap();
        let child = self
            .command(&["run", "--config", &file, "--state-dir", &state])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let endpoint = PathBuf::from(&state).join("run/endpoint");
        let ports = wait(&format!("{name} writes its endpoint"), || {
            serde_json::from_slice::<Value>(&fs::read(&endpoint).ok()?).ok()
        });
        Node {
            place: self,
            state,
            child,
            ports,
        }
    }
}

/// A running node; ended when dropped.
struct Node<'a> {
    place: &'a Place,
    state: String,
    child: Child,
    ports: Value,
}

impl Node<'_> {
    fn run(&self, args: &[&str]) -> Ran {
        let mut all = args.to_vec();
        all.extend(["--state-dir", &self.state]);
        self.place.run(&all)
    }

    fn json(&self, args: &[&str]) -> Value {
        let ran = self.run(&[args, &["--json"]].concat());
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.err);
        serde_json::from_str(&ran.out).unwrap()
    }

    fn port(&self, key: &str) -> u64 {
        self.ports[key].as_u64().unwrap()
    }

    /// Asks it to stop, and gives its exit code.
    fn stop(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks until there is an answer.
fn wait<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = SystemTime::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(SystemTime::now() < end, "in vain: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn office(listen_port: u64) -> Value {
    json!({
        "nodeId": "office-01", "secretFile": "secret", "proxyPort": 0, "tags": ["work"],
        "listen": true, "listenHost": "127.0.0.1", "listenPort": listen_port,
        "models": [{"id": "qwen/q3", "baseUrl": "http://127.0.0.1:9/v1", "contextWindow": 32_000}]
    })
}

fn home(port: u64) -> Value {
    json!({
        "nodeId": "home-01", "secretFile": "secret", "proxyPort": 0,
        "peers": [{"nodeId": "office-01", "url": format!("ws://127.0.0.1:{port}")}]
    })
}

fn connected(node: &Node<'_>) {
    wait("the peer is connected", || {
        let peers = node.json(&["peers"]);
        (peers[0]["connected"] == true && peers[0]["models"][0].is_object()).then_some(())
    });
}

#[test]
fn two_nodes_show_one_another_and_take_commands() {
    let place = Place::new();
    let office = place.start("office", &office(0));
    let home = place.start("home", &home(office.port("listenPort")));
    connected(&home);

    let status = home.run(&["status"]);
    assert_eq!(status.code, 0, "{}", status.err);
    for part in [
        "ClawMatrix Cluster\n",
        "Node: home-01\n",
        "Listen: off\n",
        "Peers (1/1 connected)\n",
        "office-01 (connected",
        "  Tags: work\n",
        "  Models: qwen/q3\n",
    ] {
        assert!(status.out.contains(part), "{part}: {}", status.out);
    }
    let models = home.run(&["models"]);
    assert!(
        models.out.contains("office-01/qwen/q3  32000"),
        "{}",
        models.out
    );
    let keys = home.json(&["trust", "list"]);
    assert_eq!(keys["nodes"][0]["level"], "pinned");
    assert_eq!(
        home.json(&["identity"])["keyId"],
        home.json(&["status"])["keyId"]
    );
    let made = home.json(&["token", "create", "phone"]);
    assert_eq!(home.json(&["token", "list"])["tokens"][0]["name"], "phone");
    assert!(made["token"].as_str().unwrap().starts_with("cmx_"));
    assert_eq!(home.run(&["token", "revoke", "phone"]).code, 0);
    let doctor = home.run(&["doctor"]);
    assert_eq!(doctor.code, 0, "{}{}", doctor.out, doctor.err);
    // Nobody listens where that model is served: told as the provider's fault.
    let chat = home.run(&["chat", "office-01/qwen/q3", "hi"]);
    assert_eq!((chat.code, chat.out.as_str()), (1, ""));
    assert!(chat.err.contains("upstream_error"), "{}", chat.err);

    assert_eq!(home.stop(), Some(0));
    assert_eq!(office.stop(), Some(0));
}

#[test]
fn second_node_on_a_state_folder_or_port_is_refused_and_disturbs_nothing() {
    let place = Place::new();
    let first = place.start("office", &office(0));
    let again = first.run(&["run", "--config", &place.path("office.json")]);
    assert_eq!(again.code, 73, "{}", again.err);
    let mut config = home(1);
    config["proxyPort"] = first.port("proxyPort").into();
    place.write("taken.json", &config.to_string());
    let taken = place.run(&[
        "run",
        "--config",
        &place.path("taken.json"),
        "--state-dir",
        &place.path("taken"),
    ]);
    assert_eq!(taken.code, 69, "{}", taken.err);
    assert!(
        taken.err.contains("`proxyPort`") && taken.err.contains("is free"),
        "{}",
        taken.err
    );
    assert_eq!(first.run(&["status"]).code, 0);
}

#[test]
fn new_key_of_a_peer_is_refused_until_it_is_accepted() {
    let place = Place::new();
    let first = place.start("office", &office(0));
    let port = first.port("listenPort");
    let home = place.start("home", &home(port));
    connected(&home);
    assert_eq!(first.stop(), Some(0));
    fs::remove_file(place.path("office/identity.key")).unwrap();
    let second = place.start("office", &office(port));
    let id = second.json(&["identity"])["keyId"]
        .as_str()
        .unwrap()
        .to_owned();
    let way = format!("clawmatrix trust accept office-01 {id}");
    wait("the conflict is shown with its way out", || {
        home.run(&["status"]).out.contains(&way).then_some(())
    });
    let doctor = home.run(&["doctor"]);
    assert!(
        doctor.code == 1 && doctor.out.contains(&way),
        "{}",
        doctor.out
    );
    let accepted = home.run(&["trust", "accept", "office-01", &id]);
    assert_eq!(accepted.code, 0, "{}", accepted.err);
    connected(&home);
    let keys = home.json(&["trust", "list"]);
    assert_eq!(keys["nodes"][0]["level"], "trusted");
    // A denied key loses its link.
    assert_eq!(home.run(&["trust", "deny", &id]).code, 0);
    wait("the denied peer is gone", || {
        (home.json(&["peers"])[0]["connected"] == false).then_some(())
    });
}

#[test]
fn wrong_secret_is_told_with_the_way_out() {
    let place = Place::new();
    let office = place.start("office", &office(0));
    place.write("other", "kW3-vN8xQ1zRt5Lp0-mYb7HsJ2cD4fG9\n");
    let mut config = home(office.port("listenPort"));
    config["secretFile"] = "other".into();
    let home = place.start("home", &config);
    wait("the difference is shown", || {
        home.run(&["status"]).out.contains("secret").then_some(())
    });
    let doctor = home.run(&["doctor"]);
    assert!(
        doctor.code == 1 && doctor.out.contains("`secret` must match on both nodes"),
        "{}",
        doctor.out
    );
    // A guess beside it would lead astray.
    assert!(!doctor.out.contains("address in `peers`"), "{}", doctor.out);
}

#[test]
fn configuration_on_standard_input_is_taken() {
    let place = Place::new();
    let state = place.path("piped");
    let mut child = place
        .command(&["run", "--config", "-", "--state-dir", &state])
        .current_dir(place.0.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let config = json!({"nodeId": "piped", "secretFile": "secret", "proxyPort": 0}).to_string();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), config.as_bytes()).unwrap();
    wait("it runs", || {
        let status = place.run(&["status", "--state-dir", &state]);
        (status.code == 0 && status.out.contains("Node: piped")).then_some(())
    });
    let mode = fs::metadata(format!("{state}/run/token"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    child.kill().unwrap();
    child.wait().unwrap();
}
