//! Every limit of the protocol, in one place (protocol 1). A limit that is configurable has its
//! default here. Section numbers are those of `docs/protocol.md`.

use std::time::Duration;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

// -- 2 identity and trust ------------------------------------------------------------------------
/// The first pins of a node are made as they come: it joins a mesh, or a mesh joins it. As many as one
/// neighbour may bring in by records.
pub const FREE_PINS: usize = SEEN_PER_NEIGHBOUR;
/// New pins a minute from then on, those of nodes that a trusted neighbour vouches for apart.
pub const NEW_PINS_PER_MINUTE: u32 = 20;
/// Pins in all.
pub const PINS: usize = 4096;
/// Key rotations of one name that are followed within a day.
pub const ROTATIONS_PER_DAY: usize = 4;
/// Keys remembered that were given up; above that no rotation is followed. Four a day of one name fill it
/// in years.
pub const RETIRED_KEYS: usize = 8192;
/// Longest payload of a key rotation.
pub const ROTATION_BYTES: usize = 1024;
/// Own rotations shown to a neighbour: how many a node may miss.
pub const ROTATIONS_SHOWN: usize = 4;
/// Own rotations kept, which also say whose the older heads of the audit record are.
pub const ROTATIONS_OWN: usize = 64;
/// Rotations of others kept to pass on; the oldest goes first.
pub const ROTATIONS_KEPT: usize = 1024;
/// Refused names and keys remembered for the operator.
pub const CONFLICTS: usize = 64;
/// The same for one name: ever new keys under it must not push out other names.
pub const CONFLICTS_PER_NAME: usize = 4;
/// Accepted older secrets.
pub const ACCEPT_SECRETS: usize = 3;
/// Shortest cluster secret, in characters.
pub const SECRET_MIN_CHARS: usize = 16;

// -- 3 handshake ---------------------------------------------------------------------------------
/// Longest handshake message, in bytes.
pub const HANDSHAKE_MESSAGE_BYTES: usize = 2 * KIB;
/// Versions a hello may offer.
pub const HANDSHAKE_VERSIONS: usize = 16;
/// Longest `params` JSON, in bytes.
pub const PARAMS_BYTES: usize = 512;
/// Characters of a program name in `params`; the whole then fits [`PARAMS_BYTES`].
pub const SOFTWARE_CHARS: usize = 64;
/// Header bytes of an upgrade request.
pub const UPGRADE_HEADER_BYTES: usize = 16 * KIB;
/// Headers of an upgrade request.
pub const UPGRADE_HEADERS: usize = 64;
/// From accept to the end of the upgrade request.
pub const UPGRADE_TIMEOUT: Duration = Duration::from_secs(5);
/// The whole handshake, from upgrade to M4.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way at once; when full the oldest is dropped.
pub const PENDING_HANDSHAKES: usize = 256;
/// Handshakes under way from one IPv4 address or IPv6 /64.
pub const PENDING_PER_SOURCE: usize = 8;
/// Handshakes under way from one IPv6 /48.
pub const PENDING_PER_48: usize = 32;
/// Failures of one source before it is held to [`FAILED_SOURCE_PER_MINUTE`].
pub const FREE_FAILURES: u32 = 5;
/// Attempts a minute of a source that failed too often.
pub const FAILED_SOURCE_PER_MINUTE: u32 = 6;
/// The same for a source that succeeded within 24 h.
pub const KNOWN_SOURCE_PER_MINUTE: u32 = 60;
/// Successful handshakes a minute for one key.
pub const SUCCESSES_PER_KEY_MINUTE: u32 = 60;
/// Successful handshakes a minute for one source.
pub const SUCCESSES_PER_SOURCE_MINUTE: u32 = 300;
/// Sources the limiter remembers.
pub const LIMITER_SOURCES: usize = 10_000;
/// A PEM file of the listener or of an authority.
pub const CERTIFICATE_FILE_BYTES: u64 = 1 << 20;
/// How often the listener's certificate is looked at for a renewal.
pub const CERTIFICATE_LOOK: Duration = Duration::from_secs(15);
/// A certificate with less than this left is warned about.
pub const CERTIFICATE_WARN: Duration = Duration::from_secs(14 * 24 * 3600);
/// The head of a proxy's answer to `CONNECT`.
pub const PROXY_HEAD_BYTES: usize = 8 * KIB;
/// One dial attempt: connect, proxy and TLS.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Head start of one address over the next (RFC 8305).
pub const DIAL_RACE_DELAY: Duration = Duration::from_millis(250);
/// First redial delay.
pub const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Longest redial delay; at once after `auth_failed`.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Redial delay after `rate_limited`, with half as much again at random: a listener admits another new
/// name every 3 s on average (see [`NEW_PINS_PER_MINUTE`]).
pub const RATE_LIMITED_RETRY: Duration = Duration::from_secs(3);
/// Nodes at once that are dialed at addresses they advertise, with the links that came of it.
pub const ADVERTISED_LINKS: usize = 8;
/// Rounds in vain, through all of its addresses, after which such a node is left alone: half a minute or
/// so, six at most when it refuses us.
pub const ADVERTISED_TRIES: u32 = 6;
/// How long, unless it advertises something else.
pub const ADVERTISED_REST: Duration = Duration::from_secs(600);
/// A link this old has worked: it resets the redial delay.
pub const BACKOFF_RESET: Duration = Duration::from_secs(5);

