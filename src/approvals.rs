//! What waits for a person (protocol 8.4): dangerous requests of others are parked here until somebody
//! with an operator key agrees.
//!
//! `tools/gate` asks a [`Desk`] and waits; `control/approvals` shows what is there and brings the
//! decision. The rules are in [`book`], which is pure: a request is decided once, by a signature over
//! exactly what would be done, before its time is up. Nothing of it is on the disk: a node that starts
//! again knows of no request, and runs none. [`key`] is the operator's side: a key behind a
//! passphrase, kept outside the state folder, so that whoever can read this node's files or run
//! commands as its account still cannot agree to its own request.
//!
//! A person at another node may decide, too: [`outbound`] shows there what waits here and carries decisions
//! back, [`inbound`] takes both, [`inbox`] keeps what waits elsewhere.

pub mod book;
pub mod desk;
pub mod inbound;
pub mod inbox;
pub mod key;
pub mod outbound;
mod request;
mod shown;

pub use self::{
    book::{Decision, Refused},
    desk::{Desk, Operator, Waiting},
    inbox::{Inbox, Nodes},
    request::{ApprovalId, Request, Signed},
    shown::Shown,
};

#[cfg(test)]
mod tests;
