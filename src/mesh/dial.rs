//! The dialing side of links (protocol 3.5): one task per configured peer, and a few for addresses that
//! nodes advertise ([`advertised`]), which dials whenever no
//! link to that node is up, whoever made it, or the one that is up is in doubt: a connection that was
//! cut is often found out long after the way has healed, and the new link replaces it (6.7).

pub(super) mod advertised;
pub(super) mod backoff;
pub mod bounds;
pub mod connect;
mod pin;
pub mod proxy;
pub mod tls;

use std::sync::Arc;

use tokio::time::sleep;
use url::Url;

use self::{
    backoff::{Backoff, Outlook},
    bounds::Bounds,
    connect::{ConnectError, Connected, Way, connect},
    tls::PeerTls,
};
use super::{
    handshake::{Expected, HandshakeError, initiate},
    hub::{Hub, linger},
    link::Link,
};
use crate::{config::PeerConfig, crypto::identity::KeyId, ids::NodeId};

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

/// In words for the operator, with the way out.
fn describe(error: &DialError, peer: &PeerConfig) -> String {
    match error {
        DialError::Connect(ConnectError::Refused) if !peer.port_given => {
            let port = peer.url.port_or_known_default().unwrap_or_default();
            format!("connection refused at port {port}, since `url` names none: `:19000?`")
        }
        DialError::Connect(error @ ConnectError::Http(400)) if peer.url.scheme() == "ws" => {
            format!("{error}; if it speaks TLS at this port, write `wss://`")
        }
        DialError::Connect(ConnectError::Tls(error)) => match tls_hint(error, peer) {
            Some(hint) => format!("TLS failed: {error}; {hint}"),
            None => format!("TLS failed: {error}"),
        },
        DialError::Connect(error) => error.to_string(),
        DialError::Handshake(error) => match error.hint() {
            Some(hint) => format!("{error}; {hint}"),
            None => error.to_string(),
        },
    }
}

/// The way out of a failed TLS handshake.
fn tls_hint(error: &std::io::Error, peer: &PeerConfig) -> Option<&'static str> {
    use rustls::{CertificateError as Bad, Error};
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match (error, &peer.tls) {
        (Error::InvalidMessage(_), _) => {
            "the server there does not speak TLS at this port: write `ws://`, or the port of its TLS"
        }
        (Error::InvalidCertificate(_), PeerTls::Pinned(_)) => {
            "its key is not the one in `tlsPin`; if it was replaced on purpose, pin the new one"
        }
        (Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature), PeerTls::Web) => {
            "no web authority signed it: name the authority in `tlsCa`, or its key in `tlsPin`"
        }
        (
            Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature),
            PeerTls::Authorities(_),
        ) => "no authority in `tlsCa` signed it",
        (
            Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }),
            _,
        ) => "it is a certificate for another name: use that name in `url`",
        (Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }), _) => {
            "renew it there; if it is good, look at the clock of this machine"
        }
        _ => return None,
    })
}

/// A place where a node may be.
#[derive(Debug)]
struct Spot {
    peer: PeerConfig,
    way: Way,
}

impl Spot {
    fn configured(hub: &Hub, peer: PeerConfig) -> Self {
        let way = Way {
            url: peer.url.clone(),
            tls: peer.tls.settings(&hub.settings.tls),
            pinned: matches!(peer.tls, PeerTls::Pinned(_)),
            proxy: peer.proxy.clone(),
            rotations: hub.shown.clone(),
            bounds: None,
        };
        Self { peer, way }
    }

    fn advertised(hub: &Hub, node: &NodeId, url: Url, bounds: Bounds) -> Self {
        let peer = PeerConfig {
            node_id: node.clone(),
            url,
            port_given: true,
            key: None,
            tls: PeerTls::Web,
            proxy: None,
        };
        let mut spot = Self::configured(hub, peer);
        spot.way.bounds = Some(bounds);
        spot
    }
}

/// Whom to keep a link to, and how.
#[derive(Debug)]
struct Target {
    node: NodeId,
    /// Its key, where nobody else will do.
    key: Option<KeyId>,
    /// Tried one after the other; not empty.
    spots: Vec<Spot>,
    /// After how many rounds in vain to give up; never without.
    tries: Option<u32>,
}

/// Keeps a link to `peer` until the mesh stops.
pub(super) async fn run(hub: Arc<Hub>, peer: PeerConfig) {
    let stop = hub.stop.clone();
    let target = Target {
        node: peer.node_id.clone(),
        key: None,
        spots: vec![Spot::configured(&hub, peer)],
        tries: None,
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = keep(hub, target) => {}
    }
}

