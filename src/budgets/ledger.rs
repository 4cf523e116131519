//! The counting itself. Pure: both clocks come in.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    crypto::identity::KeyId,
    policy::Quota,
    wire::code::{Code, Failure},
};

const MINUTE: Duration = Duration::from_secs(60);
const DAY_SECONDS: u64 = 24 * 3600;
/// Accounts that are remembered, 200 bytes each; idle ones are forgotten, more are refused.
const ACCOUNTS: usize = 8192;

/// Who is counted under what.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Account {
    /// The asking node's key.
    #[serde(rename = "key")]
    pub peer: KeyId,
    /// The rule; none: everything this node does for the peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Arc<str>>,
}

/// The most of each thing. None: no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caps {
    /// Requests within any minute.
    pub per_minute: Option<u64>,
    /// Requests at once.
    pub concurrent: Option<u64>,
    /// Requests in a day, UTC.
    pub per_day: Option<u64>,
    /// Tokens in a day.
    pub tokens_per_day: Option<u64>,
    /// Bytes of requests and answers in a day.
    pub bytes_per_day: Option<u64>,
}

impl From<Quota> for Caps {
    fn from(quota: Quota) -> Self {
        Self {
            per_minute: quota.per_minute.map(u64::from),
            concurrent: quota.concurrent.map(u64::from),
            per_day: quota.per_day.map(u64::from),
            tokens_per_day: quota.tokens_per_day,
            bytes_per_day: quota.bytes_per_day,
        }
    }
}

/// What a request costs as far as that is known at its begin.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Bytes.
    pub bytes: u64,
    /// Tokens.
    pub tokens: u64,
}

/// Both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// For minutes.
    pub(super) at: Instant,
    /// For days: since 1970.
    pub(super) unix: Duration,
}

impl Now {
    const fn day(self) -> u64 {
        self.unix.as_secs() / DAY_SECONDS
    }

    /// Until the next day.
    pub(super) const fn left(self) -> Duration {
        Duration::from_secs(DAY_SECONDS - self.unix.as_secs() % DAY_SECONDS)
    }
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Concurrent(u64),
    Minute(u64, Duration),
    Day(&'static str, u64, Duration),
    /// Too many accounts.
    Full,
}

impl Refusal {
    pub(super) fn failure(self, account: &Account) -> Failure {
        let who = account.rule.as_deref().map_or_else(
            || "`limits.perPeer`".to_owned(),
            |rule| format!("rule `{rule}`"),
        );
        let (code, text, retry_after) = match self {
            Self::Concurrent(most) => (
                Code::Overloaded,
                format!("{who} lets {most} run at once"),
                None,
            ),
            Self::Minute(most, wait) => (
                Code::RateLimited,
                format!("{who} lets {most} requests a minute through"),
                Some(wait),
            ),
            Self::Day(what, most, wait) => (
                Code::BudgetExceeded,
                format!("{who} lets {most} {what} a day through"),
                Some(wait),
            ),
            Self::Full => (
                Code::Overloaded,
                "the node counts as many callers as it can".to_owned(),
                None,
            ),
        };
        Failure {
            retry_after,
            ..Failure::not_started(code, text)
        }
    }
}

/// What was used of a day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Requests.
    pub requests: u64,
    /// Tokens.
    pub tokens: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What is counted for one account now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Whose, and under what.
    pub account: Account,
    /// Requests that run.
    pub open: u64,
    /// Requests of the last minute, where they are limited.
    pub minute: u64,
    /// Of this day, where it is limited.
    pub day: Used,
}

/// One account as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    #[serde(flatten)]
    account: Account,
    #[serde(flatten)]
    used: Used,
}

#[derive(Debug, Default)]
struct Counted {
    open: u64,
    /// When requests of the last minute came, at most as many as the limit.
    minute: VecDeque<Instant>,
    /// The day `used` is of.
    day: u64,
    used: Used,
}

impl Counted {
    /// Forgets what is over. A clock that was put back by up to a day gives nobody a day again; one that
    /// was wrong by more is believed as it stands now.
    fn pass(&mut self, now: Now) {
        while self
            .minute
            .front()
            .is_some_and(|at| now.at.duration_since(*at) >= MINUTE)
        {
            self.minute.pop_front();
        }
        let day = now.day();
        if day > self.day || self.day > day + 1 {
            (self.day, self.used) = (day, Used::default());
        }
    }

    fn idle(&self) -> bool {
        self.open == 0 && self.minute.is_empty() && self.used == Used::default()
    }

