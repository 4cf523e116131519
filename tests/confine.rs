//! Confined commands: the real helper, the real kernel. Where it lacks Landlock, that nothing runs.
#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    unreachable_pub,
    dead_code,
    reason = "a helper that fails is a failed test; not every helper is used by every test binary"
)]

#[path = "support/local_node.rs"]
mod local_node;

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clawmatrix::{
    audit::Audit,
    config::{Config, Source},
    crypto::identity::Identity,
    drain::Tasks,
    state::StateDir,
    tools::host::bounds,
};
use local_node::{Cable, Node, Setup, join};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    home: Node,
    _office: Node,
    _cable: Cable,
    root: PathBuf,
    outside: PathBuf,
    _temp: tempfile::TempDir,
}

impl World {
    /// Office confines commands with `helper`, and `more` in `toolProxy`.
    async fn new(helper: &Path, more: Value) -> Self {
        Self::recorded(helper, more, Audit::off()).await
    }

    async fn recorded(helper: &Path, more: Value, audit: Audit) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().canonicalize().unwrap();
        let (root, outside) = (base.join("root"), base.join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "outside").unwrap();
        symlink(outside.join("secret"), root.join("link")).unwrap();
        let mut proxy = json!({"enabled": true, "roots": [root], "confine": true});
        // What is named there takes the place of what is here.
        proxy
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let whole = json!({"nodeId": "office", "secret": "vT2mQ9xLr4Kc8WzYp6NdBh3sJf7GaE5u", "toolProxy": proxy});
        let source = Source {
            openclaw: false,
            folder: Path::new("/"),
            env: &|_| None,
        };
        let mut setup = Setup::new("office");
        setup.audit = audit;
        setup.tools = Config::from_value(whole, &source).unwrap().tools;
        // This process is a test; the helper is the real program.
        setup.tools.commands.bounds.helper.as_mut().unwrap().program = helper.to_owned();
        let office = Node::start(setup).await;
        let home = Node::start(Setup::new("home")).await;
        let cable = join(&home, &office, 1.0);
        Self {
            home,
            _office: office,
            _cable: cable,
            root,
            outside,
            _temp: temp,
        }
    }

    async fn real(more: Value) -> Self {
        Self::new(Path::new(env!("CARGO_BIN_EXE_clawmatrix")), more).await
    }

    async fn ask(&self, body: Value) -> (u16, Value) {
        self.home.tool_of_office("exec", body, PATIENCE).await
    }

    async fn sh(&self, text: &str) -> (u16, Value) {
        self.ask(json!({ "command": text })).await
    }

    fn secret(&self) -> String {
        self.outside.join("secret").to_str().unwrap().to_owned()
    }
}

/// Whether the kernel can; if not, that no command runs.
async fn confines(world: &World) -> bool {
    let Err(why) = bounds::supported() else {
        return true;
    };
    println!("not run, commands cannot be confined here: {why}");
    let (status, body) = world.sh("touch made").await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (403, &json!("policy_denied")),
        "{body}"
    );
    assert!(!world.root.join("made").exists());
    false
}

#[tokio::test]
async fn a_confined_command_and_its_children_stay_beneath_the_roots() {
    let world = World::real(json!({})).await;
    if !confines(&world).await {
        return;
    }
    let (status, body) = world
        .sh("echo inside > made && cat made && sh -c 'mkdir sub && mv made sub && ls sub' && cat < /dev/null; pwd")
        .await;
    assert_eq!(status, 200, "{body}");
    let expected = format!("inside\nmade\n{}\n", world.root.display());
    assert_eq!(body["stdout"], expected, "{body}");

    let secret = world.secret();
    for text in [
        format!("cat {secret}"),
        "cat link".to_owned(),
        format!("sh -c 'sh -c \"cat {secret}\"'"),
        format!("echo x > {secret}"),
        format!("echo x >> {secret}"),
        format!("truncate -s 0 {secret}"),
        format!("mv {secret} here"),
        format!("ln {secret} here"),
        format!("rm {secret}"),
        format!("ls {}", world.outside.display()),
        format!("touch {}/made", world.outside.display()),
        "cat /etc/shadow".to_owned(),
        format!("cat /proc/{}/environ", std::process::id()),
        format!("cat /proc/{}/root{secret}", std::process::id()),
        "mknod device b 7 0".to_owned(),
        format!("mount --bind {} .", world.outside.display()),
    ] {
        let (status, body) = world.sh(&text).await;
        assert_eq!(status, 200, "{text}: {body}");
        assert_ne!(body["exitCode"], 0, "{text}: {body}");
        let said = body["stderr"].as_str().unwrap().to_lowercase();
        assert!(
            [
                "denied",
                "cross-device",
                "not permitted",
                "must be superuser"
            ]
            .iter()
            .any(|why| said.contains(why)),
            "{text}: {body}"
        );
        assert_eq!(body["stdout"], "", "{text}");
    }
    assert_eq!(fs::read_to_string(&secret).unwrap(), "outside");
    assert_eq!(fs::read_dir(&world.outside).unwrap().count(), 1);
}

