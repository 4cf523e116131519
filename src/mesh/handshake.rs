//! Drives [`crypto::handshake`](crate::crypto::handshake) over a transport: who is at the other end,
//! and with which keys do we talk (protocol 3).
//!
//! Called by the dialer and by the accept loop for each new connection; on success the same
//! transport carries records from then on. On failure the connection is closed here, the other side
//! is told `auth_failed` and nothing else but when to come back, and the caller gets the precise reason
//! for the log.
//!
//! Curve arithmetic and new pins run on blocking threads, since one thread carries all links.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    crypto::{
        handshake::{Abort, Initiator, Local, Responder, Verified},
        identity::{Identity, KeyId, PublicKey},
        secret::Secret,
        stretch::{MeshKeys, SecretId},
        transcript::Carrier,
    },
    ids::{Boot, MeshName, NodeId, SessionId},
    trust::{Admission, Refusal, TrustStore, Via},
    wire::{
        close::CloseCode,
        limits::{HANDSHAKE_TIMEOUT, PARAMS_BYTES, SOFTWARE_CHARS},
    },
};

use super::{
    dial::backoff::Outlook,
    rotation,
    session::Peer,
    signed::{self, RecordKind, Signed},
    transport::{Message, MessageSink, MessageStream, TransportError},
};

#[cfg(test)]
mod tests;

/// How long the closing message may take: who does not read it has already left.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What each side tells the other once it has proved itself (protocol 3.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Params {
    /// Whether it relays for others.
    #[serde(default)]
    pub relay: bool,
    /// Its heartbeat in seconds, 1 to 60.
    #[serde(default = "default_heartbeat")]
    pub hb: u64,
    /// Its process start.
    pub boot: Boot,
    /// Its program and version, cleaned for display.
    #[serde(default)]
    pub sw: String,
}

fn default_heartbeat() -> u64 {
    crate::wire::limits::HEARTBEAT.as_secs()
}

impl Params {
    /// Reads what the other side sent; unknown fields are ignored.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut params: Self = serde_json::from_slice(bytes).ok()?;
        params.hb = params.hb.clamp(1, 60);
        params.sw = clean(&params.sw, SOFTWARE_CHARS);
        Some(params)
    }

    fn text(&self) -> Vec<u8> {
        let ours = Self {
            sw: clean(&self.sw, SOFTWARE_CHARS),
            ..self.clone()
        };
        let text = serde_json::to_vec(&ours).expect("params are plain JSON");
        debug_assert!(text.len() <= PARAMS_BYTES);
        text
    }
}

/// Keeps printable ASCII, which no terminal or log takes for anything else.
fn clean(text: &str, max: usize) -> String {
    let printable = |c: &char| c.is_ascii_graphic() || *c == ' ';
    text.chars().filter(printable).take(max).collect()
}

/// What this node brings into every handshake. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ourselves {
    /// Our name.
    pub node_id: NodeId,
    /// Our mesh.
    pub mesh: MeshName,
    /// Our key.
    pub identity: Arc<Identity>,
    /// Our secrets.
    pub keys: MeshKeys,
    /// Whom we believe.
    pub trust: TrustStore,
    /// What we tell the other side.
    pub params: Params,
}

/// Follows changes of key that the other side has shown at the door, if it turns out to be `node` with
/// a key that is not the one we hold. Called when the other side has proved itself as far as it can
/// at this point, so that a stranger can make us check nothing. Blocks on the disk.
fn learn(trust: &TrustStore, shown: &[Signed], node: &NodeId, key: &PublicKey) {
    if shown.is_empty() || trust.holds(node, key) {
        return;
    }
    for record in shown {
        let Ok(claim) = signed::claim(&record.header) else {
            continue;
        };
        // Only what changes the key that counts now is worth a look.
        let counts = claim.node == *node && trust.holds(node, &claim.key);
        if claim.kind != RecordKind::Rotation || !counts {
            continue;
        }
        match rotation::verify(&claim, &record.header, &record.body) {
            Ok(rotation) => {
                // A refusal has been told to the operator.
                let _ = trust.follow(&rotation);
            }
            Err(error) => trust.refuse_rotation(node, key, &error.to_string()),
        }
    }
    trust.save();
}

impl Ourselves {
    pub(super) fn local(&self, carrier: Carrier) -> Local {
        Local {
            node: self.node_id.clone(),
            mesh: self.mesh.clone(),
            identity: self.identity.clone(),
            params: self.params.text(),
            carrier,
        }
    }
}

