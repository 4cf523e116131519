//! Where requests wait and decisions arrive: a [`Book`] with a clock and somebody who is told.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::json;
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

use super::{
    ApprovalId, Request,
    book::{Book, CONSOLE_LEVEL, Decision, Full, Refused},
    request::About,
};
use crate::{
    crypto::identity::{KeyId, PublicKey},
    events::{Events, Happening},
    ids::{hex, random_bytes},
    wire::limits::APPROVAL_WAIT,
};

/// Somebody who may approve, as the configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// Its public key.
    pub key: PublicKey,
    /// SHA-256 of the token with which it sees what waits; none decides from other nodes alone.
    pub token_sha256: Option<[u8; 32]>,
}

/// The requests of a node that wait for a person; cheap to clone.
#[derive(Clone)]
pub struct Desk(Arc<Inner>);

struct Inner {
    /// Replaced by a configuration that is read again. Never held across an await.
    settings: RwLock<Settings>,
    /// Never held across an await.
    table: Mutex<Table>,
    /// How many wait.
    count: watch::Sender<usize>,
    /// Hears of each request once when it begins to wait, and once when it does no more.
    events: Events,
}

/// What the configuration says.
#[derive(Clone, PartialEq, Eq)]
struct Settings {
    operators: Vec<PublicKey>,
    wait: Duration,
}

impl Settings {
    fn new(operators: &[Operator], wait: Duration) -> Self {
        Self {
            operators: operators.iter().map(|operator| operator.key).collect(),
            wait: wait.min(APPROVAL_WAIT),
        }
    }
}

#[derive(Default)]
struct Table {
    book: Book,
    /// Who is told of a decision.
    waiters: HashMap<ApprovalId, oneshot::Sender<Decision>>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Desk")
    }
}

impl Desk {
    /// A desk at which `operators` decide, each request within `wait`, at most [`APPROVAL_WAIT`]; what
    /// waits is told to `events`.
    #[must_use]
    pub fn new(operators: &[Operator], wait: Duration, events: Events) -> Self {
        Self(Arc::new(Inner {
            settings: RwLock::new(Settings::new(operators, wait)),
            table: Mutex::default(),
            count: watch::Sender::new(0),
            events,
        }))
    }

    /// A desk with nobody at it.
    #[must_use]
    pub fn unmanned() -> Self {
        Self::new(&[], APPROVAL_WAIT, Events::default())
    }

    /// From now on these operators decide, what waits already included; who is not among them decides
    /// nothing any more. A new `wait` is for requests to come.
    pub fn set(&self, operators: &[Operator], wait: Duration) {
        let settings = Settings::new(operators, wait);
        let held = self.0.settings.write();
        *held.unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// Whether anybody can approve at all.
    #[must_use]
    pub fn manned(&self) -> bool {
        !self.settings().operators.is_empty()
    }

    /// Names of the keys that count here.
    #[must_use]
    pub fn operators(&self) -> Vec<KeyId> {
        let settings = self.settings();
        settings.operators.iter().map(PublicKey::id).collect()
    }

    /// How many requests wait, as it changes.
    #[must_use]
    pub fn count(&self) -> watch::Receiver<usize> {
        self.0.count.subscribe()
    }

    /// Parks a request. Its `asked` and `exp` are set here.
    ///
    /// # Errors
    /// [`Full`].
    pub fn ask(&self, mut request: Request) -> Result<Waiting, Full> {
        let now = unix_ms();
        let wait = self.settings().wait;
        request.asked = now;
        request.exp = now + u64::try_from(wait.as_millis()).unwrap_or(u64::MAX / 2);
        let about = About::of(&request);
        let challenge = hex(&random_bytes::<3>());
        let (tell, told) = oneshot::channel();
        let mut table = self.table();
        let mut id = ApprovalId::random();
        while table.waiters.contains_key(&id) || table.book.knows(id) {
            id = ApprovalId::random();
        }
        table.book.ask(id, request, challenge, now)?;
        table.waiters.insert(id, tell);
        self.counted(&table);
        drop(table);
        let events = &self.0.events;
        events.tell(Happening::ApprovalAsked, || about.told(id));
        Ok(Waiting {
            desk: self.clone(),
            id,
            told,
            about,
            wait,
            outcome: None,
        })
    }

    /// What waits, the oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<(ApprovalId, Request)> {
        let mut table = self.table();
        let all = table.book.pending(unix_ms()).into_iter();
        all.map(|(id, request)| (id, request.clone())).collect()
    }

