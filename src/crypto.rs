//! Keys and what is done with them: identities, the handshake, sealed records. No network, no
//! clock; the only disk access is [`identity::Identity::load_or_create`].

pub mod handshake;
pub mod identity;
pub mod rotation;
pub mod seal;
pub mod secret;
pub mod stretch;
pub mod transcript;
