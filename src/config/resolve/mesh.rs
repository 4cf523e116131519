//! Listener, peers and trust.

use std::{collections::BTreeMap, net::IpAddr, path::Path, sync::Arc};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use rustls::RootCertStore;
use url::Url;

use super::{
    Check, entries,
    secret::{self, open_here},
};
use crate::{
    config::{
        DEFAULT_LISTEN_PORT, Listen, PeerConfig, TrustConfig, TrustedNode,
        problem::quote,
        raw::{self, RawConfig},
    },
    crypto::identity::PublicKey,
    ids::{NodeId, unhex},
    mesh::{
        dial::{
            bounds::{self, Bounds},
            proxy::HttpProxy,
            tls::PeerTls,
        },
        limiter::Cidr,
        tls::{TlsFiles, certificates},
    },
};

/// The path of the mesh listener, for peer URLs without one (protocol 3.1).
const MESH_PATH: &str = "/mesh/v1";

pub(super) fn listen(check: &mut Check<'_>, raw: &RawConfig) -> Option<Listen> {
    let host = raw.listen_host.as_deref().unwrap_or("0.0.0.0");
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let address = match bare {
        "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
        _ => bare.parse::<IpAddr>().ok(),
    };
    if address.is_none() {
        check.problem(
            "listenHost",
            format!("{} is not an IP address", quote(host)),
            "use `0.0.0.0` for every IPv4 address, `::` for IPv6 too, or one address of this machine",
        );
    }
    let port = raw.listen_port.unwrap_or(DEFAULT_LISTEN_PORT);
    let tls = tls(check, raw.tls.as_ref());
    if raw.listen != Some(true) {
        if raw.tls.is_some() {
            check
                .warnings
                .push("`tls` has no effect while `listen` is off".to_owned());
        }
        return None;
    }
    Some(Listen {
        host: address?,
        port,
        tls,
    })
}

pub(super) fn peers(
    check: &mut Check<'_>,
    list: Option<&[Option<raw::Peer>]>,
    ourselves: Option<&NodeId>,
) -> Vec<PeerConfig> {
    let mut peers = Vec::new();
    let mut seen = BTreeMap::new();
    for (i, entry) in entries(list.unwrap_or_default()) {
        let path = format!("peers[{i}]");
        let id_path = format!("{path}.nodeId");
        let node_id = entry
            .node_id
            .as_deref()
            .and_then(|text| check.node_id(&id_path, text));
        if let Some(node_id) = &node_id {
            if ourselves.is_some_and(|us| us.folded() == node_id.folded()) {
                check.problem(
                    &id_path,
                    format!("`{node_id}` is this node itself"),
                    "a node does not dial itself: remove the entry, or give this node another `nodeId`",
                );
            } else if let Some(first) = seen.insert(node_id.folded(), i) {
                check.problem(
                    &id_path,
                    format!("`{node_id}` stands in `peers[{first}]` already"),
                    "keep one entry for each node; names that differ only in case are the same",
                );
            }
        }
        let url = entry
            .url
            .as_deref()
            .and_then(|text| peer_url(check, &format!("{path}.url"), text));
        let key = entry
            .key
            .as_deref()
            .and_then(|text| key(check, &format!("{path}.key"), text));
        let secure = url.as_ref().map(|(url, _)| url.scheme() == "wss");
        let tls = peer_tls(check, &path, entry, secure);
        let proxy = match &entry.proxy {
            Some(input) => proxy(check, &format!("{path}.proxy"), input).map(Some),
            None => Some(None),
        };
        if let (Some(node_id), Some((url, port_given)), Some(tls), Some(proxy)) =
            (node_id, url, tls, proxy)
        {
            peers.push(PeerConfig {
                node_id,
                url,
                port_given,
                key,
                tls,
                proxy,
            });
        }
    }
    peers
}

/// A peer's URL with path filled in, and whether its port was written out.
fn peer_url(check: &mut Check<'_>, path: &str, text: &str) -> Option<(Url, bool)> {
    let bad = |check: &mut Check<'_>, message: String, hint: &str| {
        check.problem(path, message, hint);
        None
    };
    const FORM: &str = "write `wss://host/…` or `ws://host:19000`";
    if !text.contains("://") {
        return bad(check, format!("{} is not a URL", quote(text)), FORM);
    }
    let mut url = match Url::parse(text) {
        Ok(url) => url,
        // The text is not shown when it may hold a password.
        Err(error) if text.contains('@') => return bad(check, format!("not a URL: {error}"), FORM),
        Err(error) => {
            return bad(
                check,
                format!("{} is not a URL: {error}", quote(text)),
                FORM,
            );
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        return bad(
            check,
            "the URL holds a user name or password (not shown)".to_owned(),
            "remove it: nodes prove themselves by the cluster secret",
        );
    }
    if !matches!(url.scheme(), "ws" | "wss") {
        return bad(
            check,
            format!("{} is not a WebSocket URL", quote(text)),
            "use `ws://` or `wss://`",
        );
    }
    if url.host_str().is_none_or(str::is_empty) {
        return bad(check, format!("{} names no host", quote(text)), FORM);
    }
    if url.fragment().is_some() {
        return bad(
            check,
            format!("{} has a `#` part", quote(text)),
            "remove it",
        );
    }
    let port_given = port_written(text);
    if url.path() == "/" || url.path().is_empty() {
        url.set_path(MESH_PATH);
    }
    Some((url, port_given))
}

