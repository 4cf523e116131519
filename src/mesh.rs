//! The mesh: links to other nodes, sessions over them, and what is known about who is there.
//! Carries opaque payloads; knows neither HTTP nor models nor tools.

pub mod accept;
pub mod bucket;
pub mod clock;
pub mod descriptor;
pub mod dial;
pub mod drops;
pub mod duel;
pub mod handshake;
pub mod incarnation;
pub mod limiter;
pub mod link;
pub mod liveness;
pub mod membership;
pub mod memory;
pub mod schedule;
pub mod session;
#[cfg(test)]
pub(crate) mod testkit;
pub mod transport;
pub mod view;
pub mod ws;