    fn refusal(&self, caps: &Caps, cost: Cost, now: Now) -> Option<Refusal> {
        if let Some(most) = caps.concurrent
            && self.open >= most
        {
            return Some(Refusal::Concurrent(most));
        }
        if let Some(most) = caps.per_minute
            && self.minute.len() as u64 >= most
        {
            let first = self.minute.front().copied().unwrap_or(now.at);
            let wait = MINUTE.saturating_sub(now.at.duration_since(first));
            return Some(Refusal::Minute(most, wait));
        }
        let of_day = [
            ("requests", caps.per_day, self.used.requests, 1),
            ("tokens", caps.tokens_per_day, self.used.tokens, cost.tokens),
            ("bytes", caps.bytes_per_day, self.used.bytes, cost.bytes),
        ];
        of_day.into_iter().find_map(|(what, most, used, more)| {
            let most = most?;
            let full = used >= most || used.saturating_add(more) > most;
            full.then(|| Refusal::Day(what, most, now.left()))
        })
    }
}

/// All accounts.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    accounts: HashMap<Account, Counted>,
    /// Something of a day was used since the file was written.
    changed: bool,
}

impl Ledger {
    /// Takes what was used of `day` before a restart.
    pub(super) fn restore(&mut self, day: u64, entries: Vec<Entry>) {
        for Entry { account, used } in entries.into_iter().take(ACCOUNTS) {
            let counted = Counted {
                day,
                used,
                ..Counted::default()
            };
            self.accounts.insert(account, counted);
        }
    }

    pub(super) fn enter(
        &mut self,
        account: &Account,
        caps: &Caps,
        cost: Cost,
        now: Now,
    ) -> Result<(), Refusal> {
        if self.accounts.len() >= ACCOUNTS && !self.accounts.contains_key(account) {
            self.accounts.retain(|_, counted| {
                counted.pass(now);
                !counted.idle()
            });
            if self.accounts.len() >= ACCOUNTS {
                return Err(Refusal::Full);
            }
        }
        let counted = self.accounts.entry(account.clone()).or_default();
        counted.pass(now);
        if let Some(refusal) = counted.refusal(caps, cost, now) {
            return Err(refusal);
        }
        if caps.per_minute.is_some() {
            counted.minute.push_back(now.at);
        }
        counted.open += 1;
        let daily = [caps.per_day, caps.tokens_per_day, caps.bytes_per_day];
        if daily.iter().any(Option::is_some) {
            counted.used.requests += 1;
            counted.used.tokens = counted.used.tokens.saturating_add(cost.tokens);
            counted.used.bytes = counted.used.bytes.saturating_add(cost.bytes);
            self.changed = true;
        }
        Ok(())
    }

    /// Counts what an open request used beyond its begin.
    pub(super) fn add(&mut self, account: &Account, bytes: u64, tokens: i64, now: Now) {
        let Some(counted) = self.accounts.get_mut(account) else {
            return;
        };
        counted.pass(now);
        counted.used.bytes = counted.used.bytes.saturating_add(bytes);
        counted.used.tokens = counted.used.tokens.saturating_add_signed(tokens);
        self.changed |= bytes != 0 || tokens != 0;
    }

    pub(super) fn leave(&mut self, account: &Account) {
        if let Some(counted) = self.accounts.get_mut(account) {
            counted.open = counted.open.saturating_sub(1);
        }
    }

    /// What is counted now, for accounts that have used anything.
    pub(super) fn usage(&mut self, now: Now) -> Vec<Usage> {
        let counted = self.accounts.iter_mut().map(|(account, counted)| {
            counted.pass(now);
            (account, counted)
        });
        counted
            .filter(|(_, counted)| !counted.idle())
            .map(|(account, counted)| Usage {
                account: account.clone(),
                open: counted.open,
                minute: counted.minute.len() as u64,
                day: counted.used,
            })
            .collect()
    }