// -- 4 records -----------------------------------------------------------------------------------
/// Shortest link record.
pub const RECORD_MIN_BYTES: usize = 26;
/// Longest link record and WebSocket message.
pub const RECORD_MAX_BYTES: usize = 64 * KIB;
/// Records under one key.
pub const REKEY_RECORDS: u64 = 1 << 20;
/// Altered bodies a link survives within [`BAD_BODY_WINDOW`].
pub const BAD_BODIES: u32 = 16;
/// See [`BAD_BODIES`].
pub const BAD_BODY_WINDOW: Duration = Duration::from_secs(60);
/// End-to-end sessions kept with one node; the newest is used for sending.
pub const SESSIONS_PER_PEER: usize = 2;
/// A session nothing was sent or received in is forgotten after this.
pub const SESSION_IDLE: Duration = Duration::from_secs(30 * 60);
/// Oldest session used for sending.
pub const SESSION_AGE: Duration = Duration::from_secs(12 * 3600);
/// Frames sent in one session.
pub const SESSION_FRAMES: u64 = 1 << 32;
/// Frame numbers of one class a receiver looks back.
pub const REPLAY_WINDOW: u64 = 4096;
/// When a handshake message is sent again, after the first time.
pub const HELLO_AGAIN: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// An end-to-end handshake, from M1 to M4; as long a responder keeps its replies.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// End-to-end handshakes begun by others a second, for one ingress link.
pub const HELLOS_PER_SECOND: u32 = 20;
/// Burst of [`HELLOS_PER_SECOND`].
pub const HELLOS_BURST: u32 = 60;
/// Hellos of one link that wait for their turn, one for each origin named in them.
pub const HELLOS_WAITING: usize = 64;
/// End-to-end handshakes answered and not finished.
pub const PENDING_HELLOS: usize = 256;
/// Messages of one kind that claim to belong to one handshake of another node and are looked at (4.2).
pub const HELLOS_ALIKE: usize = 4;
/// Finished handshakes a minute with one node.
pub const HELLOS_PER_PEER_MINUTE: u32 = 10;
/// End-to-end handshakes of ours under way.
pub const OPENING_SESSIONS: usize = 64;
/// A hint that a session is unknown starts at most one handshake in this time.
pub const RESET_EVERY: Duration = Duration::from_secs(2);
/// Notices a second for one flow.
pub const NOTICES_PER_SECOND: u32 = 10;
/// Silence after which a side with open requests sends `noop`.
pub const NOOP_AFTER: Duration = Duration::from_secs(10);
/// Silence after which a session with open requests is lost.
pub const SESSION_LOST_AFTER: Duration = Duration::from_secs(30);

