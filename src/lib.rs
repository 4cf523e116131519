//! ClawMatrix: one mesh of OpenClaw gateways.
//!
//! A sidecar ([`app`]) runs beside each gateway. Sidecars join over authenticated WebSocket links
//! ([`mesh`]) and lend one another models, agents and tools.
//!
//! # Five flows
//!
//! - **Model request out:** `proxy/model` reads and checks -> `models/outbound` picks a node by
//!   `models/select` and opens an [`exchange`] with a deadline -> `mesh/sessions` seals -> `mesh/hops`
//!   -> `mesh/link` queues. Chunks come back by request id; `proxy/model` writes them to the client. Client
//!   gone: the dropped call sends `cancel`.
//! - **Model request in:** `mesh/link` -> `mesh/hub`, addressed to us -> `mesh/sessions` opens -> [`exchange`] -> `models/inbound`
//!   checks the caller and the lent model -> `models/serve` -> `models/provider` -> chunks -> one end
//!   or error. `cancel` aborts the call to the provider.
//! - **Handoff stream:** `control/handoff` -> `handoff/outbound` finds an agent by `handoff/target` and
//!   opens an [`exchange`] -> far `handoff/inbound` checks the caller and starts a run through
//!   `shim/bridge` or a server -> what happens goes into a `handoff/record` and comes back as lines ->
//!   one end. A lost link leaves the run; the origin attaches again.
//! - **Tool call:** `control/tools` -> `tools/outbound` picks a node and opens an [`exchange`] -> far
//!   `tools/inbound` looks what would be touched -> `policy` judges it -> `audit` -> `tools/host`, or
//!   `shim/bridge` for the gateway's own tools (what needs a person waits at `approvals` first) -> output comes back as frames -> one end. A lost link
//!   or a client gone ends the command with its children.
//! - **Relayed frame:** `mesh/link` -> `mesh/hub/forward`, addressed to another -> `mesh/relay` knows
//!   whether it was here before -> `mesh/hops`, which `mesh/routing` worked out from what `mesh/gossip`
//!   spread -> the next `mesh/link`, with one hop less and the body as it lay.
//!
//! All of them tell `audit`, and through it [`events`], what they decided and how it ended; `control/events` shows it
//! to whoever watches.
//!
//! # Map
//!
//! `main -> {cli, app} -> {proxy, control, shim} -> {models, handoff,
//! messages, tools} -> {budgets, policy, audit, approvals} -> exchange -> mesh -> crypto -> wire ->
//! ids`; the left may use the right, never the other way round. `config` is known to `app` alone
//! (and to `cli`, which writes it).

pub mod app;
pub mod approvals;
pub mod audit;
pub mod budgets;
pub mod civil;
pub mod cli;
pub mod config;
pub mod control;
pub mod crypto;
pub mod drain;
pub mod events;
pub mod exchange;
pub mod handoff;
pub mod ids;
pub mod mesh;
pub mod messages;
pub mod models;
pub mod once;
pub mod policy;
pub mod proxy;
pub mod shim;
pub mod sse;
pub mod state;
pub mod telemetry;
pub mod tools;
pub mod trust;
pub mod wire;
