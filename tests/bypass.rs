//! Ways around the tool policy, tried over real requests (T89-T92, T96-T98, T108). What came of each is
//! `docs/bypass.md`, printed by this test: `CLAWMATRIX_WRITE=1` renews it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "a helper that fails is a failed test; not every helper is used by every test binary"
)]

#[path = "support/local_node.rs"]
mod local_node;

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use clawmatrix::config::{Config, Source};
use local_node::{Cable, Node, Setup, join};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);
/// Head of the page.
const HEAD: &str = "# Ways around the tool policy

What a node answers to requests that try to get around its rules, as `tests/bypass.rs` tried them last. The test
prints this page and fails when an answer changes. The node lends read, write, edit and list beneath one folder, `ROOT`,
and by rules `echo` with any arguments, `git status` and `tar tf` with file names; `ROOT/state` stands for its own state.
Beside these, `src/policy/tests.rs` has what the rules themselves say (T93-T95).

| test | attempt | answer |
| --- | --- | --- |
";

struct World {
    home: Node,
    _office: Node,
    _cable: Cable,
    root: PathBuf,
    outside: PathBuf,
    _temp: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().canonicalize().unwrap();
        let (root, outside) = (base.join("root"), base.join("outside"));
        for folder in [&root, &outside, &root.join("state/run"), &root.join("bin")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(outside.join("secret"), "outside\n").unwrap();
        fs::write(root.join("file"), "inside\n").unwrap();
        fs::write(root.join("state/identity.key"), "key\n").unwrap();
        fs::write(root.join("state/run/token"), "token\n").unwrap();
        fs::copy("/bin/sh", root.join("bin/echo")).unwrap();
        symlink(outside.join("secret"), root.join("link")).unwrap();
        symlink(&outside, root.join("folder")).unwrap();
        symlink("state", root.join("other")).unwrap();
        fs::hard_link(root.join("state/identity.key"), root.join("second")).unwrap();
        let made = Command::new("mkfifo").arg(root.join("fifo")).status();
        assert!(made.unwrap().success());

        let pinned = |id: &str, more: Value| {
            let mut rule =
                json!({"id": id, "effect": "allow", "from": ["*"], "minTrust": "pinned"});
            rule.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            rule
        };
        let exec = |names: &[&str], args: Value| {
            let folders = ["/usr/bin", "/bin"];
            let paths: Vec<String> = folders
                .iter()
                .flat_map(|folder| names.iter().map(move |name| format!("{folder}/{name}")))
                .collect();
            json!({"action": ["tool:exec"], "program": paths, "args": args})
        };
        let rules = json!([
            pinned(
                "files",
                json!({"action": ["tool:read", "tool:write", "tool:edit", "tool:list"]})
            ),
            pinned("echo", exec(&["echo", "coreutils"], json!("any"))),
            pinned("git", exec(&["git"], json!(["status", "*", "..."]))),
            pinned("tar", exec(&["tar"], json!(["tf", "*"]))),
        ]);
        let whole = json!({"nodeId": "office", "secret": "vT2mQ9xLr4Kc8WzYp6NdBh3sJf7GaE5u",
            "toolProxy": {"enabled": true, "roots": [root], "rules": rules}});
        let source = Source {
            openclaw: false,
            folder: Path::new("/"),
            env: &|_| None,
        };
        let mut setup = Setup::new("office");
        setup.tools = Config::from_value(whole, &source).unwrap().tools;
        setup.denied = vec![root.join("state")];
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

    /// What came of it, in words that are the same on every machine.
    async fn attempt(&self, verb: &str, body: &Value) -> String {
        let asked = self.home.tool_of_office(verb, body.clone(), PATIENCE);
        let (status, body) = asked.await;
        let text = if status == 200 {
            let said = body["stdout"].as_str().or(body["content"].as_str());
            format!(
                "done: `{}`",
                said.unwrap_or_default().trim_end().escape_debug()
            )
        } else {
            let error = &body["error"];
            let (code, message) = (error["code"].as_str(), error["message"].as_str());
            format!("`{}`: {}", code.unwrap(), message.unwrap())
        };
        self.plain(&text)
    }

    fn plain(&self, text: &str) -> String {
        text.replace(self.root.to_str().unwrap(), "ROOT")
            .replace(self.outside.to_str().unwrap(), "OUTSIDE")
            .replace('|', "\\|")
            .replace('\n', "\\n")
    }
}

fn read(path: &str) -> (&'static str, Value) {
    ("read", json!({ "path": path }))
}

fn argv(words: &[&str]) -> (&'static str, Value) {
    ("exec", json!({ "argv": words }))
}

fn command(text: &str) -> (&'static str, Value) {
    ("exec", json!({ "command": text }))
}

fn with(name: &str, value: &str) -> (&'static str, Value) {
    ("exec", json!({"argv": ["echo", "x"], "env": {name: value}}))
}

/// Test, request, and what the answer must begin with.
fn attempts(
    root: &Path,
    outside: &Path,
) -> Vec<(&'static str, (&'static str, Value), &'static str)> {
    let beneath = |name: &str| root.join(name).to_str().unwrap().to_owned();
    let secret = outside.join("secret").to_str().unwrap().to_owned();
    let refused = "`invalid_request`";
    let denied = "`policy_denied`";
    let mut list = vec![
        // That the rules let through what they should.
        ("", read("file"), "done: `inside`"),
        ("", argv(&["echo", "a b"]), "done: `a b`"),
        ("T89", read("../outside/secret"), refused),
        ("T89", read("state/../../outside/secret"), refused),
        ("T89", read("%2e%2e/outside/secret"), refused),
        ("T89", read(&secret), denied),
        ("T89", read(&format!("/{secret}")), refused),
        ("T89", read("file\0.txt"), refused),
        ("T89", read("C:\\Windows\\win.ini"), refused),
        ("T89", read("file::$DATA"), refused),
        ("T90", read("link"), denied),
        ("T90", read("folder/secret"), denied),
        ("T90", ("list", json!({"path": "folder"})), denied),
        ("T91", read("second"), denied),
        ("T91", read("fifo"), refused),
        ("T91", read("/proc/self/fd/0"), denied),
        ("T91", read("/dev/zero"), denied),
        (
            "T92",
            ("write", json!({"path": "folder/made", "content": "x"})),
            denied,
        ),
        (
            "T92",
            (
                "edit",
                json!({"path": "link", "oldText": "outside", "newText": "x"}),
            ),
            "",
        ),
        ("T108", read("state/identity.key"), denied),
        ("T108", read("state//./identity.key"), refused),
        ("T108", read("other/identity.key"), denied),
        ("T108", read("other/run/token"), denied),
        (
            "T108",
            read(&format!("/proc/self/root{}", beneath("state/run/token"))),
            denied,
        ),
        ("T108", ("list", json!({"path": "state"})), denied),
        (
            "T108",
            ("write", json!({"path": "state/run/token", "content": "x"})),
            denied,
        ),
    ];
    for text in [
        "echo a;id",
        "echo $(id)",
        "echo `id`",
        "echo a\nid",
        "echo a|id",
        "PATH=. echo a",
    ] {
        list.push(("T96", command(text), denied));
    }
    for hidden in [
        "a\tb",
        "a\u{a0}b",
        "a\u{200b}b",
        "\u{202e}a",
        "e\u{301}",
        "a\nb",
    ] {
        list.push(("T96", argv(&["echo", hidden]), refused));
    }
    list.extend([
        ("T96", argv(&["echo", "a;id"]), "done: `a;id`"),
        ("T96", argv(&["echo", "$(id)"]), "done: `$(id)`"),
        ("T96", argv(&["echo", "\u{ff1b}id"]), "done: `\u{ff1b}id`"),
        ("T96", argv(&["echo", "--exec=id"]), "done: `--exec=id`"),
        ("T96", argv(&["bin/echo", "-c", "id"]), denied),
        ("T96", argv(&["./bin/echo", "-c", "id"]), denied),
        ("T96", argv(&[&beneath("bin/echo"), "-c", "id"]), denied),
        (
            "T96",
            ("exec", json!({"argv": ["echo", "a"], "workdir": "folder"})),
            denied,
        ),
        (
            "T96",
            ("exec", json!({"argv": ["echo", "a"], "workdir": "bin"})),
            "done: `a`",
        ),
    ]);
    for (name, value) in [
        ("LD_PRELOAD", "./x.so"),
        ("PATH", "."),
        ("BASH_ENV", "x"),
        ("IFS", "x"),
        ("GIT_SSH_COMMAND", "id"),
        ("NODE_OPTIONS", "-r x"),
        ("HARMLESS", "x"),
    ] {
        list.push(("T97", with(name, value), denied));
    }
    for words in [
        &["git", "-c", "core.sshCommand=id", "status"][..],
        &["git", "status", "-c", "x"],
        &["git", "--exec-path=.", "status"],
        &["tar", "tf", "a", "--checkpoint-action=exec=id"],
        &["tar", "tf", "--to-command=id"],
        &["find", ".", "-exec", "id", ";"],
        &["sh", "-c", "id"],
        &["env", "echo", "a"],
        &["xargs", "echo"],
        &["sudo", "id"],
        &["ssh", "localhost", "id"],
        &["python3", "-c", "1"],
        &["no-such-program"],
    ] {
        list.push(("T98", argv(words), denied));
    }
    list
}