/// Which half of the handshake we were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// We dialled.
    Dialer,
    /// We accepted.
    Listener,
}

/// A verified neighbour and the keys of the link.
#[derive(Debug)]
pub struct Established {
    /// Who it is, and what we think of it.
    pub peer: Peer,
    /// What it told us.
    pub params: Params,
    /// The session's name, the same at both ends.
    pub sid: SessionId,
    /// Which half we were.
    pub role: Role,
    /// Seals what we send.
    pub send_key: Secret<[u8; 32]>,
    /// Opens what we receive.
    pub recv_key: Secret<[u8; 32]>,
    /// The secret that matched. A link ends when its secret is taken out of the configuration
    /// (protocol 2).
    pub secret: SecretId,
}

/// How far the handshake had come when the other side ended it; decides what that may mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// We dialled and wait for the challenge.
    Hello,
    /// We accepted and wait for the hello.
    Accepted,
    /// We sent our challenge and wait for the proof.
    Challenged,
    /// We sent our proof.
    Proved,
}

/// Why there is no link. The text is for our own operator.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// A message was wrong.
    #[error(transparent)]
    Abort(#[from] Abort),
    /// The other side is who it says, and we do not want it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It is another one than was expected.
    #[error("a node with another key answers there: {0}")]
    OtherKey(KeyId),
    /// The other side ended it.
    #[error("{}", ended(*code, *stage))]
    Closed {
        /// Its close code.
        code: u16,
        /// What we were waiting for.
        stage: Stage,
    },
    /// Nothing came in time.
    #[error("no answer within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
    /// The connection broke.
    #[error("the connection broke during the handshake")]
    Transport(#[from] TransportError),
    /// A fault of our own.
    #[error("the handshake was interrupted")]
    Interrupted,
}

/// In words, what it means that the other side closed.
fn ended(code: u16, stage: Stage) -> String {
    let known = CloseCode::from_number(code);
    match (known, stage) {
        (Some(CloseCode::AuthFailed), Stage::Proved) => {
            "the other node refused us: secrets differ, or it does not believe our name and key"
                .into()
        }
        (Some(CloseCode::AuthFailed), Stage::Challenged) => {
            "the other node left at our challenge: it is of another mesh, expects another name or \
             key here, or refuses our key"
                .into()
        }
        (Some(CloseCode::SelfConnect), _) => "this node reached itself".into(),
        (Some(code), _) => format!("the other side closed with {code}"),
        (None, _) => format!("the other side closed with {code}"),
    }
}

impl HandshakeError {
    /// The way out, for the operator; none where there is nothing to do but wait.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Abort(abort) => return abort_hint(abort),
            Self::Refused(refusal) => return Some(refusal.hint()),
            Self::Closed { code, stage } => match (CloseCode::from_number(*code), stage) {
                (Some(CloseCode::AuthFailed), Stage::Proved) => {
                    "`secret` must match on both nodes; the log and `clawmatrix status` there name \
                     what was refused"
                }
                (Some(CloseCode::AuthFailed), Stage::Challenged) => {
                    "`mesh` must match on both nodes; the log there names what was refused"
                }
                (Some(CloseCode::SelfConnect), _) => return abort_hint(&Abort::OwnKey),
                _ => return None,
            },
            Self::OtherKey(_) => return None,
            Self::Timeout => "check that the address leads to a ClawMatrix node",
            Self::Transport(_) | Self::Interrupted => return None,
        };
        Some(hint.into())
    }

    /// When it is of use to try again (protocol 3.5).
    pub(super) fn outlook(&self) -> Outlook {
        match self {
            Self::Refused(Refusal::TooFast) => Outlook::Crowded,
            Self::Abort(_) | Self::Refused(_) | Self::OtherKey(_) => Outlook::Refused,
            Self::Closed { code, .. } => match CloseCode::from_number(*code) {
                Some(CloseCode::AuthFailed | CloseCode::SelfConnect) => Outlook::Refused,
                Some(CloseCode::RateLimited) => Outlook::Crowded,
                _ => Outlook::Open,
            },
            Self::Timeout | Self::Transport(_) | Self::Interrupted => Outlook::Open,
        }
    }

    /// What the other side is told by us as `role`.
    #[must_use]
    pub fn close_code(&self, role: Role) -> CloseCode {
        match self {
            // Only a node that has proved the secret hears that there is no room for its name at
            // present, and comes back when there is. A listener has proved nothing yet when it is
            // judged.
            Self::Refused(Refusal::TooFast) if role == Role::Listener => CloseCode::RateLimited,
            Self::Abort(Abort::OwnKey) => CloseCode::SelfConnect,
            // Says nothing about any secret, and lets a slow dialer try again soon.
            Self::Timeout => CloseCode::Timeout,
            Self::Abort(_)
            | Self::Refused(_)
            | Self::OtherKey(_)
            | Self::Closed { .. }
            | Self::Transport(_)
            | Self::Interrupted => CloseCode::AuthFailed,
        }
    }
}