// -- 5 frames, streams, flow control -------------------------------------------------------------
/// Longest frame header JSON.
pub const HEADER_BYTES: usize = 512;
/// Longest inner JSON: `jlen` is a u16.
pub const INNER_JSON_BYTES: usize = u16::MAX as usize;
/// Longest inner frame with its padding: what one record holds beside the longest header, the
/// length, both tags, rounded down to the coarse padding.
pub const INNER_BYTES: usize = 63 * KIB;
/// Initial `ttl`.
pub const TTL: u8 = 8;
/// Deepest JSON on the wire.
pub const JSON_DEPTH: usize = 32;
/// Largest integer on the wire.
pub const JSON_INTEGER_MAX: u64 = (1 << 53) - 1;
/// Request bodies up to this ride in the request's own data part.
pub const INLINE_BODY_BYTES: usize = 32 * KIB;
/// Longest data of one chunk.
pub const CHUNK_BYTES: usize = 60 * KIB;
/// The same over a way that is slow, or not yet known.
pub const SMALL_CHUNK_BYTES: usize = 16 * KIB;
/// Longest header set carried in `hdr`.
pub const HDR_BYTES: usize = 4 * KIB;
/// Credit of a new half-stream.
pub const INITIAL_WINDOW: u64 = 256 * KIB as u64;
/// Largest credit of a half-stream.
pub const MAX_WINDOW: u64 = 4 * MIB as u64;
/// Bytes on their way to a node that is no direct neighbour, at first.
pub const CONGESTION_WINDOW: u64 = 256 * KIB as u64;
/// The same at least, whatever was lost.
pub const CONGESTION_WINDOW_MIN: u64 = 64 * KIB as u64;
/// What it grows by in a round trip, once something was lost.
pub const CONGESTION_STEP: u64 = 32 * KIB as u64;
/// Time that items may wait in queues on the way to a node that is no direct neighbour: with more the
/// window shrinks, with half of it it does not grow.
pub const CONGESTION_QUEUE: Duration = Duration::from_millis(400);
/// Items of one half-stream on their way: the sender stops there, and a number this far ahead is an
/// error. Acks come at half of it, so it bounds memory, never speed.
pub const UNACKED_ITEMS: u64 = 4096;
/// Bytes held for one peer.
pub const PEER_BUDGET_BYTES: usize = 16 * MIB;
/// Bytes held by the node.
pub const NODE_BUDGET_BYTES: usize = 128 * MIB;
/// Entries of one `ack`: so many fit into one frame whatever their numbers.
pub const ACK_ENTRIES: usize = 512;
/// Bytes of the text of one `error`: a provider's own words and some of ours.
pub const FAILURE_MESSAGE_BYTES: usize = PROVIDER_ERROR_BYTES + 512;
/// A request nothing was said about for this long is accepted in its node's name.
pub const AUTO_ACCEPT: Duration = Duration::from_secs(1);
/// Streams aborted for ignored credit that end the session.
pub const CREDIT_VIOLATIONS: u32 = 3;
/// Acks wait at most this long for company.
pub const ACK_DELAY: Duration = Duration::from_millis(100);
/// Shortest retransmission timeout.
pub const RTO_MIN: Duration = Duration::from_secs(1);
/// Longest retransmission timeout.
pub const RTO_MAX: Duration = Duration::from_secs(8);
/// No progress for this long ends a stream with `stream_lost`.
pub const STREAM_LOST_AFTER: Duration = Duration::from_secs(30);
/// An ended idempotent rid is remembered this long.
pub const TOMBSTONE: Duration = Duration::from_secs(60);
/// A rid that was refused, cancelled or fenced before it ran is remembered this long: longer than a
/// copy of its request that is held back counts as fresh ([`STALE_AFTER`] after the session began,
/// which may be [`HELLO_TIMEOUT`] later than its asker thinks).
pub const UNRUN_MEMORY: Duration = Duration::from_secs(120);
/// An ended non-idempotent rid and its result are remembered this long (7.1).
pub const RID_MEMORY: Duration = Duration::from_secs(600);
/// Word that a request never began is believed until this long after it was sent: one that ran at
/// once may be forgotten after [`RID_MEMORY`] (7.1).
pub const NEVER_BEGAN_FOR: Duration = Duration::from_secs(540);
/// Rids remembered in all (7.1).
pub const RIDS: usize = 65_536;
/// Rids remembered for one peer (7.1).
pub const RIDS_PER_PEER: usize = 8192;
/// Longest request body.
pub const REQUEST_BODY_BYTES: usize = 32 * MIB;
/// Longest response body.
pub const RESPONSE_BODY_BYTES: usize = 256 * MIB;
/// Frames waiting in a link's control queue.
pub const CONTROL_QUEUE_FRAMES: usize = 1024;
/// Bytes waiting in one flow's queue.
pub const FLOW_QUEUE_BYTES: usize = 512 * KIB;
/// Bytes waiting for one link.
pub const LINK_QUEUE_BYTES: usize = 8 * MIB;
/// Bytes waiting for all links.
pub const NODE_QUEUE_BYTES: usize = 128 * MIB;
/// Bytes a link writer hands to the socket at a time, and the system may hold unsent where that can be
/// bounded.
pub const WRITE_BATCH_BYTES: usize = 64 * KIB;
/// The same on a slow link at least.
pub const WRITE_BATCH_MIN_BYTES: usize = 8 * KIB;
/// Bytes the WebSocket library may hold for one connection.
pub const WS_WRITE_BUFFER_BYTES: usize = 256 * KIB;
/// A socket write stalled this long kills the link.
pub const WRITE_STALL: Duration = Duration::from_secs(30);
/// How long a closing link waits for its close message to leave, and for the other side's.
pub const CLOSE_LINGER: Duration = Duration::from_secs(2);
/// Link and gossip frames a second from one link.
pub const LINK_FRAMES_PER_SECOND: u32 = 200;
/// Burst of [`LINK_FRAMES_PER_SECOND`].
pub const LINK_FRAMES_BURST: u32 = 4096;
/// Routed frames a second from one link; above that it is read more slowly.
pub const ROUTED_FRAMES_PER_SECOND: u32 = 100_000;