#[tokio::test]
async fn no_way_around_the_policy_is_open() {
    let world = World::new().await;
    let mut page = HEAD.to_owned();
    let mut wrong = String::new();
    for (test, (verb, body), expected) in attempts(&world.root, &world.outside) {
        let answer = world.attempt(verb, &body).await;
        let asked = world.plain(&format!("{verb} `{body}`"));
        writeln!(page, "| {test} | {asked} | {answer} |").unwrap();
        if !answer.starts_with(expected) {
            writeln!(wrong, "{test} {asked}: {answer}, not {expected}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    // Nothing outside came in, and nothing inside went out.
    assert_eq!(
        fs::read(world.outside.join("secret")).unwrap(),
        b"outside\n"
    );
    assert_eq!(fs::read_dir(&world.outside).unwrap().count(), 1);
    assert_eq!(
        fs::read(world.root.join("state/run/token")).unwrap(),
        b"token\n"
    );
    assert!(!page.contains("uid="), "a command of an attempt ran");

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/bypass.md");
    if std::env::var_os("CLAWMATRIX_WRITE").is_some() {
        fs::write(&file, &page).unwrap();
    }
    let kept = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        kept == page,
        "docs/bypass.md differs: `CLAWMATRIX_WRITE=1 cargo test --test bypass`\n{page}"
    );
}