    /// One that waits, and what level 3 wants typed.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn find(&self, id: ApprovalId) -> Result<(Request, String), Refused> {
        let table = self.table();
        let (request, challenge) = table.book.find(id, unix_ms())?;
        Ok((request.clone(), challenge.to_owned()))
    }

    /// An operator agrees.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed.
    pub fn approve(
        &self,
        id: ApprovalId,
        signature: &[u8; 64],
        typed: &str,
    ) -> Result<KeyId, Refused> {
        let operators = self.settings().operators;
        let mut table = self.table();
        let book = &mut table.book;
        let by = book.approve(id, signature, typed, &operators, unix_ms())?;
        self.tell(&mut table, id, Decision::Approved(by));
        Ok(by)
    }

    /// An operator agrees, at another node. What wants a challenge typed is agreed to here alone.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed.
    pub fn approve_from_afar(
        &self,
        id: ApprovalId,
        signature: &[u8; 64],
    ) -> Result<KeyId, Refused> {
        let (request, _) = self.find(id)?;
        if request.level >= CONSOLE_LEVEL {
            return Err(Refused::Console);
        }
        self.approve(id, signature, "")
    }

    /// Whether this name was given to a request that is still remembered.
    #[must_use]
    pub fn knows(&self, id: ApprovalId) -> bool {
        self.table().book.knows(id)
    }

    /// Somebody says no.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed.
    pub fn deny(&self, id: ApprovalId) -> Result<(), Refused> {
        let mut table = self.table();
        table.book.deny(id, unix_ms())?;
        self.tell(&mut table, id, Decision::Denied);
        Ok(())
    }

    /// The node ends: what waits is told so, and nothing of it runs.
    pub fn close(&self) {
        let mut table = self.table();
        table.waiters.clear();
        self.counted(&table);
    }

    fn tell(&self, table: &mut Table, id: ApprovalId, decision: Decision) {
        if let Some(waiter) = table.waiters.remove(&id) {
            // It may have left meanwhile; then nothing runs.
            let _ = waiter.send(decision);
        }
        self.counted(table);
    }

    fn counted(&self, table: &Table) {
        self.0.count.send_replace(table.waiters.len());
    }

    fn settings(&self) -> Settings {
        let settings = self.0.settings.read();
        settings.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that waits. Dropped, it is withdrawn.
#[derive(Debug)]
pub struct Waiting {
    desk: Desk,
    id: ApprovalId,
    told: oneshot::Receiver<Decision>,
    about: About,
    wait: Duration,
    /// None until the wait has ended by itself.
    outcome: Option<Outcome>,
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It may run, now and once.
    Approved(KeyId),
    /// A person said no.
    Denied,
    /// Nobody said anything in time.
    Expired,
    /// The node ends; nobody can decide any more.
    Closed,
}

impl Outcome {
    /// As events name it; none is a request that was withdrawn.
    const fn name(outcome: Option<Self>) -> &'static str {
        match outcome {
            Some(Self::Approved(_)) => "approved",
            Some(Self::Denied) => "denied",
            Some(Self::Expired) => "expired",
            Some(Self::Closed) => "closed",
            None => "withdrawn",
        }
    }
}

impl Waiting {
    /// Its name, for people.
    #[must_use]
    pub fn id(&self) -> ApprovalId {
        self.id
    }

    /// How long it may still wait.
    #[must_use]
    pub fn left(&self) -> Duration {
        Duration::from_millis(self.about.exp.saturating_sub(unix_ms()))
    }

    /// Waits for the decision and uses it up. Dropping the future withdraws the request.
    pub async fn decided(mut self) -> Outcome {
        let outcome = self.outcome().await;
        self.outcome = Some(outcome);
        outcome
    }

    async fn outcome(&mut self) -> Outcome {
        match timeout(self.wait, &mut self.told).await {
            Ok(Ok(Decision::Approved(_))) => {
                let taken = self.desk.table().book.take(self.id, unix_ms());
                taken.map_or(Outcome::Expired, Outcome::Approved)
            }
            Ok(Ok(Decision::Denied)) => Outcome::Denied,
            // The sender lives as long as the entry and the desk is open.
            Ok(Err(_)) => Outcome::Closed,
            Err(_) => Outcome::Expired,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut table = self.desk.table();
        table.waiters.remove(&self.id);
        table.book.withdraw(self.id, unix_ms());
        self.desk.counted(&table);
        drop(table);
        let events = &self.desk.0.events;
        events.tell(Happening::ApprovalDecided, || {
            let mut fields = self.about.told(self.id);
            fields["decision"] = json!(Outcome::name(self.outcome));
            if let Some(Outcome::Approved(by)) = self.outcome {
                fields["by"] = json!(by);
            }
            fields
        });
    }
}

/// The wall clock: expiry follows it (protocol 8.4).
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
