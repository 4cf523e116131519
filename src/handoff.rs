//! Tasks handed from an agent here to an agent of another node, and the other way round (protocol 7).

pub mod record;
pub mod runner;
