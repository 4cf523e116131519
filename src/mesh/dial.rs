//! The dialing side of links.

pub mod connect;
