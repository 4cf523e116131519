//! What survives a restart, and many at once.

use super::*;
use crate::{crypto::identity::KeyId, wire::code::Code};

fn account(rule: Option<&str>) -> Account {
    Account {
        peer: KeyId([7; 16]),
        rule: rule.map(Into::into),
    }
}

fn a_day(most: u64) -> Caps {
    Caps {
        per_day: Some(most),
        ..Caps::default()
    }
}

fn ask(budgets: &Budgets, rule: Option<&str>, caps: &Caps) -> Result<(), Code> {
    let entered = budgets.enter(account(rule), caps, Cost::default());
    entered.map(drop).map_err(|failure| failure.code)
}

#[tokio::test]
async fn what_was_used_of_a_day_survives_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let state = || StateDir::open(temp.path()).unwrap();
    let caps = a_day(3);
    let first = Budgets::load(state(), caps);
    ask(&first, None, &caps).unwrap();
    for _ in 0..3 {
        ask(&first, Some("r"), &caps).unwrap();
    }
    first.flush().await;
    // What was not written is what a crash loses.
    ask(&first, None, &caps).unwrap();

    let again = Budgets::load(state(), caps);
    assert_eq!(ask(&again, Some("r"), &caps), Err(Code::BudgetExceeded));
    ask(&again, Some("other"), &caps).unwrap();
    ask(&again, None, &caps).unwrap();
    ask(&again, None, &caps).unwrap();
    assert_eq!(ask(&again, None, &caps), Err(Code::BudgetExceeded));
    again.flush().await;
    let third = Budgets::load(state(), caps);
    assert_eq!(ask(&third, None, &caps), Err(Code::BudgetExceeded));
}

#[tokio::test]
async fn a_broken_file_or_disk_stops_nobody() {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::open(temp.path()).unwrap();
    std::fs::write(state.path(FILE), "{\"day\":").unwrap();
    let caps = a_day(2);
    let budgets = Budgets::load(state.clone(), caps);
    ask(&budgets, None, &caps).unwrap();
    // The folder is gone, then there again: what could not be written is written later.
    let away = temp.path().with_extension("away");
    std::fs::rename(temp.path(), &away).unwrap();
    budgets.flush().await;
    std::fs::rename(&away, temp.path()).unwrap();
    budgets.flush().await;
    let again = Budgets::load(state, caps);
    ask(&again, None, &caps).unwrap();
    assert_eq!(ask(&again, None, &caps), Err(Code::BudgetExceeded));
}

/// T107: many at once get no place more than there are.
#[test]
fn a_race_admits_none_beyond_the_limit() {
    let budgets = Budgets::default();
    let caps = Caps {
        per_minute: Some(100),
        ..a_day(50)
    };
    let at_once = Caps {
        concurrent: Some(5),
        ..Caps::default()
    };
    let (admitted, held) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let admitted = (0..100)
                        .filter(|_| ask(&budgets, None, &caps).is_ok())
                        .count();
                    let enter = || {
                        budgets
                            .enter(account(Some("x")), &at_once, Cost::default())
                            .ok()
                    };
                    let held: Vec<Share> = (0..100).filter_map(|_| enter()).collect();
                    (admitted, held)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .fold((0, Vec::new()), |(admitted, mut all), (more, held)| {
                all.extend(held);
                (admitted + more, all)
            })
    });
    assert_eq!((admitted, held.len()), (50, 5));
    drop(held);
    assert!(
        budgets
            .enter(account(Some("x")), &at_once, Cost::default())
            .is_ok()
    );
}
