//! The listening side of links.

pub mod upgrade;