// -- 6 membership and links ----------------------------------------------------------------------
/// Longest descriptor payload.
pub const DESCRIPTOR_BYTES: usize = 16 * KIB;
/// Agents in a descriptor.
pub const DESCRIPTOR_AGENTS: usize = 64;
/// Models in a descriptor.
pub const DESCRIPTOR_MODELS: usize = 256;
/// Tags in a descriptor.
pub const DESCRIPTOR_TAGS: usize = 64;
/// Addresses in a descriptor.
pub const DESCRIPTOR_ADDRESSES: usize = 4;
/// Characters of one string in a descriptor.
pub const DESCRIPTOR_STRING_CHARS: usize = 256;
/// Longest link-state payload.
pub const LINK_STATE_BYTES: usize = 32 * KIB;
/// Links to nodes that do not relay, in a link-state record.
pub const LINK_STATE_LEAVES: usize = 2000;
/// Links to relays, in a link-state record: as many as fit beside the leaves with the longest names
/// would not leave room for those, so fewer.
pub const LINK_STATE_RELAYS: usize = 64;
/// Cheapest and dearest link, in milliseconds.
pub const COST_MIN: u16 = 1;
/// See [`COST_MIN`].
pub const COST_MAX: u16 = 10_000;
/// What a way costs more for each relay on it, in milliseconds.
pub const RELAY_COST: u32 = 5;
/// How much dearer a link is while its neighbour may be gone.
pub const SUSPECT_FACTOR: u16 = 4;
/// Nodes in a mesh.
pub const MESH_NODES: usize = 1024;
/// Nodes known from records alone that one neighbour may bring in.
pub const SEEN_PER_NEIGHBOUR: usize = 256;
/// The same for a neighbour that the operator trusts.
pub const SEEN_PER_TRUSTED: usize = 1024;
/// New ones a minute from one neighbour, once its link is [`SEEN_SETTLE`] old.
pub const SEEN_PER_MINUTE: u32 = 60;
/// A new link may bring in what it knows within this.
pub const SEEN_SETTLE: Duration = Duration::from_secs(60);
/// Newer records of one node taken a second: honest ones come seconds apart.
pub const RECORDS_PER_NODE_SECOND: u32 = 1;
/// Burst of [`RECORDS_PER_NODE_SECOND`]: a node that starts changes links and offer in quick succession.
pub const RECORDS_PER_NODE_BURST: u32 = 30;
/// A record that contradicts an earlier one is passed on as a warning this often for one node.
pub const CONTRADICTION_EVERY: Duration = Duration::from_secs(3600);
/// A node that claims a link which its other end does not confirm is shown after this: twice the
/// time within which both ends sign their links anew.
pub const UNCONFIRMED_AFTER: Duration = Duration::from_secs(600);
/// A node signs its records anew this often.
pub const RECORD_REFRESH: Duration = Duration::from_secs(300);
/// Records of a node that were not signed anew for this long are forgotten.
pub const RECORD_EXPIRY: Duration = Duration::from_secs(900);
/// What is gone is remembered this long, so that nobody brings it back.
pub const TOMBSTONE_AGE: Duration = Duration::from_secs(24 * 3600);
/// Keys so remembered.
pub const GONE_NODES: usize = 4096;
/// Shortest time between two link-state records of one node; longer in a large mesh.
pub const LINK_STATE_EVERY: Duration = Duration::from_secs(5);
/// What [`LINK_STATE_EVERY`] is for each node of the mesh, if that is more.
pub const LINK_STATE_PER_NODE: Duration = Duration::from_millis(50);
/// Link-state records in a row when links are lost.
pub const LINK_STATE_BURST: u32 = 4;
/// Link-state records wait this long per node of the mesh before they go to a node that does not
/// relay.
pub const LEAF_BATCH_PER_NODE: Duration = Duration::from_millis(100);
/// How often two neighbours compare what they know; a fifth more or less by chance.
pub const DIGEST_EVERY: Duration = Duration::from_secs(60);
/// Buckets of a digest.
pub const DIGEST_BUCKETS: usize = 64;
/// Bytes of records a second on one link.
pub const GOSSIP_BYTES_PER_SECOND: u32 = 256 * 1024;
/// Records a second on one link, below what the neighbour takes ([`LINK_FRAMES_PER_SECOND`]).
pub const GOSSIP_FRAMES_PER_SECOND: u32 = 150;
/// Burst of [`GOSSIP_FRAMES_PER_SECOND`].
pub const GOSSIP_FRAMES_BURST: u32 = 3072;
/// Routes follow what others say after this.
pub const ROUTE_DEBOUNCE: Duration = Duration::from_millis(100);
/// Shortest time between two route computations for that reason.
pub const ROUTE_EVERY: Duration = Duration::from_millis(500);
/// What a next hop costs more after frames over it timed out end to end, in milliseconds.
pub const PENALTY: u32 = 1000;
/// How long, at first; it doubles with each further time-out.
pub const PENALTY_TIME: Duration = Duration::from_secs(60);
/// See [`PENALTY_TIME`].
pub const PENALTY_TIME_MAX: Duration = Duration::from_secs(3600);
/// Frames a relay remembers having forwarded, for each link they came over.
pub const RELAY_MEMORY: usize = 16_384;
/// How long, at least half of it.
pub const RELAY_MEMORY_TIME: Duration = Duration::from_secs(120);
/// Handshake messages a second that a relay forwards from one link.
pub const RELAYED_HELLOS_PER_SECOND: u32 = 200;
/// Burst of [`RELAYED_HELLOS_PER_SECOND`].
pub const RELAYED_HELLOS_BURST: u32 = 1000;
/// Heartbeat, the default of `hb`.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
/// Answer to an urgent ping before the link is suspect.
pub const URGENT_PING_SUSPECT: Duration = Duration::from_secs(3);
/// Answer to an urgent ping before the link is dead.
pub const URGENT_PING_DEAD: Duration = Duration::from_secs(10);
/// Heartbeats missed before a link is dead.
pub const MISSED_HEARTBEATS: u32 = 3;
/// A pause of the whole process longer than this restarts its timers.
pub const PAUSE: Duration = Duration::from_secs(2);
/// Replacements of one link a minute before a hold-off.
pub const LINK_REPLACEMENTS_PER_MINUTE: u32 = 6;
/// Length of that hold-off.
pub const LINK_HOLD_OFF: Duration = Duration::from_secs(60);
/// Silence after which a duplicate replaces a link of the same direction.
pub const DUPLICATE_SILENCE: Duration = Duration::from_secs(2);