/// Whether a port stands in the text. The parsed URL cannot tell: it drops a port that is its
/// scheme's default.
fn port_written(text: &str) -> bool {
    let after = text.split_once("://").map_or("", |(_, rest)| rest);
    let authority = after.split(['/', '?', '#']).next().unwrap_or("");
    let host_end = authority.rfind(']').map_or(0, |i| i + 1);
    authority[host_end..]
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.is_empty())
}

/// A public key in its text form.
fn key(check: &mut Check<'_>, path: &str, text: &str) -> Option<PublicKey> {
    let key = text.parse();
    if key.is_err() {
        check.problem(
            path,
            format!("{} is not a public key", quote(text)),
            "copy the 43 characters that `clawmatrix identity` prints on that node",
        );
    }
    key.ok()
}

/// A SHA-256 as hexadecimal, or base64 of either alphabet, with or without `sha256/` in front.
fn pin(check: &mut Check<'_>, path: &str, text: &str) -> Option<[u8; 32]> {
    let digest = text
        .trim_start_matches("sha256/")
        .trim_start_matches("sha256//");
    let hex: String = digest.chars().filter(|c| *c != ':').collect();
    let found = unhex::<32>(&hex.to_ascii_lowercase()).ok().or_else(|| {
        [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE_NO_PAD]
            .iter()
            .find_map(|engine| engine.decode(digest).ok()?.try_into().ok())
    });
    if found.is_none() {
        check.problem(
            path,
            format!("{} is not a SHA-256", quote(text)),
            "`openssl x509 -in cert.pem -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256` prints it",
        );
    }
    found
}

pub(super) fn trust(check: &mut Check<'_>, raw: Option<&raw::Trust>) -> TrustConfig {
    let Some(raw) = raw else {
        return TrustConfig::default();
    };
    let mut nodes = Vec::new();
    let mut seen = BTreeMap::new();
    for (name, entry) in raw.nodes.iter().flatten() {
        let path = format!("trust.nodes.{name}");
        let Some(node) = check.node_id(&path, name) else {
            continue;
        };
        if let Some(first) = seen.insert(node.folded(), name) {
            check.problem(
                &path,
                format!("`{first}` is the same name"),
                "names that differ only in case are the same: keep one",
            );
        }
        let labels = check.labels(&format!("{path}.labels"), entry.labels.as_ref(), usize::MAX);
        let key = entry
            .key
            .as_deref()
            .and_then(|text| key(check, &format!("{path}.key"), text));
        nodes.push(TrustedNode { node, key, labels });
    }
    TrustConfig {
        explicit: raw.mode == Some(raw::TrustMode::Explicit),
        nodes,
    }
}

pub(super) fn trusted_proxies(
    check: &mut Check<'_>,
    list: Option<&[Option<String>]>,
) -> Vec<String> {
    let found = cidrs(check, "limits.trustedProxies", list);
    found.into_iter().map(|(text, _)| text).collect()
}

/// Ranges of addresses, each with its text.
fn cidrs(
    check: &mut Check<'_>,
    path: &str,
    list: Option<&[Option<String>]>,
) -> Vec<(String, Cidr)> {
    let mut ranges = Vec::new();
    for (i, text) in entries(list.unwrap_or_default()) {
        match text.parse() {
            Ok(range) => ranges.push((text.clone(), range)),
            Err(_) => check.problem(
                format!("{path}[{i}]"),
                format!("{} is not an address or CIDR range", quote(text)),
                "write `127.0.0.1`, `10.0.0.0/8` or `fd00::/8`",
            ),
        }
    }
    ranges
}

/// Addresses that others may dial: in the form in which they will be believed.
pub(super) fn advertise(check: &mut Check<'_>, raw: &RawConfig) -> Vec<String> {
    let mut found = Vec::new();
    for (i, text) in entries(raw.advertise.as_deref().unwrap_or_default()) {
        let path = format!("advertise[{i}]");
        let Some((url, _)) = peer_url(check, &path, text) else {
            continue;
        };
        if bounds::address(text).is_none() {
            check.problem(
                &path,
                format!("{} is not an address that other nodes dial", quote(text)),
                "write `ws://192.168.1.5:19000` or `wss://office.example`: the usual spelling, no `?`, no path but one that ends in `/mesh/v1`",
            );
        } else if !Bounds::anywhere().may_permit(&url) {
            check.problem(
                &path,
                format!("no other node ever dials {}", quote(text)),
                "write the address by which other machines reach this one",
            );
        } else {
            found.push(text.clone());
        }
    }
    if !found.is_empty() && raw.listen != Some(true) {
        check
            .warnings
            .push("`advertise` has no effect while `listen` is off".to_owned());
        found.clear();
    }
    found
}

