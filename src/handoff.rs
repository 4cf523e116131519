//! Tasks handed from an agent here to an agent of another node, and the other way round (protocol 7,
//! 7.6).
//!
//! ```text
//! control -- outbound --- exchange ---> inbound -- runner (the shim, or a server)
//!               |        <- stream ---     |
//!             record                     record
//! ```
//!
//! Both ends keep a [`record`]: what was said, which tools were used, how it ended. Followers read it,
//! each from where it is: the client of the local API, the stream to the other node, one that attaches
//! again after a lost link.

pub mod inbound;
pub mod outbound;
pub mod record;
pub mod runner;
pub mod stream;
pub mod target;