// -- 7 requests ----------------------------------------------------------------------------------
/// First answer to a model request.
pub const MODEL_ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);
/// First chunk, and silence between chunks, of a streamed answer.
pub const MODEL_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Whole model request; ends to apply at the first streamed byte.
pub const MODEL_DEADLINE: Duration = Duration::from_secs(600);
/// Attempts at one model request.
pub const MODEL_ATTEMPTS: usize = 3;
/// Bytes of a provider's error body that are passed on.
pub const PROVIDER_ERROR_BYTES: usize = 8 * KIB;
/// Connecting to a provider, TLS included.
pub const PROVIDER_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Reading the body of a provider's error.
pub const PROVIDER_ERROR_TIMEOUT: Duration = Duration::from_secs(5);
/// A fresh key from OpenClaw after a provider refused the old one.
pub const REFRESH_KEY_TIMEOUT: Duration = Duration::from_secs(5);
/// The same provider's key is asked for again no sooner than this.
pub const REFRESH_KEY_EVERY: Duration = Duration::from_secs(5);
/// Bytes held back until a stream shows its first content.
pub const COMMIT_HOLD_BYTES: usize = 64 * KIB;
/// A model not seen for this long leaves the catalog.
pub const KNOWN_MODEL_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// An answer under an `Idempotency-Key` is kept this long (7.2).
pub const IDEMPOTENT_MEMORY: Duration = Duration::from_secs(600);
/// Keys of handoffs, messages and tools each: never forgotten early, since what they name has effects.
pub const IDEMPOTENT_KEYS: usize = 1024;
/// Answers of models kept at once.
pub const IDEMPOTENT_ANSWERS: usize = 64;
/// Longest answer that is kept: with [`IDEMPOTENT_ANSWERS`], 16 MiB in all.
pub const IDEMPOTENT_ANSWER_BYTES: usize = 256 * KIB;
/// Entries of `hops`.
pub const HOPS: usize = 4;
/// What a nested request loses of the remaining time.
pub const NESTED_MARGIN: Duration = Duration::from_millis(50);
/// Difference between `at` and our own clock that makes a request stale (7.1).
pub const STALE_AFTER: Duration = Duration::from_secs(60);

