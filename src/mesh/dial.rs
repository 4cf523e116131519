//! The dialing side of links (protocol 3.5): one task per configured peer, which dials whenever no
//! link to that node is up, whoever made it, or the one that is up is in doubt: a connection that was
//! cut is often found out long after the way has healed, and the new link replaces it (6.7).

pub(super) mod backoff;
pub mod connect;
mod pin;
pub mod proxy;
pub mod tls;

use std::sync::Arc;

use tokio::time::sleep;

use self::{
    backoff::{Backoff, Outlook},
    connect::{ConnectError, Connected, Way, connect},
    tls::PeerTls,
};
use super::{
    handshake::{HandshakeError, initiate},
    hub::{Hub, linger},
    link::Link,
};
use crate::config::PeerConfig;

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

/// Keeps a link to `peer` until the mesh stops.
pub(super) async fn run(hub: Arc<Hub>, peer: PeerConfig) {
    let stop = hub.stop.clone();
    tokio::select! {
        () = stop.cancelled() => {}
        () = keep(hub, peer) => {}
    }
}

async fn keep(hub: Arc<Hub>, peer: PeerConfig) {
    let way = Way {
        url: peer.url.clone(),
        tls: peer.tls.settings(&hub.settings.tls),
        pinned: matches!(peer.tls, PeerTls::Pinned(_)),
        proxy: peer.proxy.clone(),
        rotations: hub.shown.clone(),
    };
    let mut backoff = Backoff::default();
    let mut links_changed = hub.links_changed.subscribe();
    let mut resumed = hub.resumed.subscribe();
    let mut trust = hub.settings.us.trust.subscribe();
    let mut secrets = hub.settings.us.keys.changes();
    loop {
        // A link that we proved with an older secret is renewed while it works.
        secrets.mark_unchanged();
        while hub.linked(&peer.node_id) && !hub.is_outdated(&peer.node_id) {
            tokio::select! {
                changed = links_changed.changed() => if changed.is_err() { return },
                () = secrets.changed() => {}
            }
        }
        let mut outlook = Outlook::Open;
        trust.mark_unchanged();
        match attempt(&hub, &peer, &way).await {
            Ok(Some(link)) => {
                links_changed.mark_unchanged();
                let sound = || link.is_open() && !link.suspect();
                while sound() && !hub.is_outdated(&peer.node_id) {
                    tokio::select! {
                        () = link.stopped() => break,
                        _ = links_changed.changed() => {}
                        () = secrets.changed() => {}
                    }
                }
                backoff.worked(link.age());
            }
            // Another link to that node is up, or the node thinks so.
            Ok(None) => {}
            Err(error) => {
                if let DialError::Handshake(error) = &error {
                    outlook = error.outlook();
                }
                let problem = describe(&error, &peer);
                if hub.problem(&peer.node_id, &problem) {
                    tracing::warn!(peer = %peer.node_id, url = %peer.url, %problem,
                        "node not reached");
                } else {
                    tracing::debug!(peer = %peer.node_id, %problem, "node not reached");
                }
            }
        }
        resumed.mark_unchanged();
        let refused = outlook == Outlook::Refused;
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

async fn attempt(
    hub: &Arc<Hub>,
    peer: &PeerConfig,
    way: &Way,
) -> Result<Option<Arc<Link>>, DialError> {
    let Connected {
        ws,
        carriage,
        rotations,
    } = connect(way).await?;
    let (mut sink, mut stream) = ws.split();
    let us = &hub.settings.us;
    match initiate(&mut sink, &mut stream, us, &peer.node_id, rotations).await {
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
