//! What each frame says, as types: the source of the schemas of protocol 5.2, one for each type.
//!
//! Frames are written by hand and read into borrowed structs elsewhere, because they are on the hot
//! path; nothing at run time uses these types. Tests check every frame that is written against them.
//! Fields of later versions are ignored by readers, so no schema forbids any.

use std::collections::BTreeMap;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;

/// 32 lower-case hexadecimal digits.
const HEX16: &str = "^[0-9a-f]{32}$";
/// 8 of them.
const HEX4: &str = "^[0-9a-f]{8}$";
/// A frame's name: a ULID.
const ULID: &str = "^[0-7][0-9A-HJKMNP-TV-Z]{25}$";
/// A node's name.
const NODE: &str = "^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$";
/// 32 bytes as base64url without padding.
const KEY: &str = "^[A-Za-z0-9_-]{43}$";
/// Largest integer of any frame.
const MAX: u64 = super::limits::JSON_INTEGER_MAX;

/// JSON of the inner frame that a session carries (protocol 5.3).
#[derive(JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(dead_code, reason = "read by the derive alone")]
enum Inner {
    /// Asks for a model. The data is the HTTP body, verbatim.
    ModelReq {
        #[schemars(regex(pattern = HEX16))]
        rid: String,
        /// Model id on the node asked.
        model: String,
        /// A model route: `/v1/chat/completions`.
        path: String,
        /// Headers that pass.
        #[serde(default)]
        hdr: BTreeMap<String, String>,
        /// Whether the answer is streamed.
        #[serde(default)]
        stream: bool,
        /// Milliseconds it may take.
        #[schemars(range(max = MAX))]
        dl: u64,
        /// Length of the whole body.
        #[schemars(range(max = MAX))]
        blen: u64,
        /// Idempotency key.
        idem: Option<String>,
        /// Nodes it has passed.
        #[serde(default)]
        hops: Vec<String>,
        /// Who asks, as the asking side says.
        actor: Option<Actor>,
    },
    /// Hands a task to an agent. The data is the task, then its context.
    HandoffReq {
        #[schemars(regex(pattern = HEX16))]
        rid: String,
        /// Milliseconds since the session began.
        #[schemars(range(max = MAX))]
        at: u64,
        /// Milliseconds it may take.
        #[schemars(range(max = MAX))]
        dl: u64,
        /// Length of the whole body.
        #[schemars(range(max = MAX))]
        blen: u64,
        /// Agent id on the node asked.
        agent: Option<String>,
        /// Session of the agent to go on in.
        session: Option<String>,
        /// Bytes of the task; what follows in the body is the context.
        #[schemars(range(max = MAX))]
        tlen: Option<u64>,
        /// Longest silence in milliseconds.
        #[schemars(range(max = MAX))]
        idle: Option<u64>,
        /// The run to follow instead of a new one.
        attach: Option<Attach>,
        /// Nodes it has passed.
        #[serde(default)]
        hops: Vec<String>,
        /// Who asks, as the asking side says.
        actor: Option<Actor>,
    },
    /// Asks for a tool to be run. The data is the content for a write.
    ToolReq {
        #[schemars(regex(pattern = HEX16))]
        rid: String,
        /// Milliseconds since the session began.
        #[schemars(range(max = MAX))]
        at: u64,
        /// Milliseconds it may take.
        #[schemars(range(max = MAX))]
        dl: u64,
        /// Length of the whole body.
        #[schemars(range(max = MAX))]
        blen: u64,
        /// Name of the tool.
        tool: String,
        /// Its arguments.
        args: Value,
        /// Nodes it has passed.
        #[serde(default)]
        hops: Vec<String>,
        /// Who asks, as the asking side says.
        actor: Option<Actor>,
    },
    /// Leaves a message for an agent. The data is its text.
    Send {
        #[schemars(regex(pattern = HEX16))]
        rid: String,
        /// Milliseconds it may take.
        #[schemars(range(max = MAX))]
        dl: u64,
        /// Length of the whole body.
        #[schemars(range(max = MAX))]
        blen: u64,
        /// Agent id on the node asked.
        agent: Option<String>,
        /// Media type of the text.
        mime: String,
        /// Milliseconds for which it is worth delivering.
        #[schemars(range(max = MAX))]
        exp: u64,
        /// Nodes it has passed.
        #[serde(default)]
        hops: Vec<String>,
        /// Who asks, as the asking side says.
        actor: Option<Actor>,
    },
    /// Shows a request that waits at the sender for a person. The data is what is shown, then the content.
    ApprovalReq {
        #[schemars(regex(pattern = HEX16))]
        rid: String,
        /// Milliseconds it may still wait.
        #[schemars(range(max = MAX))]
        dl: u64,
        /// Length of the whole body.
        #[schemars(range(max = MAX))]
        blen: u64,
        /// Names the request on its node.
        #[schemars(regex(pattern = HEX4))]
        id: String,
        /// Bytes of what is shown; what follows in the body is the content.
        #[schemars(range(max = MAX))]
        slen: u64,
    },
    /// What a person said of a request that waits at the receiver.
    Approval {
        #[schemars(regex(pattern = HEX16))]
        rid: String,
        /// Milliseconds it may take.
        #[schemars(range(max = MAX))]
        dl: u64,
        /// Length of the whole body: 0.
        #[schemars(range(max = MAX))]
        blen: u64,
        /// Names the request on its node.
        #[schemars(regex(pattern = HEX4))]
        id: String,
        /// What was said.
        decision: Word,
        /// For an approval: the operator's signature, base64url.
        token: Option<String>,
    },
    /// The request was taken.
    Accept {
        #[schemars(regex(pattern = HEX16))]
        rid: String,
        /// Number of the item in its half-stream.
        #[schemars(range(max = MAX))]
        seq: u64,
        /// Requests before it.
        #[schemars(range(max = MAX))]
        queue: Option<u64>,
        /// How far it has come.
        phase: Option<Phase>,
        /// Milliseconds for which a person is asked at most.
        #[schemars(range(max = MAX))]
        left: Option<u64>,
    },
    /// Begin of an answer; perhaps all of it.
    Head {
        #[schemars(regex(pattern = HEX16))]
        rid: String,
        /// Number of the item in its half-stream.
        #[schemars(range(max = MAX))]
        seq: u64,
        /// HTTP-like status.
        status: u16,
        /// What else the asking side needs to know.
        meta: serde_json::Map<String, Value>,
        #[serde(flatten)]
        fin: Fin,
    },
    /// A piece of a body or of an answer, which is the data.
    Chunk {
        #[schemars(regex(pattern = HEX16))]
        rid: String,
        /// Of which half-stream.
        dir: Dir,
        /// Number of the item in its half-stream.
        #[schemars(range(max = MAX))]
        seq: u64,
        #[serde(flatten)]
        fin: Fin,
    },
    /// End of an answer, apart.
    End {
        #[schemars(regex(pattern = HEX16))]
        rid: String,
        /// Number of the item in its half-stream.
        #[schemars(range(max = MAX))]
        seq: u64,
        /// Whether the work succeeded.
        ok: bool,
        /// Token usage as the provider told it.
        usage: Option<Value>,
        /// Result, for kinds that have one.
        result: Option<Value>,
    },
    /// The request failed, or was refused.
    Error {
        #[schemars(regex(pattern = HEX16))]
        rid: Option<String>,
        /// Number of the item; none from a node that keeps nothing of the request.
        #[schemars(range(max = MAX))]
        seq: Option<u64>,
        /// One of the codes of protocol 7.5, or of a later version.
        code: String,
        /// For people.
        message: String,
        /// Whether the same request may be tried again.
        retryable: bool,
        /// `not_started`: it provably did nothing.
        stage: Stage,
        /// When to try again.
        #[schemars(range(max = MAX))]
        retry_after_ms: Option<u64>,
    },
    /// What has arrived, and how far the other side may go on.
    Ack {
        /// Request, half-stream, next item wanted, credit in bytes since the begin.
        a: Vec<(String, Dir, u64, u64)>,
    },
    /// The asking side wants no more.
    Cancel {
        #[schemars(regex(pattern = HEX16))]
        rid: String,
        /// One of the codes of protocol 7.5.
        reason: String,
    },
    /// How far has it come?
    Query {
        #[schemars(regex(pattern = HEX16))]
        rid: String,
    },
    /// So far.
    State {
        #[schemars(regex(pattern = HEX16))]
        rid: String,
        /// How far it has come.
        phase: Phase,
        /// Next item of the answer.
        #[schemars(range(max = MAX))]
        next: u64,
    },
    /// A sign of life.
    Noop {},
}

