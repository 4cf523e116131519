//! Tokens of the local API (protocol 9): the launch token of this start, OpenClaw's own, and named
//! ones. Only digests are kept; the launch token's file goes when the node does.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::{
    crypto::secret::Secret,
    ids::{hex, random_bytes, unhex},
    state::{StateDir, StateError, open_to_others},
    wire::limits::LOCAL_TOKENS,
};

/// Where the launch token stands in the state folder.
pub const LAUNCH_TOKEN: &str = "run/token";
/// Where OpenClaw's token stands.
pub const OPENCLAW_TOKEN: &str = "openclaw.token";
/// Where the digests of named tokens stand.
pub const TOKENS: &str = "tokens.json";

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Ask models.
    Models,
    /// Send messages and hand off tasks.
    Send,
    /// Run tools.
    Tools,
    /// See the mesh.
    Read,
    /// Change trust and tokens.
    Admin,
    /// Approve what waits for a person. Given by configuration only.
    Approve,
}

impl Scope {
    /// Every scope but `approve`: gateways and their agents can read the launch token.
    const LAUNCH: [Scope; 5] = [
        Scope::Models,
        Scope::Send,
        Scope::Tools,
        Scope::Read,
        Scope::Admin,
    ];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Scope::Models => "models",
            Scope::Send => "send",
            Scope::Tools => "tools",
            Scope::Read => "read",
            Scope::Admin => "admin",
            Scope::Approve => "approve",
        }
    }
}

impl FromStr for Scope {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        Scope::LAUNCH
            .into_iter()
            .chain([Scope::Approve])
            .find(|scope| scope.as_str() == text)
            .ok_or_else(|| TokenError::Scope(text.chars().take(32).collect()))
    }
}

/// Why a token cannot be made, found or kept.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The state folder failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// `tokens.json` or `openclaw.token` is not what we wrote.
    #[error("`{0}` in the state folder is damaged; remove it to start afresh")]
    Damaged(&'static str),
    /// A token of that name exists, or the name is ours.
    #[error("a token called `{0}` exists; revoke it first, or choose another name")]
    Exists(String),
    /// No such token.
    #[error("no token is called `{0}`")]
    Unknown(String),
    /// Not a name.
    #[error("a token's name is 1 to 64 of `A-Z a-z 0-9 . _ -`, first and last a letter or digit")]
    Name,
    /// Not a scope.
    #[error("`{0}` is not a scope; scopes are models, send, tools, read, admin")]
    Scope(String),
    /// `approve` was asked for.
    #[error("scope `approve` is given by configuration only")]
    Approve,
    /// Too many.
    #[error("there are {LOCAL_TOKENS} tokens; revoke one first")]
    TooMany,
}

/// Which kind of token was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Of this start.
    Launch,
    /// OpenClaw's.
    OpenClaw,
    /// Made by `token create`.
    Named,
    /// Of somebody who approves, as the configuration says.
    Operator,
}

#[derive(Debug, Clone)]
struct Entry {
    kind: TokenKind,
    name: String,
    digest: [u8; 32],
    scopes: Vec<Scope>,
    created: u64,
    in_flight: Arc<AtomicUsize>,
}

/// A named token as it is kept and listed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    info: TokenInfo,
    sha256: String,
}

#[derive(Serialize, Deserialize, Default)]
struct File {
    tokens: Vec<Kept>,
}

/// What a request may do.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Which kind of token.
    pub kind: TokenKind,
    /// Digest of the token: tells one client's requests from another's.
    pub owner: [u8; 32],
    scopes: Vec<Scope>,
    in_flight: Arc<AtomicUsize>,
}

impl Grant {
    /// Whether the token has `scope`.
    #[must_use]
    pub fn allows(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    /// Requests now under way with this token.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Takes one of the token's `limit` places; none when all are taken.
    #[must_use]
    pub fn enter(&self, limit: usize) -> Option<InFlight> {
        self.in_flight
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < limit).then_some(n + 1)
            })
            .ok()
            .map(|_| InFlight(self.in_flight.clone()))
    }
}

/// A request under way with one token.
#[derive(Debug)]
pub struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Every token this node accepts; cheap to clone.
#[derive(Debug, Clone)]
pub struct TokenStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: StateDir,
    entries: RwLock<Vec<Entry>>,
    /// Held while `tokens.json` is rewritten, so that two changes do not lose one.
    writing: Mutex<()>,
}

