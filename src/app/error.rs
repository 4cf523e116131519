//! Why a node did not start, and with which exit code it says so (README "Exit codes").

use std::{io, net::SocketAddr, path::PathBuf};

use crate::{
    audit::AuditError, config::ConfigError, crypto::identity::IdentityError,
    mesh::rotation::RotationError, mesh::tls::TlsError, messages::store::StoreError,
    models::endpoint::EndpointError, proxy::tokens::TokenError, state::StateError,
    trust::TrustError,
};

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The identity key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The records of earlier keys cannot be read, or a new key cannot be put in force.
    #[error(transparent)]
    Rotation(#[from] RotationError),
    /// The pins cannot be read.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The local tokens cannot be used.
    #[error(transparent)]
    Tokens(#[from] TokenError),
    /// Another process has the port.
    #[error("cannot listen on `{address}`: address in use")]
    PortInUse {
        /// The configuration key that names the port.
        key: &'static str,
        /// What was tried.
        address: SocketAddr,
        /// A port that is free.
        free: Option<u16>,
    },
    /// The system refuses the address.
    #[error("cannot listen on `{address}`")]
    Bind {
        /// The configuration key.
        key: &'static str,
        /// What was tried.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A file this process must write at the start.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The messages that wait cannot be read.
    #[error(transparent)]
    Messages(#[from] StoreError),
    /// The audit record.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// Certificate or key of the listener.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The server of an agent cannot be called.
    #[error("agent `{0}` cannot be served")]
    Agent(String, #[source] EndpointError),
    /// The shim said nothing usable.
    #[error("no configuration came from the gateway: {0}")]
    Shim(String),
    /// A part of the system that must work.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl StartError {
    /// The exit code; the shim does not restart after 69, 73 and 78.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::PortInUse { .. } => 69,
            Self::State(StateError::Held(_)) => 73,
            Self::Config(_)
            | Self::Identity(_)
            | Self::Rotation(_)
            | Self::Tls(_)
            | Self::Agent(..) => 78,
            Self::State(StateError::Io { .. })
            | Self::Trust(_)
            | Self::Tokens(_)
            | Self::Messages(_)
            | Self::Audit(_)
            | Self::Bind { .. }
            | Self::Write { .. }
            | Self::Shim(_)
            | Self::System { .. } => 1,
        }
    }

    /// The way out, when there is one to name.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::PortInUse { key, free, .. } => Some(match free {
                Some(port) => format!("set `{key}` ({port} is free), or stop the other process"),
                None => format!("set `{key}` to a free port, or stop the other process"),
            }),
            Self::Bind { key, .. } => Some(match *key {
                "listenPort" => "`listenHost` must be an address of this machine".into(),
                _ => format!("set `{key}` to a port this account may use"),
            }),
            Self::State(StateError::Held(_)) => {
                Some("stop the other node, or give this one another `--state-dir`".into())
            }
            Self::State(StateError::Io { .. }) | Self::Write { .. } | Self::Audit(_) => {
                Some("the state folder must belong to the account that runs the node".into())
            }
            Self::Identity(error) => Some(error.hint()),
            Self::Rotation(error) => Some(error.hint()),
            Self::Tls(error) => Some(error.hint().into()),
            Self::Messages(_) => Some(
                "`messages.redb` in the state folder holds nothing but messages that wait: remove it to start without them".into(),
            ),
            Self::Agent(..) => Some("mend its `baseUrl` or `apiKey`".into()),
            Self::Config(_)
            | Self::Trust(_)
            | Self::Tokens(_)
            | Self::Shim(_)
            | Self::System { .. } => None,
        }
    }

    /// The whole text for the operator: message, causes and hint.
    #[must_use]
    pub fn report(&self) -> String {
        if let Self::Config(error) = self {
            return error.to_string();
        }
        let mut text = format!("error: {self}");
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        if let Some(hint) = self.hint() {
            text.push_str("\n  hint: ");
            text.push_str(&hint);
        }
        text
    }
}
