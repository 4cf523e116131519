//! Commands that behave badly.

use std::{path::Path, time::Duration};

use tokio::{sync::mpsc, time::timeout};

use super::*;
use crate::tools::{EVENTS, host::bounds::Bounds};

const PATIENCE: Duration = Duration::from_secs(20);

fn shell(text: &str) -> Ready {
    Ready {
        program: "/bin/sh".into(),
        argv: vec!["sh".into(), "-c".into(), text.into()],
        workdir: "/".into(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        limit: Duration::from_secs(60),
        bounds: Bounds::default(),
    }
}

struct Seen {
    out: Vec<u8>,
    err: Vec<u8>,
    finished: Finished,
    took: Duration,
}

async fn run(ready: &Ready, most: usize, stop: &CancellationToken) -> Seen {
    let (sender, mut events) = mpsc::channel(EVENTS);
    let begun = std::time::SystemTime::now();
    let started = start(ready, &Register::default()).unwrap();
    let follow = async move { started.follow(&sender, stop, most).await };
    let read = async {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some(event) = events.recv().await {
            match event {
                Event::Output(Stream::Out, data) => out.extend_from_slice(&data),
                Event::Output(Stream::Err, data) => err.extend_from_slice(&data),
                other => panic!("{other:?}"),
            }
        }
        (out, err)
    };
    let both = async { tokio::join!(follow, read) };
    let (finished, (out, err)) = timeout(PATIENCE, both).await.unwrap();
    Seen {
        out,
        err,
        finished: finished.unwrap(),
        took: begun.elapsed().unwrap(),
    }
}

async fn plain(text: &str) -> Seen {
    run(&shell(text), 1 << 20, &CancellationToken::new()).await
}

fn pid_in(file: &Path) -> i32 {
    let begun = std::time::SystemTime::now();
    loop {
        if let Ok(text) = std::fs::read_to_string(file)
            && let Ok(pid) = text.trim().parse()
        {
            return pid;
        }
        assert!(
            begun.elapsed().unwrap() < PATIENCE,
            "no pid in {}",
            file.display()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process is there and no zombie.
fn lives(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    !matches!(state, Some('Z' | 'X'))
}

async fn gone(pid: i32) {
    let end = async {
        while lives(pid) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, end)
        .await
        .expect("a process was left behind");
}

#[tokio::test]
async fn output_exit_code_and_signal_are_told() {
    let seen = plain("printf out; printf err >&2; exit 7").await;
    assert_eq!((&*seen.out, &*seen.err), (&b"out"[..], &b"err"[..]));
    let result = &seen.finished.result;
    assert_eq!(
        (&result["exitCode"], &result["signal"]),
        (&json!(7), &Value::Null)
    );
    assert_eq!(
        (&result["timedOut"], &result["truncated"]),
        (&json!(false), &json!(false))
    );
    assert!(seen.finished.failure.is_none());
    let seen = plain("kill -SEGV $$").await;
    assert_eq!(seen.finished.result["signal"], "SIGSEGV");
    assert_eq!(seen.finished.result["exitCode"], Value::Null);
}

#[tokio::test]
async fn a_command_that_waits_for_input_finds_none() {
    let seen = plain("cat; read x; echo \"code $?\"").await;
    assert_eq!(seen.out, b"code 1\n");
}

/// A command that ignores SIGTERM and has a child that does, too.
#[tokio::test]
async fn time_up_ends_the_whole_group_even_if_it_does_not_listen() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("pid");
    let text = format!(
        "trap '' TERM; (trap '' TERM; sh -c 'echo $$ > {}; while :; do sleep 1; done') & while :; do sleep 1; done",
        file.display()
    );
    let mut ready = shell(&text);
    ready.limit = Duration::from_millis(300);
    let seen = run(&ready, 1 << 20, &CancellationToken::new()).await;
    assert_eq!(seen.finished.failure.as_ref().unwrap().code, Code::Timeout);
    assert_eq!(seen.finished.result["timedOut"], true);
    assert_eq!(seen.finished.result["signal"], "SIGKILL");
    assert!(seen.took >= EXEC_KILL_AFTER, "{:?}", seen.took);
    gone(pid_in(&file)).await;
}

#[tokio::test]
async fn a_command_that_listens_ends_at_once_when_it_is_stopped() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("pid");
    let text = format!("echo $$ > {}; sleep 60", file.display());
    let stop = CancellationToken::new();
    let ready = shell(&text);
    let stopper = async {
        let pid = loop {
            if let Some(pid) = std::fs::read_to_string(&file)
                .ok()
                .and_then(|t| t.trim().parse().ok())
            {
                break pid;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        stop.cancel();
        pid
    };
    let (seen, pid) = tokio::join!(run(&ready, 1 << 20, &stop), stopper);
    assert_eq!(seen.finished.result["signal"], "SIGTERM");
    assert!(seen.took < EXEC_KILL_AFTER, "{:?}", seen.took);
    gone(pid).await;
}

#[tokio::test]
async fn what_a_command_leaves_behind_goes_with_it() {
    let temp = tempfile::tempdir().unwrap();
    let (open, closed) = (temp.path().join("open"), temp.path().join("closed"));
    let text = format!(
        "sh -c 'echo $$ > {}; sleep 60' & sh -c 'echo $$ > {}; sleep 60' >/dev/null 2>&1 & while [ ! -s {} ] || [ ! -s {} ]; do :; done; echo done",
        open.display(),
        closed.display(),
        open.display(),
        closed.display(),
    );
    let seen = plain(&text).await;
    assert_eq!(seen.out, b"done\n");
    assert_eq!(seen.finished.result["exitCode"], 0);
    assert!(seen.took < Duration::from_secs(10), "{:?}", seen.took);
    gone(pid_in(&open)).await;
    gone(pid_in(&closed)).await;
}

#[tokio::test]
async fn a_dropped_command_is_killed_with_its_children() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("pid");
    let text = format!(
        "trap '' TERM; sh -c 'echo $$ > {}; sleep 60'; :",
        file.display()
    );
    let started = start(&shell(&text), &Register::default()).unwrap();
    let pid = pid_in(&file);
    assert!(lives(pid));
    drop(started);
    gone(pid).await;
}

/// Writes down its number and starts two more of itself, one in a session of its own, as often as the
/// second word says; whoever started something waits for it.
#[cfg(target_os = "linux")]
const NEST: &str = "echo $$ >> \"$1\"
[ \"$2\" -gt 0 ] || exec sleep 1000
setsid sh \"$0\" \"$1\" $(($2 - 1)) &
(sh \"$0\" \"$1\" $(($2 - 1)); :) &
wait
";

/// Seven processes in four sessions, and where they write their numbers.
#[cfg(target_os = "linux")]
struct Nest {
    ready: Ready,
    file: std::path::PathBuf,
    _temp: tempfile::TempDir,
}

#[cfg(target_os = "linux")]
impl Nest {
    /// `first` is done before anything else.
    fn new(first: &str) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let (script, file) = (temp.path().join("nest"), temp.path().join("pids"));
        std::fs::write(&script, NEST).unwrap();
        let text = format!("{first} exec sh {} {} 2", script.display(), file.display());
        Self {
            ready: shell(&text),
            file,
            _temp: temp,
        }
    }

    async fn pids(&self) -> Vec<i32> {
        let complete = async {
            loop {
                let text = std::fs::read_to_string(&self.file).unwrap_or_default();
                if text.lines().count() == 7 && text.ends_with('\n') {
                    return text.lines().map(|line| line.parse().unwrap()).collect();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, complete).await.unwrap()
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_left_the_group_ends_with_a_command_that_is_stopped() {
    let nest = Nest::new("");
    let stop = CancellationToken::new();
    let stopper = async {
        let pids = nest.pids().await;
        stop.cancel();
        pids
    };
    let (seen, pids) = tokio::join!(run(&nest.ready, 1 << 20, &stop), stopper);
    // Each was asked, and none had to be killed.
    assert_eq!(seen.finished.result["signal"], "SIGTERM");
    assert!(seen.took < EXEC_KILL_AFTER, "{:?}", seen.took);
    for pid in pids {
        gone(pid).await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_left_the_group_ends_when_time_is_up_even_if_it_does_not_listen() {
    let mut nest = Nest::new("trap '' TERM;");
    nest.ready.limit = Duration::from_secs(1);
    let stop = CancellationToken::new();
    let (seen, pids) = tokio::join!(run(&nest.ready, 1 << 20, &stop), nest.pids());
    assert_eq!(seen.finished.result["timedOut"], true);
    assert_eq!(seen.finished.result["signal"], "SIGKILL");
    for pid in pids {
        gone(pid).await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_left_the_group_is_killed_with_a_command_that_is_dropped() {
    let nest = Nest::new("trap '' TERM;");
    let started = start(&nest.ready, &Register::default()).unwrap();
    let pids = nest.pids().await;
    drop(started);
    for pid in pids {
        gone(pid).await;
    }
}

/// What a command leaves behind on purpose when it has ended by itself.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_daemon_outlives_its_command() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("pid");
    let shown = file.display();
    let text = format!(
        "setsid sh -c 'echo $$ > {shown}; exec sleep 1000' >/dev/null 2>&1 & while [ ! -s {shown} ]; do :; done"
    );
    let seen = plain(&text).await;
    assert_eq!(seen.finished.result["exitCode"], 0);
    let pid = pid_in(&file);
    assert!(lives(pid));
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// T99 in small: a flood is cut, marked, and read to its end.
#[tokio::test]
async fn a_flood_is_cut_and_marked() {
    let text = "head -c 50000000 /dev/zero; echo end >&2";
    let seen = run(&shell(text), 100_000, &CancellationToken::new()).await;
    assert_eq!(seen.out.len() + seen.err.len(), 100_000);
    assert_eq!(seen.finished.result["truncated"], true);
    assert_eq!(seen.finished.result["exitCode"], 0);
}

#[tokio::test]
async fn a_silent_command_is_said_to_be_alive() {
    let (sender, mut events) = mpsc::channel(EVENTS);
    let started = start(&shell("sleep 60"), &Register::default()).unwrap();
    let stop = CancellationToken::new();
    tokio::time::pause();
    let follow = started.follow(&sender, &stop, 1);
    tokio::pin!(follow);
    let begun = Instant::now();
    tokio::select! {
        _ = &mut follow => panic!("it ended"),
        event = events.recv() => assert!(matches!(event, Some(Event::Alive))),
    }
    assert!(begun.elapsed() >= EXEC_KEEP_ALIVE);
}

/// A follower that does not read holds the command up, and its time still ends it.
#[tokio::test]
async fn a_reader_that_stops_does_not_stop_the_clock() {
    let (sender, mut events) = mpsc::channel(EVENTS);
    let mut ready = shell("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done");
    ready.limit = Duration::from_millis(300);
    let started = start(&ready, &Register::default()).unwrap();
    let stop = CancellationToken::new();
    let follow = started.follow(&sender, &stop, usize::MAX);
    tokio::pin!(follow);
    let early = timeout(Duration::from_secs(2), &mut follow).await;
    assert!(early.is_err(), "what is unread keeps it open");
    let read = async {
        let mut count = 0;
        while events.recv().await.is_some() {
            count += 1;
            if count > EVENTS + 16 {
                break;
            }
        }
    };
    let finished = timeout(PATIENCE, async {
        tokio::select! {
            finished = &mut follow => finished.unwrap(),
            () = async { read.await; std::future::pending::<()>().await } => unreachable!(),
        }
    });
    let finished = finished.await.unwrap();
    assert_eq!(finished.result["timedOut"], true);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_command_gets_its_own_limits_and_no_input() {
    let seen = plain("sleep 0.2; cat /proc/self/limits; readlink /proc/self/fd/0").await;
    let text = String::from_utf8(seen.out).unwrap();
    let limit = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        let soft = line[name.len()..].split_whitespace().next().unwrap();
        soft.parse::<u64>().unwrap()
    };
    assert_eq!(limit("Max core file size"), 0);
    assert!(
        limit("Max processes") <= bounds::PROCESSES && limit("Max cpu time") > 0,
        "{text}"
    );
    assert!(text.ends_with("/dev/null\n"), "{text}");
}

/// A shell that keeps 100 MB in a variable, with and without a limit on its memory.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_command_gets_no_more_memory_than_it_may_have() {
    let text = "sleep 0.2; x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}";
    let mut ready = shell(text);
    let stop = CancellationToken::new();
    let free = run(&ready, 1 << 20, &stop).await;
    assert_eq!(free.out, b"100000000\n");
    ready.bounds.memory = Some(64 << 20);
    let bound = run(&ready, 1 << 20, &stop).await;
    assert_eq!(bound.out, b"");
    assert_ne!(bound.finished.result["exitCode"], 0);
}
