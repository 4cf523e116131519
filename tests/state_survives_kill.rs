//! T75 for keys and pins: a node that is killed at any moment starts again with every pin it has
//! acted on, the same identity, and no torn file.

#![expect(clippy::unwrap_used, reason = "a test program fails by panicking")]

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use clawmatrix::{
    config::TrustConfig,
    crypto::identity::{Identity, PublicKey},
    ids::{NodeId, random_bytes},
    state::StateDir,
    trust::{Level, TrustStore, Via},
};

/// Names the state folder, and turns this test program into the node that is killed.
const CHILD: &str = "CLAWMATRIX_KILLED_CHILD";
/// Kills; the protocol's test list asks for 200 over all files.
const KILLS: usize = 200;

fn name(text: &str) -> NodeId {
    text.parse().unwrap()
}

fn load(root: &Path) -> (Identity, TrustStore) {
    let dir = StateDir::open(root).unwrap();
    let identity = Identity::load_or_create(&dir, None).unwrap();
    let trust = TrustStore::load(&dir, &TrustConfig::default(), &[]).unwrap();
    (identity, trust)
}

/// Pins and adds keys for ever, and says so after each: what was said must be on disk.
fn child(root: &Path) {
    let dir = StateDir::open(root).unwrap();
    let _lock = dir.lock().unwrap();
    let (identity, trust) = load(root);
    let mut out = std::io::stdout();
    let mut say = |text: String| {
        out.write_all(text.as_bytes()).unwrap();
        out.flush().unwrap();
    };
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

#[test]
fn killed_nodes_lose_no_pin_and_no_identity() {
    if let Some(root) = env::var_os(CHILD) {
        return child(Path::new(&root));
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
        let [lines, spin_high, spin_low] = random_bytes::<3>();
        let mut node = Command::new(env::current_exe().unwrap())
            .args(["--exact", "killed_nodes_lose_no_pin_and_no_identity"])
            .args(["--nocapture", "--test-threads=1"])
            .env(CHILD, &root)
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
            if line.starts_with("identity ") || line.starts_with("pin ") {
                said.push(line);
            }
        }
        // A random moment within the next write.
        for _ in 0..u32::from(u16::from_be_bytes([spin_high, spin_low])) * 2 {
            std::hint::spin_loop();
        }
        node.kill().unwrap();
        node.wait().unwrap();
        // What was said before the kill counts, whether we had read it or not.
        said.extend(output.map_while(Result::ok));
        for line in said {
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