/// The end that a `head` or `chunk` may carry.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "read by the derive alone")]
struct Fin {
    /// Set on the last item of a half-stream.
    fin: Option<bool>,
    /// With `fin`: whether the work succeeded.
    ok: Option<bool>,
    /// With `fin`: token usage as the provider told it.
    usage: Option<Value>,
    /// With `fin`: result, for kinds that have one.
    result: Option<Value>,
}

/// How far the follower of a run has come.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "read by the derive alone")]
struct Attach {
    /// The request that began the run.
    #[schemars(regex(pattern = HEX16))]
    rid: String,
    /// Bytes of text it has.
    #[schemars(range(max = MAX))]
    text: u64,
    /// Tool events it has.
    #[schemars(range(max = MAX))]
    tools: u64,
}

#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "read by the derive alone")]
enum Actor {
    User,
    Agent,
}

#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "read by the derive alone")]
enum Word {
    Approve,
    Deny,
}

#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "read by the derive alone")]
enum Dir {
    Up,
    Down,
}

#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "read by the derive alone")]
enum Stage {
    NotStarted,
    Started,
}

#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "read by the derive alone")]
enum Phase {
    Unknown,
    Accepted,
    ApprovalPending,
    Running,
    Done,
}

/// Header of a record between neighbours (protocol 5.3).
#[derive(JsonSchema)]
#[serde(tag = "y", rename_all = "snake_case")]
#[expect(dead_code, reason = "read by the derive alone")]
enum Link {
    /// Are you there?
    Ping {
        /// Comes back in the pong.
        #[schemars(range(max = MAX))]
        n: u64,
    },
    /// Yes.
    Pong {
        /// From the ping.
        #[schemars(range(max = MAX))]
        n: u64,
    },
    /// The sender goes away soon.
    Goaway {
        /// Why.
        why: String,
        /// In about how many milliseconds.
        #[schemars(range(max = MAX))]
        ms: u64,
    },
    /// The sender closes now, on purpose.
    Bye {},
    /// Hashes of what the sender knows are in the body.
    Digest {
        /// Whether link states are among it.
        #[serde(default)]
        ls: bool,
    },
    /// Versions of what the sender knows are in the body.
    Vector {
        /// Whether the receiver is to tell its own in return.
        #[serde(default)]
        ask: bool,
    },
    /// Names of records that the sender lacks are in the body.
    Want {},
}

