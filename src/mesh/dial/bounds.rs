//! Which advertised addresses may be dialed (protocol 6.8).
//!
//! Another node writes them, so they may lead anywhere: to services of this machine, to a cloud's
//! metadata, to the printer. They count only in their usual spelling and only within ranges of the
//! operator's choice, and what is never a node of the mesh is left alone whatever the ranges say. The IP
//! address that a name stands for is judged, not the name, and what was judged is dialed.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use url::{Host, Url};

use crate::{
    mesh::{accept::upgrade::LINK_PATH as MESH_PATH, limiter::Cidr},
    wire::limits::DESCRIPTOR_STRING_CHARS,
};

/// Ranges that mean one's own networks: private ones, and those of overlays such as Tailscale.
pub const OWN_NETWORKS: [&str; 5] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "fc00::/7",
];

/// Where clouds answer their machines, beside the link-local address that all of them use.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// The ranges within which advertised addresses are dialed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bounds(Arc<[Cidr]>);

impl Bounds {
    /// These ranges.
    #[must_use]
    pub fn new(ranges: Vec<Cidr>) -> Self {
        Self(ranges.into())
    }

    /// [`OWN_NETWORKS`].
    #[must_use]
    pub fn own_networks() -> Self {
        let ranges = OWN_NETWORKS.iter().filter_map(|text| text.parse().ok());
        Self(ranges.collect())
    }

    /// Whatever may be a node.
    #[must_use]
    pub fn anywhere() -> Self {
        let ranges = ["0.0.0.0/0", "::/0"]
            .iter()
            .filter_map(|text| text.parse().ok());
        Self(ranges.collect())
    }

    /// Whether this address may be dialed.
    #[must_use]
    pub fn permit(&self, address: IpAddr) -> bool {
        may_be_a_node(address) && self.0.iter().any(|range| range.contains(address))
    }

    /// Whether what an address names may turn out to be permitted; a name has to be looked up first.
    #[must_use]
    pub fn may_permit(&self, url: &Url) -> bool {
        match url.host() {
            Some(Host::Ipv4(ip)) => self.permit(ip.into()),
            Some(Host::Ipv6(ip)) => self.permit(ip.into()),
            Some(Host::Domain(_)) => true,
            None => false,
        }
    }
}

/// Whether another machine may be meant at all: no address of this machine, of its own wire, of many
/// machines, of metadata, and no IPv4 address in the clothes of an IPv6 one.
fn may_be_a_node(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            let [first, second, third, _] = ip.octets();
            let odd = first == 0
                || first >= 224
                || ip.is_loopback()
                || ip.is_link_local()
                || (first, second, third) == (192, 0, 0);
            !odd && !METADATA_V4.contains(&ip)
        }
        IpAddr::V6(ip) => {
            let [first, second, ..] = ip.segments();
            // Teredo and 6to4 hold an IPv4 address each; what is neither global nor of a private
            // network is loopback, link-local, multicast, mapped, translated, or nothing.
            let disguised = first == 0x2002 || (first, second) == (0x2001, 0);
            let usual = first >> 13 == 1 || ip.is_unique_local();
            usual && !disguised && !METADATA_V6.contains(&ip)
        }
    }
}

