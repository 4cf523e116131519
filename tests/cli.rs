//! The built binary, for verbs that need no running node.
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

/// Runs the binary with an empty home of its own, so that nothing of the person who tests is read.
struct Shell {
    home: tempfile::TempDir,
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Shell {
    fn new() -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_string_lossy().into_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clawmatrix"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.home.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        ran(&self.command(args).output().unwrap())
    }

    fn run_with_input(&self, args: &[&str], input: &str) -> Ran {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        ran(&child.wait_with_output().unwrap())
    }
}

fn ran(output: &Output) -> Ran {
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout.clone()).unwrap(),
        err: String::from_utf8(output.stderr.clone()).unwrap(),
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn version_is_printed_in_both_forms() {
    let shell = Shell::new();
    assert_eq!(
        shell.run(&["version"]).out,
        format!("clawmatrix {}\n", env!("CARGO_PKG_VERSION"))
    );
    let ran = shell.run(&["version", "--json"]);
    assert_eq!(json(&ran.out)["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn wrong_usage_is_code_2_with_nothing_on_standard_output() {
    let shell = Shell::new();
    for args in [
        &["no-such-verb"][..],
        &["status", "--no-such-flag"],
        &["setup", "--peer", "x"],
    ] {
        let ran = shell.run(args);
        assert_eq!(
            (ran.code, ran.out.as_str()),
            (2, ""),
            "{args:?}: {}",
            ran.err
        );
    }
}

#[test]
fn new_secret_is_good_and_new_each_time() {
    let shell = Shell::new();
    let (one, two) = (shell.run(&["secret", "new"]), shell.run(&["secret", "new"]));
    assert_eq!((one.code, one.out.trim().len()), (0, 43));
    assert_ne!(one.out, two.out);
    assert_eq!(one.err, "");
}

#[test]
fn schema_is_printed_and_written() {
    let shell = Shell::new();
    let schema = json(&shell.run(&["schema"]).out);
    assert_eq!(schema["properties"]["proxyPort"]["default"], 19001);
    let dir = shell.path("schemas");
    fs::create_dir(&dir).unwrap();
    assert_eq!(shell.run(&["schema", "--write", &dir]).code, 0);
    assert!(Path::new(&dir).join("from-sidecar.schema.json").exists());
}

#[test]
fn completions_are_printed() {
    let ran = Shell::new().run(&["completions", "bash"]);
    assert!(
        ran.code == 0 && ran.out.contains("clawmatrix"),
        "{}",
        ran.err
    );
}

#[test]
fn no_running_node_is_told_with_the_folders_looked_into() {
    let shell = Shell::new();
    for verb in [
        &["status"][..],
        &["peers"],
        &["models"],
        &["chat", "m", "hi"],
    ] {
        let ran = shell.run(verb);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{verb:?}");
        for part in [
            "no running node",
            ".openclaw/clawmatrix",
            ".local/state/clawmatrix",
            "--state-dir",
        ] {
            assert!(ran.err.contains(part), "{part}: {}", ran.err);
        }
        assert!(!ran.err.contains('\u{1b}'), "colours without a terminal");
    }
}

#[test]
fn stale_endpoint_is_named_as_such() {
    let shell = Shell::new();
    // A port nobody has: one that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let run = shell.home.path().join("state/run");
    fs::create_dir_all(&run).unwrap();
    let endpoint = format!(r#"{{"proxyPort":{port},"listenPort":null,"pid":4711}}"#);
    fs::write(run.join("endpoint"), endpoint).unwrap();
    let ran = shell.run(&["status", "--state-dir", &shell.path("state")]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("does not run") && ran.err.contains("4711"),
        "{}",
        ran.err
    );
}

#[test]
fn two_running_nodes_need_a_choice() {
    let shell = Shell::new();
    let listeners: Vec<_> = (0..2)
        .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    for (dir, listener) in [".openclaw/clawmatrix", ".local/state/clawmatrix"]
        .iter()
        .zip(&listeners)
    {
        let run = shell.home.path().join(dir).join("run");
        fs::create_dir_all(&run).unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint = format!(r#"{{"proxyPort":{port},"listenPort":null,"pid":1}}"#);
        fs::write(run.join("endpoint"), endpoint).unwrap();
    }
    let ran = shell.run(&["status"]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(
        ran.err.contains("two nodes") && ran.err.contains("--state-dir"),
        "{}",
        ran.err
    );
}

#[test]
fn bad_configuration_is_code_78_with_every_problem() {
    let shell = Shell::new();
    let file = shell.path("node.json");
    let text = r#"{"nodeID": "a", "secret": "short-secret", "peers": [{"nodeId": "b", "url": "http://b"}]}"#;
    fs::write(&file, text).unwrap();
    let ran = shell.run(&[
        "run",
        "--config",
        &file,
        "--state-dir",
        &shell.path("state"),
    ]);
    assert_eq!((ran.code, ran.out.as_str()), (78, ""));
    for part in [
        "`nodeID`",
        "did you mean `nodeId`?",
        "`nodeId`: missing",
        "`secret`",
        "secret new",
        "`peers[0].url`",
    ] {
        assert!(ran.err.contains(part), "{part}: {}", ran.err);
    }
    assert!(!ran.err.contains("short-secret"), "{}", ran.err);
    let ran = shell.run_with_input(&["run", "--config", "-"], "{\"nodeId\":");
    assert_eq!(ran.code, 78);
    assert!(ran.err.contains("line 1"), "{}", ran.err);
    assert_eq!(shell.run(&["run"]).code, 78);
}

#[test]
fn status_and_doctor_tell_why_the_last_start_failed() {
    let shell = Shell::new();
    let file = shell.path("node.json");
    fs::write(&file, r#"{"nodeId": "a", "secret": "aaaaaaaaaaaaaaaa"}"#).unwrap();
    let dir = shell.path("state");
    assert_eq!(
        shell
            .run(&["run", "--config", &file, "--state-dir", &dir])
            .code,
        78
    );
    for verb in ["status", "doctor"] {
        let ran = shell.run(&[verb, "--state-dir", &dir]);
        assert_eq!(ran.code, 1);
        let said = format!("{}{}", ran.out, ran.err);
        assert!(
            said.contains("failed with code 78") && said.contains("secret new"),
            "{said}"
        );
    }
}

#[test]
fn setup_writes_a_private_configuration_that_is_valid() {
    let shell = Shell::new();
    let args = [
        "setup",
        "--node-id",
        "home-01",
        "--peer",
        "office-01=ws://office.example:19000",
        "--listen",
    ];
    let ran = shell.run(&args);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let folder = shell.home.path().join(".config/clawmatrix");
    let config = json(&fs::read_to_string(folder.join("node.json")).unwrap());
    assert_eq!(config["nodeId"], "home-01");
    assert_eq!(config["listen"], true);
    assert_eq!(config["peers"][0]["url"], "ws://office.example:19000");
    assert_eq!(config["secretFile"], "secret");
    for file in ["node.json", "secret"] {
        assert_eq!(mode(&folder.join(file)), 0o600, "{file}");
    }
    let secret = fs::read_to_string(folder.join("secret")).unwrap();
    assert!(!ran.err.contains(secret.trim()) && !ran.out.contains(secret.trim()));
    // A second setup does not overwrite it, and with leave keeps the secret.
    let again = shell.run(&args);
    assert_eq!(again.code, 1);
    assert!(again.err.contains("--force"), "{}", again.err);
    let forced = shell.run(&["setup", "--node-id", "home-02", "--force"]);
    assert_eq!(forced.code, 0, "{}", forced.err);
    assert_eq!(fs::read_to_string(folder.join("secret")).unwrap(), secret);
    let found = json(&shell.run(&["doctor", "--json"]).out);
    assert!(found.to_string().contains("is valid"), "{found}");
}

#[test]
fn setup_refuses_what_a_start_would_refuse_and_writes_nothing() {
    let shell = Shell::new();
    let ran = shell.run(&["setup", "--node-id=-x-", "--peer", "b=http://b"]);
    assert_eq!(ran.code, 78);
    assert!(
        ran.err.contains("`nodeId`") && ran.err.contains("`peers[0].url`"),
        "{}",
        ran.err
    );
    let ran = shell.run_with_input(
        &["setup", "--node-id", "x", "--secret-stdin"],
        "too-short\n",
    );
    assert_eq!(ran.code, 78);
    assert!(!ran.err.contains("too-short"), "{}", ran.err);
    assert!(!shell.home.path().join(".config").exists());
}

#[test]
fn setup_for_the_plugin_prints_settings_alone() {
    let shell = Shell::new();
    let state = shell.path("state/clawmatrix");
    let ran = ran(&shell
        .command(&["setup", "--node-id", "home-01", "--emit"])
        .env("CLAWMATRIX_STATE_DIR", &state)
        .output()
        .unwrap());
    assert_eq!(ran.code, 0, "{}", ran.err);
    let settings = json(&ran.out);
    assert_eq!(settings["nodeId"], "home-01");
    let file = settings["secretFile"].as_str().unwrap();
    assert_eq!(file, format!("{state}/secret"));
    assert_eq!(mode(Path::new(file)), 0o600);
    assert_eq!(mode(Path::new(&state)), 0o700);
}

#[test]
fn identity_is_told_only_when_there_is_one() {
    let shell = Shell::new();
    let state = shell.home.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    let dir = shell.path("state");
    let ran = shell.run(&["identity", "--state-dir", &dir]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    let key = state.join("identity.key");
    fs::write(&key, [7; 32]).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let ran = shell.run(&["identity", "--state-dir", &dir, "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(json(&ran.out)["publicKey"].as_str().unwrap().len(), 43);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let ran = shell.run(&["identity", "--state-dir", &dir]);
    assert_eq!(ran.code, 78);
    assert!(ran.err.contains("chmod 600"), "{}", ran.err);
}

#[test]
fn doctor_fails_when_it_finds_an_error() {
    let shell = Shell::new();
    let file = shell.path("node.json");
    fs::write(&file, r#"{"nodeId": "a", "secret": "aaaaaaaaaaaaaaaa"}"#).unwrap();
    let ran = shell.run(&["doctor", "--config", &file]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.out.contains("error: config") && ran.out.contains("secret new"),
        "{}",
        ran.out
    );
    assert!(!ran.out.contains("aaaaaaaaaaaaaaaa"), "{}", ran.out);
}

/// A state folder as a node makes it, for verbs that work without a running one.
fn state(shell: &Shell) -> String {
    let dir = shell.home.path().join("state");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    dir.to_string_lossy().into_owned()
}

#[test]
fn trust_is_changed_on_the_state_folder_of_a_stopped_node() {
    let shell = Shell::new();
    let dir = state(&shell);
    let key_dir = shell.home.path().join("other");
    fs::create_dir(&key_dir).unwrap();
    fs::set_permissions(&key_dir, fs::Permissions::from_mode(0o700)).unwrap();
    let key_file = key_dir.join("identity.key");
    fs::write(&key_file, [9; 32]).unwrap();
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
    let other = key_dir.to_string_lossy().into_owned();
    let told = json(
        &shell
            .run(&["identity", "--json", "--state-dir", &other])
            .out,
    );
    let (key, id) = (
        told["publicKey"].as_str().unwrap(),
        told["keyId"].as_str().unwrap(),
    );

    let trust = |args: &[&str]| {
        let mut all = vec!["trust", "--state-dir", &dir];
        all.extend(args);
        shell.run(&all)
    };
    let ran = trust(&["add", "office-01", key, "--label", "family"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains(id), "{}", ran.out);
    let list = json(&trust(&["list", "--json"]).out);
    assert_eq!(list["nodes"][0]["level"], "trusted");
    assert_eq!(list["nodes"][0]["labels"][0], "family");
    assert_eq!(trust(&["deny", id]).code, 0);
    assert!(trust(&["list"]).out.contains("Denied keys"));
    assert_eq!(trust(&["remove", id]).code, 0);
    assert_eq!(trust(&["remove", "office-01"]).code, 0);
    assert!(trust(&["list"]).out.contains("no keys are known"));
    let ran = trust(&["remove", "office-01"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("trust list"), "{}", ran.err);
    assert_eq!(trust(&["add", "office-01", "nonsense"]).code, 2);
}

#[test]
fn tokens_are_made_on_the_state_folder_of_a_stopped_node() {
    let shell = Shell::new();
    let dir = state(&shell);
    let made = shell.run(&[
        "token",
        "create",
        "phone",
        "--scope",
        "read,models",
        "--state-dir",
        &dir,
    ]);
    assert_eq!(made.code, 0, "{}", made.err);
    let text = made.out.trim();
    assert!(text.starts_with("cmx_"), "{text}");
    let list = shell.run(&["token", "list", "--state-dir", &dir]);
    assert_eq!(list.out, "phone (read, models)\n");
    let kept = fs::read_to_string(shell.home.path().join("state/tokens.json")).unwrap();
    assert!(!kept.contains(text), "the token itself is kept");
    assert_eq!(
        shell
            .run(&["token", "create", "phone", "--state-dir", &dir])
            .code,
        1
    );
    assert_eq!(
        shell
            .run(&[
                "token",
                "create",
                "x",
                "--scope",
                "root",
                "--state-dir",
                &dir
            ])
            .code,
        2
    );
    assert_eq!(
        shell
            .run(&["token", "revoke", "phone", "--state-dir", &dir])
            .code,
        0
    );
    assert_eq!(
        shell.run(&["token", "list", "--state-dir", &dir]).out,
        "no named tokens\n"
    );
}
