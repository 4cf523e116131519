//! T75: a node that is killed at any moment starts again with every pin and every line of the record it
//! has acted on, the same identity, a higher number of its start, and no torn file.

#![expect(clippy::unwrap_used, reason = "a test program fails by panicking")]

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use clawmatrix::{
    audit::{self, Audit, Entry, verify::verify},
    config::TrustConfig,
    crypto::identity::{Identity, PublicKey},
    drain::Tasks,
    ids::{Boot, NodeId, RequestId, random_bytes},
    mesh::{incarnation, session::Peer},
    state::StateDir,
    trust::{Level, TrustStore, Via},
};

/// Names the state folder, and turns this test program into the node that is killed.
const CHILD: &str = "CLAWMATRIX_KILLED_CHILD";
/// Kills of nodes that pin.
const KILLS: usize = 150;
/// Kills of nodes that record; the protocol's test list asks for 200 over all files.
const RECORD_KILLS: usize = 50;

fn name(text: &str) -> NodeId {
    text.parse().unwrap()
}

fn load(root: &Path) -> (Identity, TrustStore) {
    let dir = StateDir::open(root).unwrap();
    let identity = Identity::load_or_create(&dir, None).unwrap();
    let trust = TrustStore::load(&dir, &TrustConfig::default(), &[]).unwrap();
    (identity, trust)
}

fn say(text: String) {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Pins and adds keys for ever, and says so after each: what was said must be on disk.
fn pins_for_ever(root: &Path) {
    let dir = StateDir::open(root).unwrap();
    let _lock = dir.lock().unwrap();
    let (identity, trust) = load(root);
    say(format!("\nidentity {}\n", identity.public()));
    for i in 0_u64.. {
        let node = format!("n{i}-{:x}", u64::from_be_bytes(random_bytes()));
        let key = Identity::generate().public();
        if i % 4 == 0 && trust.pin(&name(&node), &key, Via::Link).is_ok() {
            say(format!("pin {node} {key}\n"));
        } else {
            trust.add(&name(&node), &key, &[]).unwrap();
            say(format!("pin {node} {key}\n"));
        }
    }
}

/// Records for ever, and says so after each line.
fn records_for_ever(root: &Path) {
    let dir = StateDir::open(root).unwrap();
    let _lock = dir.lock().unwrap();
    let (identity, _) = load(root);
    say(format!("\ninc {}\n", incarnation::advance(&dir).unwrap()));
    let peer = Peer {
        node: name("home"),
        key: identity.public(),
        boot: Boot::random(),
        level: Level::Trusted,
        labels: Arc::from([]),
    };
    runtime().block_on(async {
        let audit = Audit::open(&dir, Arc::new(identity), &Tasks::new()).unwrap();
        loop {
            let entry = Entry::new(&peer, RequestId::random(), "tool:exec", b"{}");
            audit.commit(entry.ruled("r", 1)).await.unwrap();
            say("line\n".to_owned());
        }
    });
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Runs the node that is this program's test `test` and kills it at a random moment; what it had said.
fn killed(test: &str, root: &Path, words: &[&str]) -> Vec<String> {
    let counts = |line: &String| words.iter().any(|word| line.starts_with(word));
    let [lines, spin_high, spin_low] = random_bytes::<3>();
    let mut node = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, root)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(node.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    // One kill in eight comes before the node has said anything at all.
    let wanted = if lines < 32 {
        0
    } else {
        usize::from(lines % 8) + 1
    };
    while said.len() < wanted {
        let line = output
            .next()
            .expect("the node runs until it is killed")
            .unwrap();
        said.extend(Some(line).filter(counts));
    }
    // A random moment within the next write.
    for _ in 0..u32::from(u16::from_be_bytes([spin_high, spin_low])) * 2 {
        std::hint::spin_loop();
    }
    node.kill().unwrap();
    node.wait().unwrap();
    // What was said before the kill counts, whether we had read it or not.
    said.extend(output.map_while(Result::ok).filter(counts));
    said
}

#[test]
fn killed_nodes_lose_no_line_of_their_record_and_no_start() {
    const NAME: &str = "killed_nodes_lose_no_line_of_their_record_and_no_start";
    if let Some(root) = env::var_os(CHILD) {
        return records_for_ever(Path::new(&root));
    }
    let temp = tempfile::tempdir().unwrap();
    let (mut promised, mut starts, mut acted) = (0, 0, 0);
    for kill in 0..RECORD_KILLS {
        let root = temp.path().join(format!("state-{}", kill / 10));
        if kill % 10 == 0 {
            (promised, starts) = (0, 0);
        }
        for line in killed(NAME, &root, &["inc ", "line"]) {
            if let Some(number) = line.strip_prefix("inc ") {
                let number: u64 = number.parse().unwrap();
                assert!(number > starts, "{number} after {starts}");
                starts = number;
            } else {
                promised += 1;
                acted += 1;
            }
        }
        let dir = StateDir::open(&root).unwrap();
        let (identity, _) = load(&root);
        let key = identity.public();
        // As the next start does: a line that was cut short was told to nobody.
        runtime().block_on(async {
            Audit::open(&dir, Arc::new(identity), &Tasks::new()).unwrap();
        });
        let sound = verify(&dir.path(audit::FOLDER), &[key]).unwrap();
        assert!(sound.last >= promised, "{} of {promised} lines", sound.last);
        assert!(incarnation::advance(&dir).unwrap() > starts);
    }
    assert!(acted > RECORD_KILLS as u64, "the nodes did record: {acted}");
}

#[test]
fn killed_nodes_lose_no_pin_and_no_identity() {
    const NAME: &str = "killed_nodes_lose_no_pin_and_no_identity";
    if let Some(root) = env::var_os(CHILD) {
        return pins_for_ever(Path::new(&root));
    }
    let temp = tempfile::tempdir().unwrap();
    let mut root = temp.path().join("state-0");
    let mut promised: Vec<(String, PublicKey)> = Vec::new();
    let mut identity = None;
    let mut acted = 0;
    for kill in 0..KILLS {
        // A new folder now and then, so that the first write of each file is cut short too.
        if kill % 20 == 0 {
            root = temp.path().join(format!("state-{kill}"));
            promised.clear();
            identity = None;
        }
        for line in killed(NAME, &root, &["identity ", "pin "]) {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["identity", key] => {
                    let key: PublicKey = key.parse().unwrap();
                    assert_eq!(*identity.get_or_insert(key), key);
                }
                ["pin", node, key] => {
                    promised.push((node.to_owned(), key.parse().unwrap()));
                    acted += 1;
                }
                _ => {}
            }
        }
        let (again, trust) = load(&root);
        assert_eq!(*identity.get_or_insert(again.public()), again.public());
        for (node, key) in &promised {
            assert!(
                trust.level(&name(node), key) >= Some(Level::Pinned),
                "{node}"
            );
        }
    }
    assert!(acted > KILLS, "the nodes did pin: {acted}");
}
