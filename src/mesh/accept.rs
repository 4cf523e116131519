//! The listening side of links (protocol 3.1, 3.5): an own accept loop, because limits begin before
//! the first byte is read.

mod secure;
pub mod upgrade;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::{
    secure::secure,
    upgrade::{Facts, Refusal, Upgraded, upgrade},
};
use super::{
    carriage::{Carriage, Network, Posture},
    dial::backoff::Outlook,
    drops::Reason,
    handshake::respond,
    hub::{Hub, linger, refuse},
    limiter::{
        Limiter, Source,
        pending::{Pending, Ticket},
    },
    tls::ListenerTls,
    ws,
};
use crate::wire::{close::CloseCode, limits::UPGRADE_TIMEOUT};

/// Pause after an error of `accept`: it lasts until some file descriptor is free again.
const ACCEPT_ERROR_PAUSE: Duration = Duration::from_millis(200);
/// At most one log line in this time about nodes that speak the earlier protocol.
const OLD_PLUGIN_LOG_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Door {
    limiter: Limiter,
    pending: Pending<CancellationToken>,
    old_plugin_logged: Option<Instant>,
}

impl Door {
    /// A handshake failed, or had no room for a new name. True when it may be logged.
    fn failed(&mut self, source: Source, crowded: bool) -> bool {
        let now = Instant::now();
        if crowded {
            self.limiter.crowded(source, now)
        } else {
            self.limiter.failure(source, now)
        }
    }
}

/// The limits of all listeners of this node.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Door>);

impl Gate {
    fn door(&self) -> MutexGuard<'_, Door> {
        // Tables of counters: a panic leaves nothing that matters half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection that has not authenticated yet; leaves the table when dropped.
struct Place {
    gate: Arc<Gate>,
    ticket: Ticket,
}

impl Place {
    /// Enters a connection; those that must end for it are ended.
    fn take(hub: &Hub, gate: &Arc<Gate>, source: Option<Source>, end: CancellationToken) -> Self {
        let (ticket, evicted) = gate.door().pending.enter(source, end);
        for end in evicted {
            hub.drops.count(Reason::PendingOverflow);
            end.cancel();
        }
        Self {
            gate: gate.clone(),
            ticket,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.door().pending.leave(self.ticket);
    }
}

/// A connection as the system gave it.
struct Arrival {
    socket: TcpStream,
    address: IpAddr,
    /// For a listener that speaks TLS.
    acceptor: Option<TlsAcceptor>,
    since: Instant,
}

/// Accepts connections until the mesh stops.
pub(super) async fn run(
    hub: Arc<Hub>,
    gate: Arc<Gate>,
    listener: TcpListener,
    tls: Option<ListenerTls>,
) {
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            () = hub.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, address)) => {
                failing = false;
                let arrival = Arrival {
                    socket,
                    address: address.ip().to_canonical(),
                    acceptor: tls.as_ref().map(ListenerTls::acceptor),
                    since: Instant::now(),
                };
                enter(&hub, &gate, arrival);
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "cannot accept connections");
                }
                failing = true;
                sleep(ACCEPT_ERROR_PAUSE).await;
            }
        }
    }
}

/// Lets a connection in as far as its first request, or drops it on the spot.
fn enter(hub: &Arc<Hub>, gate: &Arc<Gate>, arrival: Arrival) {
    let address = arrival.address;
    let proxied = hub
        .settings
        .trusted_proxies
        .iter()
        .any(|range| range.contains(address));
    // Behind a proxy the source is known after the headers only.
    let source = (!proxied).then(|| Source::new(address));
    if let Some(source) = source
        && !gate.door().limiter.attempt(source, Instant::now())
    {
        hub.drops.count(Reason::AttemptLimited);
        return;
    }
    let end = CancellationToken::new();
    let place = Place::take(hub, gate, source, end.clone());
    let (hub, gate) = (hub.clone(), gate.clone());
    hub.tasks.clone().spawn(async move {
        let evicted = end.clone();
        let authenticated = CancellationToken::new();
        let greeting = greet(&hub, &gate, arrival, (place, end), &authenticated);
        tokio::pin!(greeting);
        tokio::select! {
            biased;
            () = &mut greeting => return,
            () = authenticated.cancelled() => {}
            () = evicted.cancelled() => return,
            () = hub.stop.cancelled() => return,
        }
        // Authenticated: no longer anybody's to evict.
        greeting.await;
    });
}