    /// What to keep, if it is not what was kept last: the newest day and what was used of it.
    pub(super) fn changes(&mut self) -> Option<(u64, Vec<Entry>)> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let of_day = |counted: &&Counted| counted.used != Used::default();
        let day = self
            .accounts
            .values()
            .filter(of_day)
            .map(|counted| counted.day)
            .max()?;
        let used = self
            .accounts
            .iter()
            .filter(|(_, counted)| counted.day == day && of_day(counted))
            .map(|(account, counted)| Entry {
                account: account.clone(),
                used: counted.used,
            });
        Some((day, used.collect()))
    }

    /// What [`Ledger::changes`] gave was not kept.
    pub(super) fn unwritten(&mut self) {
        self.changed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPS: Caps = Caps {
        per_minute: None,
        concurrent: None,
        per_day: None,
        tokens_per_day: None,
        bytes_per_day: None,
    };
    const FREE: Cost = Cost {
        bytes: 0,
        tokens: 0,
    };

    fn account(peer: u8, rule: Option<&str>) -> Account {
        Account {
            peer: KeyId([peer; 16]),
            rule: rule.map(Into::into),
        }
    }

    /// Noon of day 20,000, and later.
    fn clock(later: Duration) -> Now {
        Now {
            at: Instant::now() + later,
            unix: Duration::from_secs(20_000 * DAY_SECONDS + DAY_SECONDS / 2) + later,
        }
    }

    /// T107
    #[tokio::test(start_paused = true)]
    async fn the_eleventh_of_ten_a_minute_is_told_when_to_come_back() {
        let mut ledger = Ledger::default();
        let caps = Caps {
            per_minute: Some(10),
            ..CAPS
        };
        let one = account(1, None);
        for second in 0..10 {
            let now = clock(Duration::from_secs(second));
            ledger.enter(&one, &caps, FREE, now).unwrap();
            ledger.leave(&one);
        }
        let at = |seconds| clock(Duration::from_secs(seconds));
        let refused = ledger.enter(&one, &caps, FREE, at(15)).unwrap_err();
        assert_eq!(refused, Refusal::Minute(10, Duration::from_secs(45)));
        let failure = refused.failure(&one);
        assert_eq!(
            (failure.code, failure.retry_after),
            (Code::RateLimited, Some(Duration::from_secs(45)))
        );
        // What was refused does not count, others are not concerned, and each second frees one place.
        ledger
            .enter(&account(2, None), &caps, FREE, at(15))
            .unwrap();
        ledger
            .enter(&account(1, Some("r")), &caps, FREE, at(15))
            .unwrap();
        ledger.enter(&one, &caps, FREE, at(60)).unwrap();
        assert!(ledger.enter(&one, &caps, FREE, at(60)).is_err());
        ledger.enter(&one, &caps, FREE, at(61)).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_given_back() {
        let mut ledger = Ledger::default();
        let caps = Caps {
            concurrent: Some(1),
            ..CAPS
        };
        let one = account(1, None);
        let now = clock(Duration::ZERO);
        ledger.enter(&one, &caps, FREE, now).unwrap();
        let refused = ledger.enter(&one, &caps, FREE, now).unwrap_err();
        assert_eq!(refused.failure(&one).code, Code::Overloaded);
        ledger.leave(&one);
        ledger.enter(&one, &caps, FREE, now).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_day_ends_at_midnight_and_not_when_the_clock_is_put_back() {
        let mut ledger = Ledger::default();
        let caps = Caps {
            per_day: Some(2),
            tokens_per_day: Some(100),
            bytes_per_day: Some(1000),
            ..CAPS
        };
        let cost = Cost {
            bytes: 300,
            tokens: 60,
        };
        let one = account(1, None);
        let noon = clock(Duration::ZERO);
        ledger.enter(&one, &caps, cost, noon).unwrap();
        let refused = ledger.enter(&one, &caps, cost, noon).unwrap_err();
        let half = Duration::from_secs(DAY_SECONDS / 2);
        assert_eq!(refused, Refusal::Day("tokens", 100, half));
        let failure = refused.failure(&one);
        assert_eq!(
            (failure.code, failure.retry_after),
            (Code::BudgetExceeded, Some(half))
        );
        // It used fewer tokens than thought, and more bytes.
        ledger.add(&one, 200, -50, noon);
        let large = Cost {
            bytes: 501,
            tokens: 1,
        };
        let refused = ledger.enter(&one, &caps, large, noon).unwrap_err();
        assert_eq!(refused, Refusal::Day("bytes", 1000, half));
        ledger.enter(&one, &caps, cost, noon).unwrap();
        let refused = ledger.enter(&one, &caps, FREE, noon).unwrap_err();
        assert_eq!(refused, Refusal::Day("requests", 2, half));
        ledger.enter(&one, &caps, cost, clock(half)).unwrap();
        ledger.enter(&one, &caps, FREE, clock(half)).unwrap();
        assert!(ledger.enter(&one, &caps, FREE, noon).is_err());
        // A clock that was ten years ahead is no reason to wait ten years.
        let ahead = clock(Duration::from_secs(3650 * DAY_SECONDS));
        for now in [ahead, ahead] {
            ledger.enter(&one, &caps, FREE, now).unwrap();
        }
        assert!(ledger.enter(&one, &caps, FREE, ahead).is_err());
        ledger.enter(&one, &caps, FREE, noon).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn accounts_are_bounded_and_idle_ones_make_room() {
        let mut ledger = Ledger::default();
        let caps = Caps {
            per_minute: Some(1),
            ..CAPS
        };
        let now = clock(Duration::ZERO);
        for i in 0..ACCOUNTS {
            let account = account(1, Some(&i.to_string()));
            ledger.enter(&account, &caps, FREE, now).unwrap();
            ledger.leave(&account);
        }
        let more = account(2, None);
        assert_eq!(ledger.enter(&more, &caps, FREE, now), Err(Refusal::Full));
        ledger.enter(&more, &caps, FREE, clock(MINUTE)).unwrap();
        assert_eq!(ledger.accounts.len(), 1);
    }
}
