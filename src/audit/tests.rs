use std::{fs, fs::OpenOptions};

use super::{
    verify::{Broken, verify},
    *,
};
use crate::{
    mesh::testkit::peer,
    wire::limits::{AUDIT_FILE_BYTES, AUDIT_FILES},
};

fn entry(action: &str) -> Entry {
    Entry::new(&peer("attic", 1), RequestId::random(), action, b"{}").ruled("agents", 1)
}

fn line(entry: Entry) -> Content {
    Content::Entry(Box::new(entry), 1)
}

fn denied(action: &str) -> Entry {
    entry(action).failed(&Failure::not_started(Code::AgentNotFound, "no"))
}

fn lines(folder: &Path) -> Vec<String> {
    let texts = files(folder).unwrap().into_iter();
    let all: Vec<String> = texts.map(|(_, p)| fs::read_to_string(p).unwrap()).collect();
    all.concat().lines().map(str::to_owned).collect()
}

/// A record of five entries and a signed head.
fn record(folder: &Path, identity: &Arc<Identity>) {
    let mut chain = Chain::open(folder).unwrap();
    for name in ["a", "b", "c", "d", "e"] {
        let content = line(entry(&format!("agent:{name}")).ended("completed"));
        chain.append(&[content]).unwrap();
    }
    chain.append(&[Content::Head(identity.clone())]).unwrap();
}

fn writer(chain: Chain) -> Writer {
    Writer {
        chain: Some(chain),
        folds: Folds::default(),
        identity: Arc::new(Identity::generate()),
        counts: Arc::default(),
        failing: false,
        unsigned: 0,
        signed: Instant::now(),
    }
}

fn full_disk() -> fs::File {
    let open = OpenOptions::new().append(true).open("/dev/full");
    open.unwrap()
}

#[test]
fn the_chain_goes_on_over_restarts_files_and_a_torn_line() {
    let temp = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::generate());
    record(temp.path(), &identity);
    let mut chain = Chain::open(temp.path()).unwrap();
    chain.good = AUDIT_FILE_BYTES;
    chain.append(&[line(entry("agent:f"))]).unwrap();
    drop(chain);
    let (_, last) = files(temp.path()).unwrap().pop().unwrap();
    let mut torn = fs::read(&last).unwrap();
    torn.extend(b"{\"seq\":8,\"ts\":1");
    fs::write(&last, torn).unwrap();
    let mut chain = Chain::open(temp.path()).unwrap();
    chain.append(&[line(entry("agent:g"))]).unwrap();

    let sound = verify(temp.path(), &[identity.public()]).unwrap();
    assert_eq!((sound.first, sound.last, sound.signed), (1, 8, 6));
    assert_eq!(files(temp.path()).unwrap().len(), 2);
    assert!(!crate::state::open_to_others(&last).unwrap());
}

#[test]
fn the_oldest_file_goes_and_the_rest_stays_sound() {
    let temp = tempfile::tempdir().unwrap();
    let mut chain = Chain::open(temp.path()).unwrap();
    for _ in 0..AUDIT_FILES + 3 {
        chain.append(&[line(entry("agent:a"))]).unwrap();
        chain.good = AUDIT_FILE_BYTES;
    }
    assert_eq!(files(temp.path()).unwrap().len(), AUDIT_FILES);
    assert_eq!(verify(temp.path(), &[]).unwrap().first, 4);
}

/// T105: an edited, deleted or moved line is named; so is a forged head.
#[test]
fn a_changed_line_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::generate());
    record(temp.path(), &identity);
    let (_, path) = files(temp.path()).unwrap().pop().unwrap();
    let whole = lines(temp.path());
    let broken = |lines: &[String]| {
        fs::write(&path, lines.join("\n") + "\n").unwrap();
        match verify(temp.path(), &[identity.public()]) {
            Err(Broken::Line { line, .. }) => line,
            other => panic!("{other:?}"),
        }
    };
    for at in 0..5 {
        let mut edited = whole.clone();
        edited[at] = edited[at].replace("completed", "cancelled");
        assert_eq!(broken(&edited), at as u64 + 1, "edited");
        let mut cut = whole.clone();
        cut.remove(at);
        assert_eq!(broken(&cut), at as u64 + 1, "deleted");
        let mut moved = whole.clone();
        moved.swap(at, at + 1);
        assert!(broken(&moved) <= at as u64 + 2, "moved");
    }
    let stranger = Identity::generate().public();
    fs::write(&path, whole.join("\n") + "\n").unwrap();
    assert!(verify(temp.path(), &[stranger]).is_err());
    assert!(verify(temp.path(), &[identity.public()]).is_ok());
}