/// TLS, upgrade, handshake, link.
async fn greet(
    hub: &Arc<Hub>,
    gate: &Arc<Gate>,
    arrival: Arrival,
    (mut place, end): (Place, CancellationToken),
    authenticated: &CancellationToken,
) {
    let (address, over_tls) = (arrival.address, arrival.acceptor.is_some());
    let upgraded = match open(arrival, hub).await {
        Ok(upgraded) => upgraded,
        Err(refusal) => return refused(hub, gate, refusal, address),
    };
    let (ws, from, shown) = (upgraded.ws, upgraded.from, upgraded.rotations);
    let source = Source::new(from);
    let carriage = Carriage {
        tls: if over_tls || upgraded.proxy_tls {
            Posture::Tls
        } else {
            Posture::Insecure
        },
        dialed: false,
        network: Network::of(from),
        address: from.to_string(),
        proxy: from != address,
        advertised: false,
    };
    let (mut sink, mut stream) = ws.split();
    if from != address {
        if !gate.door().limiter.attempt(source, Instant::now()) {
            hub.drops.count(Reason::AttemptLimited);
            return refuse(&mut sink, &mut stream, CloseCode::RateLimited).await;
        }
        place = Place::take(hub, gate, Some(source), end);
    }
    let established = match respond(&mut sink, &mut stream, &hub.settings.us, shown).await {
        Ok(established) => established,
        Err(error) => {
            let crowded = error.outlook() == Outlook::Crowded;
            hub.drops.count(if crowded {
                Reason::AttemptLimited
            } else {
                Reason::AuthFailed
            });
            if gate.door().failed(source, crowded) {
                tracing::warn!(%from, %error, hint = error.hint(), "node refused at the door");
            }
            return linger(&mut stream).await;
        }
    };
    let key = established.peer.key;
    if !gate.door().limiter.success(source, &key, Instant::now()) {
        hub.drops.count(Reason::AttemptLimited);
        return refuse(&mut sink, &mut stream, CloseCode::RateLimited).await;
    }
    drop(place);
    authenticated.cancel();
    ws.grow().await;
    hub.admit(established, carriage, (sink, stream)).await;
}

/// From a raw socket to a WebSocket.
async fn open(arrival: Arrival, hub: &Hub) -> Result<Upgraded, Refusal> {
    let deadline = arrival.since + UPGRADE_TIMEOUT;
    ws::tune(&arrival.socket);
    let socket = secure(arrival.socket, arrival.acceptor, deadline).await?;
    let facts = Facts {
        trusted_proxies: &hub.settings.trusted_proxies,
        rotations: hub.shown.as_ref(),
    };
    upgrade(socket, arrival.address, facts, deadline).await
}

fn refused(hub: &Hub, gate: &Gate, refusal: Refusal, from: IpAddr) {
    let reason = match refusal {
        Refusal::Health => return,
        Refusal::Browser | Refusal::NotOurs | Refusal::NotTls => Reason::BadUpgrade,
        Refusal::Tls => {
            // A signature of ours was spent on it, as on a mesh handshake that fails.
            let source = Source::new(from);
            let proxied = hub
                .settings
                .trusted_proxies
                .iter()
                .any(|r| r.contains(from));
            if !proxied && gate.door().limiter.failure(source, Instant::now()) {
                tracing::warn!(%from, "TLS handshake failed at the door");
            }
            Reason::TlsFailed
        }
        Refusal::Timeout => Reason::UpgradeTimeout,
        Refusal::OldPlugin => {
            let mut door = gate.door();
            let now = Instant::now();
            let quiet = door
                .old_plugin_logged
                .is_none_or(|at| now.saturating_duration_since(at) >= OLD_PLUGIN_LOG_EVERY);
            if quiet {
                door.old_plugin_logged = Some(now);
                tracing::warn!(%from, "old plugin, upgrade it");
            }
            Reason::OldPlugin
        }
    };
    hub.drops.count(reason);
}
