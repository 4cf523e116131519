//! Does on this machine what was allowed: runs commands, reads and writes files. It checks no
//! policy; it finds out what a request would really touch before, and touches nothing else.

pub mod bounds;
pub mod command;
pub mod denied;
pub mod exec;
pub mod files;
pub mod place;
pub mod running;
mod tree;
