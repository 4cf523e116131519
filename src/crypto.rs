//! Keys and what is done with them: identities, the handshake, sealed records. No I/O, no clock.

pub mod identity;
pub mod seal;
pub mod secret;