/// Ends when it gives up, or with the mesh.
async fn keep(hub: Arc<Hub>, target: Target) {
    let node = &target.node;
    let mut backoff = Backoff::default();
    let mut links_changed = hub.links_changed.subscribe();
    let mut resumed = hub.resumed.subscribe();
    let mut trust = hub.settings.us.trust.subscribe();
    let mut secrets = hub.settings.us.keys.changes();
    let mut failures = 0;
    loop {
        // A link that we proved with an older secret is renewed while it works.
        secrets.mark_unchanged();
        while hub.linked(node) && !hub.is_outdated(node) {
            tokio::select! {
                changed = links_changed.changed() => if changed.is_err() { return },
                () = secrets.changed() => {}
            }
        }
        // Refused only if it is so everywhere.
        let mut outlook = Outlook::Refused;
        failures += 1;
        trust.mark_unchanged();
        for spot in &target.spots {
            match attempt(&hub, &target, spot).await {
                Ok(link) => {
                    (failures, outlook) = (0, Outlook::Open);
                    // Without one, another link to that node is up, or the node thinks so.
                    let Some(link) = link else { break };
                    links_changed.mark_unchanged();
                    let sound = || link.is_open() && !link.suspect();
                    while sound() && !hub.is_outdated(node) {
                        tokio::select! {
                            () = link.stopped() => break,
                            _ = links_changed.changed() => {}
                            () = secrets.changed() => {}
                        }
                    }
                    backoff.worked(link.age());
                    break;
                }
                Err(error) => {
                    match &error {
                        DialError::Handshake(error) if error.outlook() == Outlook::Refused => {}
                        DialError::Handshake(error) => outlook = error.outlook(),
                        DialError::Connect(_) => outlook = Outlook::Open,
                    }
                    spot.failed(&hub, &error);
                }
            }
        }
        if target.tries.is_some_and(|tries| failures >= tries) {
            return;
        }
        let refused = outlook == Outlook::Refused;
        resumed.mark_unchanged();
        tokio::select! {
            () = sleep(backoff.next(outlook)) => {}
            // After a pause the network is another one: what failed before says nothing.
            _ = resumed.changed() => backoff = Backoff::default(),
            // The operator may have accepted the key that was refused, or changed the secret.
            _ = trust.changed(), if refused => {}
            () = secrets.changed(), if refused => {}
        }
    }
}

impl Spot {
    /// Tells why the node was not met here.
    fn failed(&self, hub: &Hub, error: &DialError) {
        let (node, url) = (&self.peer.node_id, &self.peer.url);
        if self.way.bounds.is_some() {
            // Another node wrote the address, and may be forgotten by now: no problem of ours.
            tracing::debug!(peer = %node, %url, %error, "node not met where it says it is");
            return;
        }
        let problem = describe(error, &self.peer);
        if hub.problem(node, &problem) {
            tracing::warn!(peer = %node, %url, %problem, "node not reached");
        } else {
            tracing::debug!(peer = %node, %problem, "node not reached");
        }
    }
}

async fn attempt(
    hub: &Arc<Hub>,
    target: &Target,
    spot: &Spot,
) -> Result<Option<Arc<Link>>, DialError> {
    let Connected {
        ws,
        carriage,
        rotations,
    } = connect(&spot.way).await?;
    let (mut sink, mut stream) = ws.split();
    let us = &hub.settings.us;
    let expected = Expected {
        node: &target.node,
        key: target.key,
    };
    match initiate(&mut sink, &mut stream, us, expected, rotations).await {
        Ok(established) => Ok(hub.admit(established, carriage, (sink, stream)).await),
        Err(error) => {
            linger(&mut stream).await;
            Err(error.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_default_port_hints_at_ours() {
        let peer = |port_given, url: &str| PeerConfig {
            node_id: "office".parse().unwrap(),
            url: url.parse().unwrap(),
            port_given,
            key: None,
            tls: PeerTls::Web,
            proxy: None,
        };
        let text = |peer| describe(&ConnectError::Refused.into(), &peer);
        let hinted = text(peer(false, "ws://office.example/mesh/v1"));
        assert!(
            hinted.contains("port 80") && hinted.contains(":19000?"),
            "{hinted}"
        );
        let plain = text(peer(true, "ws://office.example:19000/mesh/v1"));
        assert_eq!(plain, "connection refused");
    }
}