/// Reads an advertised address; none unless it is one of a mesh listener in its usual spelling. The path
/// ends as that of every listener does, so that nothing else is ever asked of what answers there.
#[must_use]
pub fn address(text: &str) -> Option<Url> {
    if text.len() > DESCRIPTOR_STRING_CHARS {
        return None;
    }
    let mut url = Url::parse(text).ok()?;
    let host = url.host_str()?;
    let (scheme, rest) = text.split_once("://")?;
    let authority = rest.split('/').next()?;
    // `0x7f.1`, `2130706433` and their kind are read as 127.0.0.1, and written so.
    let port = authority
        .get(..host.len())
        .filter(|given| given.eq_ignore_ascii_case(host))?;
    let port = authority.strip_prefix(port)?;
    let written = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    let plain = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
        && url.port() != Some(0);
    if !(written && plain && matches!(scheme, "ws" | "wss")) {
        return None;
    }
    if matches!(url.path(), "" | "/") {
        url.set_path(MESH_PATH);
    }
    url.path().ends_with(MESH_PATH).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permit(ranges: &[&str], address: &str) -> bool {
        let ranges = ranges.iter().map(|text| text.parse().unwrap());
        Bounds::new(ranges.collect()).permit(address.parse().unwrap())
    }

    /// T117, the addresses: no range however wide lets them through.
    #[test]
    fn what_is_never_a_node_is_never_permitted() {
        for address in [
            "127.0.0.1",
            "127.1.2.3",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "169.254.1.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.0.0.192",
            "100.100.100.200",
            "168.63.129.16",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b:1::a00:1",
            "2002:7f00:1::",
            "2001:0:1::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
        ] {
            assert!(!permit(&["0.0.0.0/0", "::/0"], address), "{address}");
        }
        for address in ["10.0.0.1", "203.0.113.7", "2001:db8::1", "fd00::1"] {
            assert!(permit(&["0.0.0.0/0", "::/0"], address), "{address}");
            assert!(!permit(&[], address), "{address}");
        }
    }

    #[test]
    fn ranges_and_own_networks_bound_the_rest() {
        assert!(permit(&["10.0.0.0/8"], "10.255.0.1"));
        assert!(!permit(&["10.0.0.0/8"], "11.0.0.1"));
        assert!(!permit(&["10.0.0.0/8"], "fd00::1"));
        let own = Bounds::own_networks();
        assert_eq!(own.0.len(), OWN_NETWORKS.len());
        for (address, permitted) in [
            ("10.1.2.3", true),
            ("172.31.0.1", true),
            ("172.32.0.1", false),
            ("192.168.7.7", true),
            ("100.64.0.1", true),
            ("100.128.0.1", false),
            ("fd12::1", true),
            ("203.0.113.7", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(own.permit(address.parse().unwrap()), permitted, "{address}");
        }
    }

    /// T117, the spellings.
    #[test]
    fn an_address_counts_in_its_usual_spelling_alone() {
        for (text, expected) in [
            ("ws://10.0.0.1:19000", "ws://10.0.0.1:19000/mesh/v1"),
            ("ws://10.0.0.1/", "ws://10.0.0.1/mesh/v1"),
            ("wss://Office.Example", "wss://office.example/mesh/v1"),
            ("wss://a.example:443/mesh/v1", "wss://a.example/mesh/v1"),
            ("wss://a.example/x/mesh/v1", "wss://a.example/x/mesh/v1"),
            ("ws://[fd00::1]:19000", "ws://[fd00::1]:19000/mesh/v1"),
        ] {
            assert_eq!(address(text).map(String::from).as_deref(), Some(expected));
        }
        let long = format!("ws://{}.example", "a".repeat(DESCRIPTOR_STRING_CHARS));
        for text in [
            "10.0.0.1:19000",
            "http://10.0.0.1/mesh/v1",
            "ws://0x0a.1:19000",
            "ws://167772161",
            "ws://10.1",
            "ws://012.0.0.1",
            "ws://10.0.0.1.:19000",
            "ws://1\u{ff10}.0.0.1",
            "ws://[fd00:0::1]",
            "ws://[::ffff:10.0.0.1]",
            "ws://me@10.0.0.1",
            "ws://me:secret@10.0.0.1",
            "ws://10.0.0.1:0",
            "ws://10.0.0.1:/mesh/v1",
            "ws://10.0.0.1/admin",
            "ws://10.0.0.1/mesh/v1?delete=all",
            "ws://10.0.0.1/mesh/v1#x",
            "ws://10.0.0.1\\mesh/v1",
            "ws://10.0.\n0.1",
            " ws://10.0.0.1",
            "ws:10.0.0.1",
            "ws://b\u{fc}ro.example",
            "",
            &long,
        ] {
            assert_eq!(address(text), None, "{text}");
        }
    }

    #[test]
    fn names_are_judged_by_what_they_stand_for() {
        let own = Bounds::own_networks();
        let may = |text: &str| own.may_permit(&address(text).unwrap());
        assert!(may("ws://10.0.0.1") && may("wss://office.example"));
        assert!(!may("ws://127.0.0.1") && !may("ws://203.0.113.7") && !may("ws://[::1]"));
    }
}