/// Where advertised addresses are dialed; none = nowhere.
pub(super) fn dial_advertised(check: &mut Check<'_>, raw: &RawConfig) -> Option<Bounds> {
    let ranges = match raw.dial_advertised.as_ref()? {
        raw::DialAdvertised::Simple(on) => return on.then(Bounds::own_networks),
        raw::DialAdvertised::Within(within) => within.cidrs.as_deref()?,
    };
    if ranges.is_empty() {
        check.problem(
            "dialAdvertised.cidrs",
            "no range is named",
            "name some, such as `192.168.1.0/24`, or write `\"dialAdvertised\": false`",
        );
    }
    let ranges = cidrs(check, "dialAdvertised.cidrs", Some(ranges));
    Some(Bounds::new(
        ranges.into_iter().map(|(_, range)| range).collect(),
    ))
}

/// Certificate and key of the listener, read and checked so that all that is wrong is told at once.
fn tls(check: &mut Check<'_>, raw: Option<&raw::Tls>) -> Option<TlsFiles> {
    let raw = raw?;
    let files = TlsFiles {
        cert: check.path(raw.cert.as_deref()?),
        key: check.path(raw.key.as_deref()?),
    };
    if open_here(check, &files.key).is_ok_and(|open| open) {
        let shown = files.key.display();
        check.problem(
            "tls.key",
            format!("`{shown}` can be read or written by other accounts"),
            format!("`chmod 600 {shown}`"),
        );
    }
    match crate::mesh::tls::check(&files) {
        Ok(()) => Some(files),
        Err(error) => {
            let in_key = error.path() == files.key;
            let path = if in_key { "tls.key" } else { "tls.cert" };
            check.problem(path, error.to_string(), error.hint());
            None
        }
    }
}

/// How the certificate of a peer is judged.
fn peer_tls(
    check: &mut Check<'_>,
    path: &str,
    entry: &raw::Peer,
    secure: Option<bool>,
) -> Option<PeerTls> {
    for (key, given) in [
        ("tlsPin", entry.tls_pin.is_some()),
        ("tlsCa", entry.tls_ca.is_some()),
    ] {
        if given && secure == Some(false) {
            check.problem(
                format!("{path}.{key}"),
                "`url` is not `wss://`, so there is no certificate",
                format!("use `wss://`, or remove `{key}`"),
            );
            return None;
        }
    }
    match (entry.tls_pin.as_deref(), entry.tls_ca.as_deref()) {
        (None, None) => Some(PeerTls::Web),
        (Some(_), Some(_)) => {
            check.problem(
                format!("{path}.tlsCa"),
                "`tlsPin` is given too, which believes one key alone",
                "keep one of `tlsPin` and `tlsCa`",
            );
            None
        }
        (Some(text), None) => pin(check, &format!("{path}.tlsPin"), text).map(PeerTls::Pinned),
        (None, Some(file)) => {
            let file = check.path(file);
            authorities(check, &format!("{path}.tlsCa"), &file).map(PeerTls::Authorities)
        }
    }
}

fn authorities(check: &mut Check<'_>, path: &str, file: &Path) -> Option<Arc<RootCertStore>> {
    let found = match certificates(file) {
        Ok(found) => found,
        Err(error) => {
            check.problem(path, error.to_string(), error.hint());
            return None;
        }
    };
    let mut roots = RootCertStore::empty();
    for certificate in found {
        if roots.add(certificate).is_err() {
            check.problem(
                path,
                format!(
                    "`{}` holds something that is no certificate of an authority",
                    file.display()
                ),
                "it must hold X.509 certificates, version 3",
            );
            return None;
        }
    }
    Some(Arc::new(roots))
}

/// The proxy of a peer. Its text may hold a password and is never shown.
fn proxy(check: &mut Check<'_>, path: &str, input: &raw::SecretInput) -> Option<HttpProxy> {
    let text = secret::text(check, path, input)?;
    match HttpProxy::parse(text.reveal()) {
        Ok(proxy) => Some(proxy),
        Err(error) => {
            check.problem(
                path,
                format!("the value (not shown) is {error}"),
                "write `http://HOST:PORT`, or `http://USER:PASSWORD@HOST:PORT` with `%40` for an `@` in them",
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::port_written;

    #[test]
    fn port_is_told_from_the_text() {
        for (text, written) in [
            ("ws://a", false),
            ("ws://a:80", true),
            ("ws://a:/x", false),
            ("ws://[::1]", false),
            ("ws://[::1]:19000/x", true),
            ("wss://a/b:1", false),
        ] {
            assert_eq!(port_written(text), written, "{text}");
        }
    }
}
