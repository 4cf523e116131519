//! What two nodes say to one another, as bytes: the limits, the error codes, the record and frame
//! formats. Depends on nothing but [`crate::ids`]; decoding is total (any bytes give a value or an
//! error, never a panic). The protocol in prose is `docs/protocol.md`.

pub mod close;
pub mod code;
pub mod foreign;
pub mod frame;
pub mod inner;
pub mod json;
pub mod limits;
pub mod record;
pub mod shapes;