/// T104, the record's part: nothing is acknowledged while the disk is full, lines of models are counted
/// as lost, and it goes on without a gap once there is room.
#[tokio::test]
async fn a_full_disk_refuses_commits_and_recovers() {
    let temp = tempfile::tempdir().unwrap();
    let mut chain = Chain::open(temp.path()).unwrap();
    chain.append(&[line(entry("agent:a"))]).unwrap();
    let good = std::mem::replace(&mut chain.file, full_disk());
    let mut writer = writer(chain);
    let order = |entry: Entry| {
        let (done, written) = oneshot::channel();
        let order = Order {
            entry: Some(entry),
            done: Some(done),
        };
        (order, written)
    };
    let (first, written) = order(entry("agent:b"));
    let model = Order {
        entry: Some(entry("model:m")),
        done: None,
    };
    writer.write(vec![first, model]).await;
    assert!(!written.await.unwrap());
    assert_eq!(writer.counts.lost.load(Relaxed), 2);
    assert!(writer.failing);

    writer.chain.as_mut().unwrap().file = good;
    let (again, written) = order(entry("agent:c"));
    writer.write(vec![again]).await;
    assert!(written.await.unwrap());
    assert!(!writer.failing);
    assert_eq!(verify(temp.path(), &[]).unwrap().last, 2);
    assert!(lines(temp.path())[1].contains("agent:c"));
}

#[tokio::test]
async fn a_commit_fails_when_nobody_writes() {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::open(temp.path()).unwrap();
    let tasks = Tasks::new();
    let audit = Audit::open(&state, Arc::new(Identity::generate()), &tasks).unwrap();
    audit.commit(entry("agent:a")).await.unwrap();
    assert_eq!(lines(&state.path(FOLDER)).len(), 1);
    tasks.close(Duration::ZERO).await;
    let failure = audit.commit(entry("agent:b")).await.unwrap_err();
    assert_eq!(failure.code, Code::AuditUnavailable);
    assert_eq!(failure.stage, Stage::NotStarted);
}

#[tokio::test]
async fn a_flush_writes_what_is_pending_and_signs_it() {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::open(temp.path()).unwrap();
    let identity = Arc::new(Identity::generate());
    let audit = Audit::open(&state, identity.clone(), &Tasks::new()).unwrap();
    audit.record(entry("model:m"));
    for _ in 0..1000 {
        audit.record(denied("agent:x"));
    }
    audit.flush().await;
    let folder = state.path(FOLDER);
    let all = lines(&folder);
    // One allowed, the first refusal, its repeats, the head.
    assert_eq!(all.len(), 4, "{all:?}");
    assert!(all[1].contains(r#""decision":"deny","result":"agent_not_found""#));
    assert!(all[2].contains(r#""count":999"#));
    let sound = verify(&folder, &[identity.public()]).unwrap();
    assert_eq!(sound.signed, 4);
    assert_eq!(
        audit.stats(),
        Stats {
            written: 3,
            lost: 0
        }
    );
}

#[tokio::test(start_paused = true)]
async fn refusals_fold_by_the_minute_and_by_key() {
    let mut folds = Folds::default();
    let now = Instant::now();
    let told = |folds: &mut Folds, action: &str| folds.pass(denied(action), now).is_some();
    assert!(told(&mut folds, "agent:x"));
    assert!(!told(&mut folds, "agent:x"));
    assert!(folds.due(now).is_empty());
    let due = folds.due(now + AUDIT_FOLD);
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].1, 1);
    // The next minute begins anew.
    assert!(told(&mut folds, "agent:x"));
    // Name after name: some lines, then one for all the rest.
    let written = (0..1000).filter(|i| told(&mut folds, &format!("agent:{i}")));
    assert_eq!(written.count(), 32);
    let repeats: u64 = folds.due(now + AUDIT_FOLD).iter().map(|(_, n)| n).sum();
    assert_eq!(repeats, 968);
    assert!(
        folds.pass(entry("agent:x"), now).is_some(),
        "never folds what was allowed"
    );
}
