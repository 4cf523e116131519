//! Names and numbers that identify things across the mesh. No I/O, no clock.

use std::{borrow::Borrow, cell::RefCell, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize, de};

/// Why a string is not a node or mesh name (protocol 2).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a valid name: 1 to 64 of `A-Z a-z 0-9 . _ -`, first and last a letter or digit"
)]
pub struct NameError(String);

/// Checks the grammar shared by node and mesh names (protocol 2).
fn check_name(text: &str) -> Result<(), NameError> {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let valid =
        bytes.len() <= 64 && ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(inner);
    if valid {
        Ok(())
    } else {
        // Names come from strangers: never carry an unbounded or control-laden text onwards.
        Err(NameError(
            text.chars().take(64).flat_map(char::escape_debug).collect(),
        ))
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check_name(text)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<&str> for $name {
            type Error = NameError;
            fn try_from(text: &str) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: de::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type! {
    /// The unique name of one node (protocol 2).
    NodeId
}
name_type! {
    /// The name of a mesh; nodes of another mesh are refused (protocol 3.3).
    MeshName
}

impl NodeId {
    /// The name as two nodes may not share it: names that differ only in case conflict (protocol 2).
    #[must_use]
    pub fn folded(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

/// Why a string is not hexadecimal of the wanted length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} lower-case hexadecimal digits")]
pub struct HexError {
    expected: usize,
}

/// Lower-case hexadecimal of `bytes`.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        text.push(char::from(DIGITS[usize::from(b >> 4)]));
        text.push(char::from(DIGITS[usize::from(b & 15)]));
    }
    text
}

/// Reads exactly `N` bytes of hexadecimal.
///
/// # Errors
/// [`HexError`] for any other length or digit; upper case is refused so that one value has one text.
pub fn unhex<const N: usize>(text: &str) -> Result<[u8; N], HexError> {
    let error = HexError { expected: N * 2 };
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    if text.len() != N * 2 {
        return Err(error);
    }
    let mut out = [0; N];
    for (slot, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        match (digit(pair[0]), digit(pair[1])) {
            (Some(high), Some(low)) => *slot = high << 4 | low,
            _ => return Err(error),
        }
    }
    Ok(out)
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident from $source:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// A fresh random value.
            #[must_use]
            pub fn random() -> Self {
                Self($source())
            }
        }

        impl FromStr for $name {
            type Err = HexError;
            fn from_str(text: &str) -> Result<Self, HexError> {
                unhex(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // Short form for logs; eight digits tell two of them apart.
                f.write_str(&hex(&self.0[..4]))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: de::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

random_id! {
    /// The `rid` of one exchange (protocol 5.3).
    RequestId from random_name
}
random_id! {
    /// The `sid` of one session (protocol 3.3).
    SessionId from random_bytes
}
random_id! {
    /// Random per process start; tells a restarted node from a reconnected one (protocol 3.3).
    Boot from random_bytes
}

/// Number of one link of this process, for logs and registries; never on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkId(pub u64);

/// `N` bytes from the system's random source.
///
/// # Panics
/// When the system has no random source: nothing here can work then, and no key may be guessed.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system's random source answers");
    bytes
}

/// Names made ahead of need, per thread: a call of the system for each request costs more than all
/// else its name does.
struct Names {
    bytes: [u8; 16 * Names::AHEAD],
    used: usize,
}

impl Names {
    const AHEAD: usize = 64;
}

thread_local! {
    static NAMES: RefCell<Names> = const {
        RefCell::new(Names { bytes: [0; 16 * Names::AHEAD], used: Names::AHEAD })
    };
}

/// 16 bytes of the system's random source, read for many names at once. For what is told to others
/// anyway, never for a key: it lies in memory until it is used.
fn random_name() -> [u8; 16] {
    NAMES.with_borrow_mut(|names| {
        if names.used == Names::AHEAD {
            names.bytes = random_bytes();
            names.used = 0;
        }
        let name = names.bytes.as_chunks().0[names.used];
        names.used += 1;
        name
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn random_names_never_repeat_on_any_thread() {
        let many = || (0..10 * Names::AHEAD).map(|_| RequestId::random());
        let threads: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(move || many().collect::<Vec<_>>()))
            .collect();
        let all = threads.into_iter().flat_map(|t| t.join().unwrap());
        let all: HashSet<_> = all.chain(many()).collect();
        assert_eq!(all.len(), 5 * 10 * Names::AHEAD);
        assert!(!all.contains(&RequestId([0; 16])));
    }

    #[test]
    fn names_follow_the_grammar() {
        for good in ["a", "office-01", "A.b_c-9", &"x".repeat(64)] {
            assert!(good.parse::<NodeId>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            ".a",
            "a b",
            "ä",
            "a/b",
            "а",
            "a\u{202e}b",
            &"x".repeat(65),
        ] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hex_is_strict_and_round_trips() {
        assert_eq!(unhex::<2>("0aff"), Ok([0x0a, 0xff]));
        assert!(unhex::<2>("0AFF").is_err());
        assert!(unhex::<2>("0aff0").is_err());
        let id = RequestId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
    }
}