fn abort_hint(abort: &Abort) -> Option<String> {
    let hint = match abort {
        Abort::Proof => "`secret` must match on both nodes, or be among `acceptSecrets` here",
        Abort::OtherMesh => "`mesh` must match on both nodes",
        Abort::OtherNode { expected, found } => {
            return Some(format!(
                "the url of peer `{expected}` leads to `{found}`: correct `peers[].nodeId` or \
                 `peers[].url`"
            ));
        }
        Abort::OwnKey => {
            "remove this node from its own `peers`; if the state folder was copied from another \
             machine, delete `identity.key` on one of them"
        }
        Abort::OwnName(_) => "give one of the two nodes another `nodeId`",
        Abort::Version => "upgrade the older node",
        Abort::OldPlugin => "old plugin, upgrade it",
        Abort::Malformed(_) | Abort::Exchange | Abort::Altered(_) | Abort::Signature => {
            return None;
        }
    };
    Some(hint.into())
}

/// Whom a dialer expects.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Its name.
    pub node: &'a NodeId,
    /// Its key, where nobody else will do even if the name is free.
    pub key: Option<KeyId>,
}

impl<'a> From<&'a NodeId> for Expected<'a> {
    fn from(node: &'a NodeId) -> Self {
        Self { node, key: None }
    }
}

/// Runs the dialer's half with the node that is `expected` and has shown these changes of its key.
///
/// # Errors
/// [`HandshakeError`]; the connection is closed then.
pub async fn initiate<'a, S: MessageSink, R: MessageStream>(
    sink: &mut S,
    stream: &mut R,
    us: &Ourselves,
    expected: impl Into<Expected<'a>>,
    shown: Vec<Signed>,
) -> Result<Established, HandshakeError> {
    let dialed = dial(sink, stream, us, expected.into(), shown);
    let outcome = timeout(HANDSHAKE_TIMEOUT, dialed).await;
    let outcome = outcome.unwrap_or(Err(HandshakeError::Timeout));
    finish(sink, Role::Dialer, outcome).await
}

/// Runs the listener's half with a node that has shown these changes of its key.
///
/// # Errors
/// [`HandshakeError`]; the connection is closed then.
pub async fn respond<S: MessageSink, R: MessageStream>(
    sink: &mut S,
    stream: &mut R,
    us: &Ourselves,
    shown: Vec<Signed>,
) -> Result<Established, HandshakeError> {
    let outcome = timeout(HANDSHAKE_TIMEOUT, accept(sink, stream, us, shown)).await;
    let outcome = outcome.unwrap_or(Err(HandshakeError::Timeout));
    finish(sink, Role::Listener, outcome).await
}

async fn dial<S: MessageSink, R: MessageStream>(
    sink: &mut S,
    stream: &mut R,
    us: &Ourselves,
    Expected { node, key: wanted }: Expected<'_>,
    shown: Vec<Signed>,
) -> Result<Established, HandshakeError> {
    let (local, expected) = (us.local(Carrier::Link), node.clone());
    let (initiator, m1) = blocking(move || Ok(Initiator::hello(local, expected))).await?;
    send(sink, m1).await?;
    let m2 = receive(stream, Stage::Hello).await?;
    let key = us.keys.own().await;
    let secret = key.id;
    let trust = us.trust.clone();
    let (proving, m3) = blocking(move || {
        let introduced = initiator.open(&m2)?;
        learn(&trust, &shown, introduced.node(), introduced.key());
        trust.check(introduced.node(), introduced.key())?;
        let found = introduced.key().id();
        if wanted.is_some_and(|wanted| wanted != found) {
            return Err(HandshakeError::OtherKey(found));
        }
        Ok(introduced.prove(&key.key))
    })
    .await?;
    send(sink, m3).await?;
    let m4 = receive(stream, Stage::Proved).await?;
    let trust = us.trust.clone();
    let (verified, params, admission) = blocking(move || {
        let verified = proving.confirm(&m4)?;
        let params = Params::read(&verified.params).ok_or(Abort::Malformed("params"))?;
        let admission = trust.pin(&verified.node, &verified.key, Via::Link)?;
        Ok((verified, params, admission))
    })
    .await?;
    Ok(established(
        verified,
        params,
        admission,
        secret,
        Role::Dialer,
    ))
}