// -- 7 handoffs and messages ---------------------------------------------------------------------
/// Text of a running handoff that is kept for its followers; the result at the end is apart.
pub const HANDOFF_TEXT_BYTES: usize = 4 * MIB;
/// Tool events of a running handoff that are kept for its followers.
pub const HANDOFF_TOOL_EVENTS: usize = 4096;
/// First answer to a handoff.
pub const HANDOFF_ACCEPT_TIMEOUT: Duration = Duration::from_secs(10);
/// A whole handoff.
pub const HANDOFF_DEADLINE: Duration = Duration::from_secs(2 * 3600);
/// What the asking node waits longer for the next sign of a handoff than the node that runs it.
pub const HANDOFF_IDLE_MARGIN: Duration = Duration::from_secs(5);
/// Nodes asked in turn, as long as none has begun.
pub const HANDOFF_ATTEMPTS: usize = 3;
/// Task and context together.
pub const HANDOFF_BODY_BYTES: usize = MIB;
/// One line of a handoff's answer: the result at its end, escaped.
pub const HANDOFF_LINE_BYTES: usize = 16 * MIB;
/// Characters of a session's name.
pub const HANDOFF_SESSION_CHARS: usize = 64;
/// Handoffs under way, at either end.
pub const HANDOFF_RUNS: usize = 64;
/// The same for one asking node.
pub const HANDOFF_RUNS_PER_PEER: usize = 8;
/// An ended handoff and its result are kept this long (7.1).
pub const HANDOFF_MEMORY: Duration = RID_MEMORY;
/// Handoffs kept at once; the oldest that has ended makes room.
pub const HANDOFF_KEPT: usize = 1024;
/// Bytes of text and results kept at once (7.1).
pub const HANDOFF_KEPT_BYTES: usize = 64 * MIB;
/// First and longest pause between attempts to attach to a handoff whose link was lost.
pub const REATTACH_FIRST: Duration = Duration::from_millis(200);
/// See [`REATTACH_FIRST`].
pub const REATTACH_LONGEST: Duration = Duration::from_secs(2);
/// Answer to a `query`.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// One message.
pub const MESSAGE_BYTES: usize = 48 * KIB;
/// A message waits this long for its node, and its id is remembered as long.
pub const MESSAGE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// First answer to a message.
pub const MESSAGE_ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often what waits is tried without a sign that it would go through.
pub const MESSAGE_RETRY: Duration = Duration::from_secs(30);
/// Messages of ours that wait.
pub const MESSAGES_STORED: usize = 1000;
/// Bytes of them.
pub const MESSAGES_BYTES: usize = 16 * MIB;
/// Ids of messages taken from others that are remembered.
pub const MESSAGES_TAKEN: usize = 16_384;
/// Runs, messages and tool calls that wait for the gateway's process at once.
pub const BRIDGE_REQUESTS: usize = 256;
/// The gateway takes a message into a session within this.
pub const BRIDGE_MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

