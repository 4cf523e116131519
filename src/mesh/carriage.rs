//! What a link is carried by: TLS or not, which kind of network, who dialed. For the operator's eyes:
//! records are sealed either way (protocol 4.1), and nothing is decided by it.

use std::{fmt, net::IpAddr};

use schemars::JsonSchema;
use serde::Serialize;

/// TLS around a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Posture {
    /// `ws://`: the mesh's own encryption alone.
    Insecure,
    /// `wss://`, a certificate of a web authority or of the operator's own.
    Tls,
    /// `wss://`, with the one key that the operator named.
    Pinned,
}

impl fmt::Display for Posture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Insecure => "insecure",
            Self::Tls => "tls",
            Self::Pinned => "pinned",
        })
    }
}

/// Which kind of network the other end's address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// This machine.
    Loopback,
    /// A home, an office, a VPN: RFC 1918, link-local, and unique local IPv6 addresses.
    Private,
    /// 100.64.0.0/10: a provider's NAT, or an overlay such as Tailscale.
    Shared,
    /// Everything else.
    Public,
}

impl Network {
    /// The kind of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            ip if ip.is_loopback() => Self::Loopback,
            IpAddr::V4(ip) if ip.is_private() || ip.is_link_local() => Self::Private,
            IpAddr::V4(ip) if ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64 => Self::Shared,
            IpAddr::V6(ip) if ip.is_unique_local() || ip.is_unicast_link_local() => Self::Private,
            _ => Self::Public,
        }
    }
}

/// How one link is carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Carriage {
    /// TLS as seen from here.
    pub tls: Posture,
    /// Whether this node dialed.
    pub dialed: bool,
    /// Kind of network of `address`.
    pub network: Network,
    /// The other end: an IP address when it dialed, host and port when we did.
    pub address: String,
    /// An HTTP proxy is in between: ours when we dialed, theirs (in `limits.trustedProxies`) when
    /// they did.
    pub proxy: bool,
    /// This node dialed an address that the other one advertises (`dialAdvertised`).
    pub advertised: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        for (address, network) in [
            ("127.0.0.1", Network::Loopback),
            ("::1", Network::Loopback),
            ("::ffff:127.0.0.1", Network::Loopback),
            ("192.168.1.2", Network::Private),
            ("169.254.1.2", Network::Private),
            ("fd00::1", Network::Private),
            ("fe80::1", Network::Private),
            ("100.64.0.1", Network::Shared),
            ("100.127.255.255", Network::Shared),
            ("100.128.0.1", Network::Public),
            ("203.0.113.7", Network::Public),
            ("2001:db8::1", Network::Public),
        ] {
            assert_eq!(Network::of(address.parse().unwrap()), network, "{address}");
        }
    }
}
