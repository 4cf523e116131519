//! The mesh: links to other nodes, sessions over them, and what is known about who is there.
//! Carries opaque payloads; knows neither HTTP nor models nor tools.

pub mod memory;
pub mod session;
pub mod transport;
pub mod view;
