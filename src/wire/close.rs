//! Close codes of a link (protocol 5.3).

use std::fmt;

/// Why one side closes the WebSocket; the discriminant is the code on the wire. The text that goes
/// with it is [`CloseCode::text`] and nothing else: what exactly was wrong stays in our own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum CloseCode {
    /// Nothing is wrong.
    Normal = 1000,
    /// The other side broke the protocol.
    ProtocolError = 4400,
    /// The handshake failed, whatever the reason.
    AuthFailed = 4401,
    /// A record did not open or had a wrong size.
    RecordFailure = 4403,
    /// The other side was silent, or took nothing, for too long.
    Timeout = 4408,
    /// Another link between the same two nodes is kept.
    DuplicateLink = 4409,
    /// Both ends are the same node.
    SelfConnect = 4410,
    /// Too much of something.
    RateLimited = 4429,
    /// The node goes down.
    ShuttingDown = 4503,
}

impl CloseCode {
    const ALL: [Self; 9] = [
        Self::Normal,
        Self::ProtocolError,
        Self::AuthFailed,
        Self::RecordFailure,
        Self::Timeout,
        Self::DuplicateLink,
        Self::SelfConnect,
        Self::RateLimited,
        Self::ShuttingDown,
    ];

    /// The code with this number; others come from strangers or later versions.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u16 == number)
    }

    /// Its text on the wire.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Normal => "",
            Self::ProtocolError => "protocol_error",
            Self::AuthFailed => "auth_failed",
            Self::RecordFailure => "record_failure",
            Self::Timeout => "timeout",
            Self::DuplicateLink => "duplicate_link",
            Self::SelfConnect => "self_connect",
            Self::RateLimited => "rate_limited",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", *self as u16, self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_number(code as u16), Some(code));
        }
        assert_eq!(CloseCode::from_number(4402), None);
    }
}