/// Removes the launch token's file when the node ends.
#[derive(Debug)]
pub struct LaunchToken(StateDir);

impl Drop for LaunchToken {
    fn drop(&mut self) {
        self.0.remove(LAUNCH_TOKEN);
    }
}

impl TokenStore {
    /// The tokens of a node that starts: a new launch token, OpenClaw's (made when missing), the named
    /// ones.
    ///
    /// # Errors
    /// [`TokenError::State`], [`TokenError::Damaged`].
    pub fn start(dir: &StateDir) -> Result<(Self, LaunchToken), TokenError> {
        let store = Self::open(dir)?;
        let launch = fresh();
        dir.write(LAUNCH_TOKEN, launch.reveal().as_bytes())?;
        let guard = LaunchToken(dir.clone());
        let openclaw = openclaw_token(dir)?;
        let mut entries = store.write_entries();
        entries.push(entry(
            TokenKind::Launch,
            "launch",
            &launch,
            Scope::LAUNCH.to_vec(),
        ));
        entries.push(entry(
            TokenKind::OpenClaw,
            "openclaw",
            &openclaw,
            vec![Scope::Models],
        ));
        drop(entries);
        Ok((store, guard))
    }

    /// Lets the tokens with these digests, and no others, see what waits for a person; the
    /// configuration names them.
    pub fn set_operators(&self, digests: impl IntoIterator<Item = [u8; 32]>) {
        let created = now();
        let new = digests.into_iter().map(|digest| Entry {
            kind: TokenKind::Operator,
            name: "operator".to_owned(),
            digest,
            scopes: vec![Scope::Approve],
            created,
            in_flight: Arc::default(),
        });
        let mut entries = self.write_entries();
        entries.retain(|entry| entry.kind != TokenKind::Operator);
        entries.extend(new);
    }

    /// The named tokens alone, for a command that works beside no running node.
    ///
    /// # Errors
    /// [`TokenError::State`], [`TokenError::Damaged`].
    pub fn open(dir: &StateDir) -> Result<Self, TokenError> {
        let file: File = match dir.read(TOKENS)? {
            None => File::default(),
            Some(bytes) => {
                serde_json::from_slice(&bytes).map_err(|_| TokenError::Damaged(TOKENS))?
            }
        };
        let named = file.tokens.into_iter().map(|kept| {
            Ok(Entry {
                kind: TokenKind::Named,
                digest: unhex(&kept.sha256).map_err(|_| TokenError::Damaged(TOKENS))?,
                name: kept.info.name,
                scopes: granted(kept.info.scopes),
                created: kept.info.created,
                in_flight: Arc::default(),
            })
        });
        Ok(Self(Arc::new(Inner {
            dir: dir.clone(),
            entries: RwLock::new(named.collect::<Result<_, TokenError>>()?),
            writing: Mutex::default(),
        })))
    }

    /// Whether `shown` is one of ours. Looks at every digest whatever it finds, so that the time tells
    /// nothing.
    #[must_use]
    pub fn check(&self, shown: &str) -> Option<Grant> {
        let digest: [u8; 32] = Sha256::digest(shown.as_bytes()).into();
        let entries = self.read_entries();
        let mut found = u32::MAX;
        for (index, entry) in (0_u32..).zip(entries.iter()) {
            let same: Choice = entry.digest.ct_eq(&digest);
            found.conditional_assign(&index, same);
        }
        let entry = entries.get(usize::try_from(found).ok()?)?;
        Some(Grant {
            kind: entry.kind,
            owner: entry.digest,
            scopes: entry.scopes.clone(),
            in_flight: entry.in_flight.clone(),
        })
    }