async fn accept<S: MessageSink, R: MessageStream>(
    sink: &mut S,
    stream: &mut R,
    us: &Ourselves,
    shown: Vec<Signed>,
) -> Result<Established, HandshakeError> {
    let m1 = receive(stream, Stage::Accepted).await?;
    let local = us.local(Carrier::Link);
    let (responder, m2) = blocking(move || Ok(Responder::answer(local, &m1)?)).await?;
    send(sink, m2).await?;
    let m3 = receive(stream, Stage::Challenged).await?;
    let keys = us.keys.accepted(std::time::SystemTime::now()).await;
    let trust = us.trust.clone();
    let (verified, m4, params, admission, secret) = blocking(move || {
        let proved = responder.open(&m3, &keys)?;
        let secret = proved.secret();
        let params = Params::read(proved.params()).ok_or(Abort::Malformed("params"))?;
        learn(&trust, &shown, proved.node(), proved.key());
        trust.check(proved.node(), proved.key())?;
        let admission = trust.pin(proved.node(), proved.key(), Via::Link)?;
        let (verified, m4) = proved.accept();
        Ok((verified, m4, params, admission, secret))
    })
    .await?;
    send(sink, m4).await?;
    Ok(established(
        verified,
        params,
        admission,
        secret,
        Role::Listener,
    ))
}

fn established(
    verified: Verified,
    params: Params,
    admission: Admission,
    secret: SecretId,
    role: Role,
) -> Established {
    Established {
        peer: Peer {
            node: verified.node,
            key: verified.key,
            boot: params.boot,
            level: admission.level,
            labels: admission.labels,
        },
        params,
        sid: verified.sid,
        role,
        send_key: verified.send_key,
        recv_key: verified.recv_key,
        secret,
    }
}

/// Closes the connection of a failed handshake.
async fn finish<S: MessageSink>(
    sink: &mut S,
    role: Role,
    outcome: Result<Established, HandshakeError>,
) -> Result<Established, HandshakeError> {
    if let Err(error) = &outcome {
        let code = error.close_code(role);
        // Whether the other side still hears it does not matter.
        let _ = timeout(CLOSE_TIMEOUT, sink.close(code as u16, code.text())).await;
    }
    outcome
}

/// Steps computed at once in this process. A step takes a fraction of a millisecond, so hundreds of
/// strangers who call at the same time wait a little for one another instead of making hundreds of
/// threads. The queue is fair, and bounded by the limit on pending handshakes.
static STEPS: Semaphore = Semaphore::const_new(4);

/// Runs one step of the handshake where it may take its time.
pub(super) async fn blocking<T: Send + 'static>(
    step: impl FnOnce() -> Result<T, HandshakeError> + Send + 'static,
) -> Result<T, HandshakeError> {
    let permit = STEPS.acquire().await;
    let joined = tokio::task::spawn_blocking(move || {
        // Held to the end of the step, even when nobody waits for it any more.
        let _permit = permit;
        step()
    });
    // Only a panic or the end of the runtime makes the join fail.
    joined.await.unwrap_or(Err(HandshakeError::Interrupted))
}

async fn send<S: MessageSink>(sink: &mut S, text: String) -> Result<(), HandshakeError> {
    sink.feed(Message::Text(text)).await?;
    sink.flush().await?;
    Ok(())
}

/// The next message, which must be a text. Anything else ends the handshake, and nothing of it is
/// kept (T22).
async fn receive<R: MessageStream>(stream: &mut R, stage: Stage) -> Result<String, HandshakeError> {
    match stream.next().await? {
        Some(Message::Text(text)) => Ok(text),
        Some(Message::Binary(_)) => Err(Abort::Malformed("message: data before the end").into()),
        Some(Message::Close { code, .. }) => Err(HandshakeError::Closed { code, stage }),
        None => Err(TransportError::Closed.into()),
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dialer => "dialer",
            Self::Listener => "listener",
        })
    }
}