/// Body of a hint to the origin of a frame (protocol 5.3).
#[derive(JsonSchema)]
#[serde(tag = "y", rename_all = "snake_case")]
#[expect(dead_code, reason = "read by the derive alone")]
enum Notice {
    /// The session is unknown here.
    E2eReset {
        /// Name of the session.
        #[schemars(regex(pattern = HEX16))]
        s: String,
    },
    /// A relay dropped a frame.
    LinkDrop {
        /// Name of the frame.
        #[schemars(regex(pattern = ULID))]
        i: String,
        /// Why.
        why: String,
        /// Name of its session, or what ties its handshake together.
        #[schemars(regex(pattern = HEX16))]
        s: String,
    },
}

/// Headers of records that are not of one link (protocol 5.1, 6.1).
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "read by the derive alone")]
enum Header {
    /// Header of a routed record.
    Routed {
        /// Names the frame.
        #[schemars(regex(pattern = ULID))]
        i: String,
        /// Origin.
        #[schemars(regex(pattern = NODE))]
        f: String,
        /// Destination.
        #[schemars(regex(pattern = NODE))]
        t: String,
        /// Session.
        #[schemars(regex(pattern = HEX16))]
        s: String,
        /// Number within the session.
        #[schemars(range(max = MAX))]
        n: u64,
    },
    /// Header of a signed record.
    Gossip {
        /// `desc`, `ls`, `rot`, `leave`, or one of a later version.
        k: String,
        /// Whose record it is.
        #[schemars(regex(pattern = NODE))]
        node: String,
        /// The key that signs it.
        #[schemars(regex(pattern = KEY))]
        key: String,
        /// Incarnation.
        #[schemars(range(max = MAX))]
        inc: u64,
        /// Version within the incarnation.
        #[schemars(range(max = MAX))]
        ver: u64,
    },
}