    /// Makes a named token; the text is shown once and never kept. Writes a file: not for the runtime's
    /// thread.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn create(&self, name: &str, scopes: &[Scope]) -> Result<Secret<String>, TokenError> {
        name.parse::<crate::ids::NodeId>()
            .map_err(|_| TokenError::Name)?;
        if scopes.contains(&Scope::Approve) {
            return Err(TokenError::Approve);
        }
        let _writing = self
            .0
            .writing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut next = self.named();
        if next.iter().any(|e| e.name == name) || matches!(name, "launch" | "openclaw") {
            return Err(TokenError::Exists(name.to_owned()));
        }
        if next.len() >= LOCAL_TOKENS {
            return Err(TokenError::TooMany);
        }
        let token = fresh();
        let scopes = if scopes.is_empty() {
            vec![Scope::Models]
        } else {
            scopes.to_vec()
        };
        let new = entry(TokenKind::Named, name, &token, scopes);
        next.push(new.clone());
        self.save(&next)?;
        self.write_entries().push(new);
        Ok(token)
    }

    /// The named tokens.
    #[must_use]
    pub fn list(&self) -> Vec<TokenInfo> {
        self.named().iter().map(info).collect()
    }

    /// Forgets a named token. Requests under way finish. Writes a file, as above.
    ///
    /// # Errors
    /// [`TokenError::Unknown`], [`TokenError::State`].
    pub fn revoke(&self, name: &str) -> Result<(), TokenError> {
        let _writing = self
            .0
            .writing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut next = self.named();
        let before = next.len();
        next.retain(|entry| entry.name != name);
        if next.len() == before {
            return Err(TokenError::Unknown(name.chars().take(64).collect()));
        }
        self.save(&next)?;
        let ours = |entry: &Entry| entry.kind == TokenKind::Named && entry.name == name;
        self.write_entries().retain(|entry| !ours(entry));
        Ok(())
    }

    fn named(&self) -> Vec<Entry> {
        let mut entries = self.read_entries().clone();
        entries.retain(|entry| entry.kind == TokenKind::Named);
        entries
    }

    fn save(&self, entries: &[Entry]) -> Result<(), TokenError> {
        let file = File {
            tokens: entries
                .iter()
                .map(|entry| Kept {
                    info: info(entry),
                    sha256: hex(&entry.digest),
                })
                .collect(),
        };
        let text = serde_json::to_vec_pretty(&file).map_err(|_| TokenError::Damaged(TOKENS))?;
        Ok(self.0.dir.write(TOKENS, &text)?)
    }

    fn read_entries(&self) -> std::sync::RwLockReadGuard<'_, Vec<Entry>> {
        self.0
            .entries
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write_entries(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Entry>> {
        self.0
            .entries
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn info(entry: &Entry) -> TokenInfo {
    TokenInfo {
        name: entry.name.clone(),
        scopes: entry.scopes.clone(),
        created: entry.created,
    }
}

fn entry(kind: TokenKind, name: &str, token: &Secret<String>, scopes: Vec<Scope>) -> Entry {
    Entry {
        kind,
        name: name.to_owned(),
        digest: Sha256::digest(token.reveal().as_bytes()).into(),
        scopes,
        created: now(),
        in_flight: Arc::default(),
    }
}

/// Scopes as the file has them but for `approve`, which the configuration alone gives: whoever can
/// write into the state folder gets nothing by it.
fn granted(mut scopes: Vec<Scope>) -> Vec<Scope> {
    scopes.retain(|scope| *scope != Scope::Approve);
    scopes
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A new token: 32 random bytes. The prefix lets secret scanners know it.
fn fresh() -> Secret<String> {
    Secret::new(format!(
        "cmx_{}",
        URL_SAFE_NO_PAD.encode(random_bytes::<32>())
    ))
}

/// OpenClaw's token, from its file. The shim writes it into the provider entries it makes.
fn openclaw_token(dir: &StateDir) -> Result<Secret<String>, TokenError> {
    if let Some(bytes) = dir.read(OPENCLAW_TOKEN)? {
        let text = String::from_utf8(bytes).map_err(|_| TokenError::Damaged(OPENCLAW_TOKEN))?;
        let text = Secret::new(text.trim().to_owned());
        if text.reveal().len() < 32 || !text.reveal().bytes().all(|b| b.is_ascii_graphic()) {
            return Err(TokenError::Damaged(OPENCLAW_TOKEN));
        }
        if open_to_others(&dir.path(OPENCLAW_TOKEN)).unwrap_or(false) {
            tracing::warn!("openclaw.token was readable by others; remove it to get a new one");
            // Written anew, the file gets its mode back.
            dir.write(OPENCLAW_TOKEN, text.reveal().as_bytes())?;
        }
        return Ok(text);
    }
    let token = fresh();
    dir.write(OPENCLAW_TOKEN, token.reveal().as_bytes())?;
    Ok(token)
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests;