/// Program, words, environment, input and group are those of a command that is not confined.
#[tokio::test]
async fn a_confined_command_begins_as_any_other() {
    let world =
        World::real(json!({"env": ["TZ"], "maxProcesses": 64, "maxMemoryBytes": 1_000_000_000}))
            .await;
    if !confines(&world).await {
        return;
    }
    let text = "echo \"$0 $TZ $HOME\"; tr '\\0' '\\n' < /proc/$$/environ | cut -d= -f1 | sort | tr '\\n' ' '; readlink /proc/self/fd/0; ls /proc/self/fd | wc -l; cat /proc/self/limits";
    let (_, body) = world
        .ask(json!({"command": text, "env": {"TZ": "UTC"}}))
        .await;
    let out = body["stdout"].as_str().unwrap();
    let home = std::env::var("HOME").unwrap_or_else(|_| "/".into());
    assert!(out.starts_with(&format!("sh UTC {home}\n")), "{out}");
    assert!(out.contains("HOME LANG PATH TZ /dev/null\n"), "{out}");
    // No file of the helper stays open; what this process was started with may be.
    let plain = std::process::Command::new("sh")
        .args(["-c", "ls /proc/self/fd | wc -l"])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let files = String::from_utf8(plain.stdout).unwrap();
    assert!(
        out.contains(&format!("/dev/null\n{files}")),
        "{files} {out}"
    );
    // In place before its first instruction.
    let limit = |name: &str| {
        let line = out.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..]
            .split_whitespace()
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    assert_eq!(limit("Max core file size"), 0);
    assert_eq!(limit("Max processes"), 64);
    assert_eq!(limit("Max address space"), 1_000_000_000);
    assert!(limit("Max cpu time") > 0);

    let (_, body) = world.sh("kill -SEGV $$").await;
    assert_eq!(body["signal"], "SIGSEGV", "{body}");
    let (status, body) = world
        .ask(json!({"command": "sleep 30 & sleep 30", "timeout": 1}))
        .await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (504, &json!("timeout")),
        "{body}"
    );
}

/// Limits alone need no Landlock, and take nothing else away.
#[tokio::test]
async fn a_limited_command_is_bound_before_its_first_instruction() {
    let limits = json!({"confine": false, "maxProcesses": 64, "maxMemoryBytes": 1_000_000_000});
    let world = World::real(limits).await;
    let (status, body) = world
        .ask(json!({"argv": ["cat", "/proc/self/limits"]}))
        .await;
    assert_eq!(status, 200, "{body}");
    let limits = body["stdout"].as_str().unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().next().unwrap()
    };
    assert_eq!(limit("Max processes"), "64");
    assert_eq!(limit("Max address space"), "1000000000");
    assert_eq!(limit("Max core file size"), "0");
    let (_, body) = world.sh(&format!("cat {}", world.secret())).await;
    assert_eq!(body["stdout"], "outside", "{body}");
    let (_, body) = world.sh("exit 3").await;
    assert_eq!(body["exitCode"], 3, "{body}");
    let (status, body) = world.ask(json!({"argv": ["no-such-program"]})).await;
    assert_eq!(status, 400, "{body}");
}

/// The helper is started while the record is written, and runs nothing when that fails.
#[tokio::test]
async fn a_command_that_cannot_be_recorded_never_begins() {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::open(temp.path()).unwrap();
    let writer = Tasks::new();
    let audit = Audit::open(&state, Arc::new(Identity::generate()), &writer).unwrap();
    // Nobody writes any more.
    writer.close(Duration::ZERO).await;
    let helper = Path::new(env!("CARGO_BIN_EXE_clawmatrix"));
    let limits = json!({"confine": false, "maxProcesses": 4096});
    let world = World::recorded(helper, limits, audit).await;
    let (status, body) = world.sh("touch made").await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (503, &json!("audit_unavailable")),
        "{body}"
    );
    assert!(!world.root.join("made").exists());
}

#[tokio::test]
async fn what_a_confined_command_cannot_start_is_told() {
    let world = World::real(json!({})).await;
    if !confines(&world).await {
        return;
    }
    let program = world.outside.join("program");
    fs::copy("/bin/true", &program).unwrap();
    let (status, body) = world.ask(json!({"argv": [program]})).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (400, &json!("invalid_request")),
        "{body}"
    );
    let text = body["error"]["message"].as_str().unwrap();
    assert!(
        text.contains("cannot be started: permission denied"),
        "{text}"
    );
}

/// Whatever keeps the helper from its work keeps the command from running.
#[tokio::test]
async fn a_helper_that_cannot_confine_runs_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let helper = temp.path().join("helper");
    fs::write(
        &helper,
        "#!/bin/sh\necho '{\"confine\":\"no such thing\"}' >&0\n",
    )
    .unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let world = World::new(&helper, json!({})).await;
    let (status, body) = world.sh("touch made").await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (403, &json!("policy_denied")),
        "{body}"
    );
    let text = body["error"]["message"].as_str().unwrap();
    assert!(
        text.contains("toolProxy.confine") && !text.contains("no such thing"),
        "{text}"
    );
    assert!(!world.root.join("made").exists());
}