/// The variants of a type, each a schema that stands alone, in the order of the source.
fn variants<T: JsonSchema>() -> Vec<Value> {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    let dialect = settings.meta_schema.clone();
    let schema = settings.into_generator().into_root_schema_for::<T>();
    let mut all = schema.to_value();
    let list = all.get_mut("oneOf").map(Value::take);
    let list = list.or_else(|| all.get_mut("anyOf").map(Value::take));
    let Some(Value::Array(mut list)) = list else {
        return Vec::new();
    };
    for variant in &mut list {
        if let (Some(object), Some(dialect)) = (variant.as_object_mut(), &dialect) {
            object.insert("$schema".to_owned(), dialect.to_string().into());
        }
    }
    list
}

/// The constant that tells a variant from its sisters.
fn tag(variant: &Value, key: &str) -> String {
    let constant = &variant["properties"][key]["const"];
    constant.as_str().unwrap_or_default().to_owned()
}

/// Every schema of a frame with its name: `inner-chunk`, `link-ping`, `notice-e2e_reset`,
/// `header-routed`.
#[must_use]
pub fn schemas() -> Vec<(String, Value)> {
    let tagged = |layer: &str, key: &str, variants: Vec<Value>| -> Vec<(String, Value)> {
        let named = |v: Value| (format!("{layer}-{}", tag(&v, key)), v);
        variants.into_iter().map(named).collect()
    };
    let headers = ["header-routed", "header-gossip"].map(str::to_owned);
    let mut all = tagged("inner", "type", variants::<Inner>());
    all.extend(tagged("link", "y", variants::<Link>()));
    all.extend(tagged("notice", "y", variants::<Notice>()));
    all.extend(headers.into_iter().zip(variants::<Header>()));
    all
}

/// Panics unless a written frame is as its schema says (T46). Builds for development hold every frame
/// against its schema, so that the tests of whole nodes do, too; a release looks at none.
#[cfg(debug_assertions)]
#[expect(
    clippy::panic,
    reason = "a frame that is not as we promise is a bug, and only in builds that look for them"
)]
pub(crate) fn assert_written(layer: &str, key: &str, json: &[u8]) {
    use std::{collections::HashMap, sync::LazyLock};
    static VALIDATORS: LazyLock<HashMap<String, jsonschema::Validator>> = LazyLock::new(|| {
        let compiled = |(name, schema): (String, Value)| {
            let validator = jsonschema::validator_for(&schema).expect("our schemas are schemas");
            (name, validator)
        };
        schemas().into_iter().map(compiled).collect()
    });
    let value: Value = serde_json::from_slice(json).expect("frames are JSON");
    let kind = value[key].as_str().unwrap_or(key);
    let name = format!("{layer}-{kind}");
    let Some(validator) = VALIDATORS.get(&name) else {
        panic!("`{name}` is written and has no schema in wire/shapes.rs");
    };
    if let Err(error) = validator.validate(&value) {
        panic!("{name}: {error}: {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_the_protocol_has_a_schema_of_its_own() {
        let names: Vec<String> = schemas().into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "inner-model_req",
                "inner-handoff_req",
                "inner-tool_req",
                "inner-send",
                "inner-approval_req",
                "inner-approval",
                "inner-accept",
                "inner-head",
                "inner-chunk",
                "inner-end",
                "inner-error",
                "inner-ack",
                "inner-cancel",
                "inner-query",
                "inner-state",
                "inner-noop",
                "link-ping",
                "link-pong",
                "link-goaway",
                "link-bye",
                "link-digest",
                "link-vector",
                "link-want",
                "notice-e2e_reset",
                "notice-link_drop",
                "header-routed",
                "header-gossip",
            ]
        );
    }

    #[test]
    fn schemas_refuse_what_is_wrong_and_bear_what_is_new() {
        let rid = "0".repeat(32);
        let all: std::collections::HashMap<_, _> = schemas().into_iter().collect();
        let chunk = jsonschema::validator_for(&all["inner-chunk"]).unwrap();
        let good =
            serde_json::json!({"type": "chunk", "rid": rid, "dir": "up", "seq": 1, "later": []});
        assert!(chunk.is_valid(&good));
        for (key, bad) in [
            ("type", "noop".into()),
            ("rid", "0".into()),
            ("dir", "left".into()),
            ("seq", (-1).into()),
            ("seq", Value::Null),
            ("fin", 1.into()),
        ] {
            let mut frame = good.clone();
            frame[key] = bad;
            assert!(!chunk.is_valid(&frame), "{frame}");
        }
    }
}