// -- 8 tools -------------------------------------------------------------------------------------
/// First answer to a request for a tool.
pub const TOOL_ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence of one that only reads.
pub const TOOL_READ_IDLE: Duration = Duration::from_secs(30);
/// One that only reads, as a whole.
pub const TOOL_READ_DEADLINE: Duration = Duration::from_secs(60);
/// Times one that only reads is asked again.
pub const TOOL_READ_RETRIES: usize = 2;
/// Longest output of one call.
pub const TOOL_OUTPUT_BYTES: usize = MIB;
/// Longest run of a command.
pub const EXEC_TIMEOUT: Duration = Duration::from_secs(1800);
/// Any other tool that may change something.
pub const TOOL_DEADLINE: Duration = EXEC_TIMEOUT;
/// From asking a command to end to ending it.
pub const EXEC_KILL_AFTER: Duration = Duration::from_secs(5);
/// What still holds the output open after the command itself ended is waited for this long.
pub const EXEC_LINGER: Duration = Duration::from_millis(500);
/// A command that is silent for this long is said to be alive.
pub const EXEC_KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Longest frame of a tool's answer (8.7).
pub const TOOL_FRAME_BYTES: usize = 32 * KIB - 64;
/// Longest `args` of a request.
pub const TOOL_ARGS_BYTES: usize = 24 * KIB;
/// Longest file that is written or edited.
pub const TOOL_FILE_BYTES: usize = 16 * MIB;
/// Entries of a folder that are listed.
pub const TOOL_LIST_ENTRIES: usize = 5000;
/// Tool requests of ours that are known by their id; the oldest that has ended makes room.
pub const TOOL_REQUESTS: usize = 1024;
/// How long after their end (7.2).
pub const TOOL_MEMORY: Duration = RID_MEMORY;
/// Longest answer that is kept whole; of a longer one its outcome is.
pub const TOOL_KEPT_ANSWER: usize = 4 * MIB;
/// Bytes of kept answers in all.
pub const TOOL_KEPT_BYTES: usize = 32 * MIB;
/// Tools under way for one asking node.
pub const TOOLS_PER_PEER: usize = 4;
/// Tools under way in all.
pub const TOOLS_AT_ONCE: usize = 64;

