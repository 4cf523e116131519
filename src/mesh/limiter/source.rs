//! What counts as one source of connections (protocol 3.5).

use std::{
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

/// One IPv4 address or one IPv6 /64, whoever sits behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(u128);

const LOW_64: u128 = u64::MAX as u128;

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

impl Source {
    /// The source of an address. A mapped IPv4 address is that IPv4 address.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        let address = v6(address);
        let bits = u128::from(address);
        if address.to_ipv4_mapped().is_some() {
            Self(bits)
        } else {
            Self(bits & !LOW_64)
        }
    }

    /// The IPv6 /48 it lies in; none for IPv4.
    #[must_use]
    pub fn wider(self) -> Option<u128> {
        let v4 = Ipv6Addr::from(self.0).to_ipv4_mapped().is_some();
        (!v4).then_some(self.0 >> 80)
    }
}

/// A range of addresses: `10.0.0.0/8`, `fd00::/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    network: u128,
    mask: u128,
}

/// Why a text is not a range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a range of addresses such as `10.0.0.0/8`")]
pub struct CidrError;

impl FromStr for Cidr {
    type Err = CidrError;
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| CidrError)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| CidrError)?;
        let (width, offset) = if address.is_ipv4() {
            (32, 96)
        } else {
            (128, 0)
        };
        let bits = bits.unwrap_or(width);
        if bits > width {
            return Err(CidrError);
        }
        let mask = match u32::from(bits) + offset {
            0 => 0,
            bits => u128::MAX << (128 - bits),
        };
        Ok(Self {
            network: u128::from(v6(address)) & mask,
            mask,
        })
    }
}

impl Cidr {
    /// Whether an address lies in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        u128::from(v6(address)) & self.mask == self.network
    }
}

/// The address a connection really comes from: behind trusted proxies the right-most address of
/// `X-Forwarded-For` that is not one of them, else the socket's own.
#[must_use]
pub fn behind_proxies<'a>(
    socket: IpAddr,
    forwarded_for: impl DoubleEndedIterator<Item = &'a str>,
    trusted: &[Cidr],
) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|range| range.contains(address));
    let mut nearest = socket;
    if !is_trusted(nearest) {
        return nearest;
    }
    for entry in forwarded_for.rev().flat_map(|line| line.rsplit(',')) {
        let Ok(address) = entry.trim().parse() else {
            // What a proxy did not write is a stranger's word.
            return nearest;
        };
        nearest = address;
        if !is_trusted(address) {
            break;
        }
    }
    nearest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn sources_are_addresses_or_subnets() {
        assert_ne!(Source::new(ip("10.0.0.1")), Source::new(ip("10.0.0.2")));
        assert_eq!(
            Source::new(ip("10.0.0.1")),
            Source::new(ip("::ffff:10.0.0.1"))
        );
        let [a, b, c] = ["2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1"]
            .map(|text| Source::new(ip(text)));
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_eq!(a.wider(), c.wider());
        assert_ne!(a.wider(), Source::new(ip("2001:db8:2:2::1")).wider());
        assert_eq!(Source::new(ip("10.0.0.1")).wider(), None);
    }

    #[test]
    fn ranges_contain_what_they_say() {
        let range = |text: &str| text.parse::<Cidr>();
        assert!(range("10.0.0.0/8").unwrap().contains(ip("10.9.8.7")));
        assert!(!range("10.0.0.0/8").unwrap().contains(ip("11.0.0.1")));
        assert!(range("192.168.1.1").unwrap().contains(ip("192.168.1.1")));
        assert!(range("fd00::/8").unwrap().contains(ip("fd12::1")));
        assert!(!range("0.0.0.0/0").unwrap().contains(ip("2001:db8::1")));
        assert!(range("::/0").unwrap().contains(ip("2001:db8::1")));
        for bad in ["10.0.0.0/33", "x", "10.0.0.0/-1", "::/129", ""] {
            assert_eq!(range(bad), Err(CidrError), "{bad}");
        }
    }

    #[test]
    fn forwarded_addresses_count_only_behind_trusted_proxies() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let from = |socket: &str, lines: &[&str]| {
            behind_proxies(ip(socket), lines.iter().copied(), &trusted).to_string()
        };
        assert_eq!(from("198.51.100.7", &["203.0.113.9"]), "198.51.100.7");
        assert_eq!(from("10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(
            from("10.0.0.1", &["6.6.6.6, 203.0.113.9, 10.0.0.2"]),
            "203.0.113.9"
        );
        assert_eq!(from("10.0.0.1", &["6.6.6.6", "203.0.113.9"]), "203.0.113.9");
        assert_eq!(from("10.0.0.1", &["6.6.6.6, junk, 10.0.0.2"]), "10.0.0.2");
        assert_eq!(from("10.0.0.1", &[]), "10.0.0.1");
    }
}