// -- 8.4 approvals -------------------------------------------------------------------------------
/// Longest wait for a person.
pub const APPROVAL_WAIT: Duration = Duration::from_secs(600);
/// From the end of that wait to the word of it, at the latest.
pub const APPROVAL_MARGIN: Duration = Duration::from_secs(30);
/// Requests that wait for a person, in all.
pub const APPROVALS: usize = 100;
/// The same of one asking node.
pub const APPROVALS_PER_PEER: usize = 5;
/// Longest content of a request that waits.
pub const APPROVAL_BODY_BYTES: usize = MIB;
/// Decided ones that are remembered, until their time is up.
pub const APPROVALS_REMEMBERED: usize = 1024;
/// Requests of another node that are shown here at once.
pub const APPROVALS_SHOWN_PER_NODE: usize = 32;
/// Bytes that all of them may hold.
pub const APPROVALS_SHOWN_BYTES: usize = 16 * MIB;
/// Longest description of a request, its arguments included, twice and escaped.
pub const APPROVAL_SHOWN_BYTES: usize = 256 * 1024;
/// Nodes at which requests that wait here are shown.
pub const APPROVERS: usize = 8;
/// Nodes whose requests are shown here.
pub const APPROVES_FOR: usize = 64;
/// How long a node may take to answer about an approval.
pub const APPROVAL_ANSWER: Duration = Duration::from_secs(15);
/// A node that may approve and cannot be reached is tried again after this, each time twice as late,
pub const APPROVAL_RETRY: Duration = Duration::from_secs(1);
/// up to this.
pub const APPROVAL_RETRY_MOST: Duration = Duration::from_secs(15);
/// Notices of requests that wait are sent this often at most.
pub const APPROVAL_NOTICE_EVERY: Duration = Duration::from_secs(10);
/// Requests that one notice names.
pub const APPROVAL_NOTICE_LINES: usize = 5;
/// Operator keys of a node.
pub const OPERATORS: usize = 16;

// -- 8.6 audit -----------------------------------------------------------------------------------
/// Lines that wait to be written.
pub const AUDIT_QUEUE: usize = 4096;
/// Lines written and synced together.
pub const AUDIT_BATCH: usize = 256;
/// Equal refusals within this time are one line.
pub const AUDIT_FOLD: Duration = Duration::from_secs(60);
/// Different refusals of one key within that time; more are told together.
pub const AUDIT_FOLDS: usize = 32;
/// How often the chain is signed.
pub const AUDIT_HEAD_EVERY: Duration = Duration::from_secs(3600);
/// Characters of an action or rule that are kept.
pub const AUDIT_NAME_CHARS: usize = 192;
/// A file is followed by the next at this size.
pub const AUDIT_FILE_BYTES: u64 = 16 << 20;
/// Files kept: half a gigabyte, some million lines.
pub const AUDIT_FILES: usize = 32;

/// Events kept for those who watch; a slower reader hears of a gap.
pub const EVENTS_KEPT: usize = 1024;
/// Clients that watch events at once.
pub const EVENT_WATCHERS: usize = 64;
/// A client that takes no event for this long is cut off.
pub const EVENT_SEND: Duration = Duration::from_secs(10);
/// A stream of events that is silent for this long says that it lives.
pub const EVENT_KEEP_ALIVE: Duration = Duration::from_secs(15);

// -- 9 local surface -----------------------------------------------------------------------------
/// Connections to the local API.
pub const LOCAL_CONNECTIONS: usize = 2048;
/// Requests at once with one token.
pub const REQUESTS_PER_TOKEN: usize = 1024;
/// From the first byte of a request to the end of its headers.
pub const LOCAL_HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Header bytes of a local request.
pub const LOCAL_HEADER_BYTES: usize = 16 * KIB;
/// A connection without a request: longer than any SDK keeps one in its pool.
pub const LOCAL_IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Silence within an upload.
pub const LOCAL_BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a connection with a request under way is looked at for a client that went away.
pub const LOCAL_WATCH: Duration = Duration::from_millis(50);
/// Named local tokens.
pub const LOCAL_TOKENS: usize = 256;
