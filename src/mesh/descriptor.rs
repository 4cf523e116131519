//! The signed record in which a node describes itself (`desc`, protocol 6.1).
//!
//! ```text
//! header {"k":"desc","node","key","inc","ver"} | body: u16 siglen || sig("rec", lp(header) || payload) || payload
//! ```
//!
//! Nothing in it grants a right. Texts are written by the other node and may be shown to people and
//! models, so control characters and over-long parts are removed before anybody sees them.

use std::collections::HashSet;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::Value;

use super::view::{AgentOffer, Descriptor, ModelOffer};
use crate::{
    crypto::identity::{Identity, Label, PublicKey},
    ids::NodeId,
    wire::{
        frame::GossipHeader,
        json,
        limits::{
            DESCRIPTOR_AGENTS, DESCRIPTOR_BYTES, DESCRIPTOR_MODELS, DESCRIPTOR_STRING_CHARS,
            DESCRIPTOR_TAGS,
        },
    },
};

const KIND: &str = "desc";
const SIGNATURE_BYTES: usize = 64;

/// Which of two records of one node is newer: `(inc, ver)`.
pub type Version = (u64, u64);

/// One signed record as it lies on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// Header JSON.
    pub header: Bytes,
    /// Length, signature, payload.
    pub body: Bytes,
}

/// What a verified record says.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// How new it is.
    pub version: Version,
    /// Its payload as signed, to tell repetition from equivocation.
    pub payload: Bytes,
    /// What it says, cleaned.
    pub descriptor: Descriptor,
}

/// Why a record is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The header is no header at all: the neighbour itself breaks the protocol.
    #[error("malformed gossip header")]
    Header,
    /// Another kind of record.
    #[error("kind of record not handled")]
    Kind,
    /// Not from the node whose link it came over.
    #[error("record of another node")]
    Foreign,
    /// Sizes do not fit, or the payload is not what it should be.
    #[error("malformed record")]
    Malformed,
    /// The signature is wrong.
    #[error("signature does not verify")]
    Forged,
}

/// `lp(header) || payload`, in parts.
fn signed_parts<'a>(length: &'a [u8; 2], header: &'a [u8], payload: &'a [u8]) -> [&'a [u8]; 3] {
    [length, header, payload]
}

fn length_of(bytes: &[u8]) -> [u8; 2] {
    // Headers are at most 512 bytes, signatures 64.
    (bytes.len() as u16).to_be_bytes()
}

/// Signs what we say of ourselves.
#[must_use]
pub fn sign(
    identity: &Identity,
    node: &NodeId,
    (inc, ver): Version,
    descriptor: &Descriptor,
) -> Signed {
    let mut header = BytesMut::new();
    GossipHeader {
        k: KIND.into(),
        node: node.clone(),
        key: identity.public().0,
        inc,
        ver,
    }
    .put(&mut header);
    let payload = payload(descriptor);
    let length = length_of(&header);
    let signature = identity.sign(Label::Record, &signed_parts(&length, &header, &payload));
    let mut body = BytesMut::with_capacity(2 + SIGNATURE_BYTES + payload.len());
    body.put_slice(&length_of(&signature));
    body.put_slice(&signature);
    body.put_slice(&payload);
    Signed {
        header: header.freeze(),
        body: body.freeze(),
    }
}

/// The payload, cut down until it fits: first the texts go, then the last models.
fn payload(descriptor: &Descriptor) -> Vec<u8> {
    let mut shown = clean(descriptor.clone());
    let encode = |shown: &Descriptor| serde_json::to_vec(shown).unwrap_or_default();
    let mut bytes = encode(&shown);
    if bytes.len() > DESCRIPTOR_BYTES {
        tracing::warn!(
            bytes = bytes.len(),
            "descriptor too long for one record: descriptions are left out"
        );
        for agent in &mut shown.agents {
            agent.description.clear();
        }
        for model in &mut shown.models {
            model.description.clear();
            model.cost = None;
        }
        bytes = encode(&shown);
    }
    while bytes.len() > DESCRIPTOR_BYTES && !(shown.models.is_empty() && shown.agents.is_empty()) {
        shown.models.truncate(shown.models.len() * 3 / 4);
        if shown.models.is_empty() {
            shown.agents.truncate(shown.agents.len() * 3 / 4);
        }
        bytes = encode(&shown);
        tracing::warn!(
            models = shown.models.len(),
            "descriptor too long for one record: the last models are left out"
        );
    }
    bytes
}

/// Opens a record that came over the link to `node`, whose key is `key`.
///
/// # Errors
/// [`RecordError`].
pub fn open(
    header: &[u8],
    body: &Bytes,
    node: &NodeId,
    key: &PublicKey,
) -> Result<Statement, RecordError> {
    let read = GossipHeader::decode(header).map_err(|_| RecordError::Header)?;
    if read.k != KIND {
        return Err(RecordError::Kind);
    }
    if read.node != *node || read.key != key.0 {
        return Err(RecordError::Foreign);
    }
    let (length, rest) = body
        .split_first_chunk::<2>()
        .ok_or(RecordError::Malformed)?;
    let (signature, payload) = rest
        .split_first_chunk::<SIGNATURE_BYTES>()
        .ok_or(RecordError::Malformed)?;
    if *length != length_of(signature) || payload.len() > DESCRIPTOR_BYTES {
        return Err(RecordError::Malformed);
    }
    let header_length = length_of(header);
    if !key.verify_strict(
        Label::Record,
        &signed_parts(&header_length, header, payload),
        signature,
    ) {
        return Err(RecordError::Forged);
    }
    let descriptor = json::parse(payload).map_err(|_| RecordError::Malformed)?;
    Ok(Statement {
        version: (read.inc, read.ver),
        payload: body.slice(2 + SIGNATURE_BYTES..),
        descriptor: clean(descriptor),
    })
}

/// Characters that change how the text around them is shown, without showing themselves.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A text of another node as it may be shown: one line, bounded, nothing invisible.
fn clean_text(text: &mut String) {
    let fine = text.len() <= DESCRIPTOR_STRING_CHARS && !text.chars().any(is_invisible);
    if !fine {
        *text = text
            .chars()
            .map(|c| if c.is_whitespace() { ' ' } else { c })
            .filter(|c| !is_invisible(*c))
            .take(DESCRIPTOR_STRING_CHARS)
            .collect();
    }
}

/// Whether a name can be used as it stands; one that had to be altered would name something else.
fn is_name(text: &str) -> bool {
    let chars = text.chars().count();
    (1..=DESCRIPTOR_STRING_CHARS).contains(&chars) && !text.chars().any(is_invisible)
}

fn clean_names(names: &mut Vec<String>) {
    let mut seen = HashSet::new();
    names.retain(|name| is_name(name) && seen.insert(name.clone()));
    names.truncate(DESCRIPTOR_TAGS);
}

/// Prices are objects of numbers; anything else in them is dropped.
fn clean_cost(cost: &Value, depth: usize) -> Option<Value> {
    match cost {
        Value::Number(_) | Value::Bool(_) => Some(cost.clone()),
        Value::Object(fields) if depth > 0 => Some(Value::Object(
            fields
                .iter()
                .filter(|(name, _)| is_name(name))
                .filter_map(|(name, value)| Some((name.clone(), clean_cost(value, depth - 1)?)))
                .collect(),
        )),
        Value::Array(items) if depth > 0 => Some(Value::Array(
            items
                .iter()
                .filter_map(|value| clean_cost(value, depth - 1))
                .collect(),
        )),
        Value::Object(_) | Value::Array(_) | Value::Null | Value::String(_) => None,
    }
}

/// Cleans and clamps everything (protocol 6.1).
#[must_use]
pub fn clean(mut descriptor: Descriptor) -> Descriptor {
    clean_text(&mut descriptor.software);
    let mut ids = HashSet::new();
    descriptor
        .agents
        .retain(|agent| is_name(&agent.id) && ids.insert(agent.id.clone()));
    descriptor.agents.truncate(DESCRIPTOR_AGENTS);
    for AgentOffer {
        description, tags, ..
    } in &mut descriptor.agents
    {
        clean_text(description);
        clean_names(tags);
    }
    ids.clear();
    descriptor
        .models
        .retain(|model| is_name(&model.id) && ids.insert(model.id.clone()));
    descriptor.models.truncate(DESCRIPTOR_MODELS);
    for model in &mut descriptor.models {
        clean_model(model);
    }
    clean_names(&mut descriptor.tags);
    clean_names(&mut descriptor.tools);
    clean_names(&mut descriptor.capabilities);
    descriptor
}

fn clean_model(model: &mut ModelOffer) {
    for text in [&mut model.name, &mut model.api, &mut model.description] {
        clean_text(text);
    }
    if let Some(locality) = &mut model.locality {
        clean_text(locality);
    }
    clean_names(&mut model.input);
    model.cost = model.cost.as_ref().and_then(|cost| clean_cost(cost, 4));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node() -> NodeId {
        "office-01".parse().unwrap()
    }

    fn model(id: &str) -> ModelOffer {
        ModelOffer {
            id: id.into(),
            api: "openai-completions".into(),
            description: "d".repeat(100),
            ..ModelOffer::default()
        }
    }

    fn sample() -> Descriptor {
        Descriptor {
            software: "clawmatrix/0.1.0".into(),
            models: vec![model("qwen3-32b"), model("org/other")],
            tags: vec!["gpu".into()],
            ..Descriptor::default()
        }
    }

    #[test]
    fn signed_record_comes_back() {
        let identity = Identity::generate();
        let signed = sign(&identity, &node(), (7, 3), &sample());
        let key = identity.public();
        let statement = open(&signed.header, &signed.body, &node(), &key).unwrap();
        assert_eq!(statement.version, (7, 3));
        assert_eq!(statement.descriptor, sample());
    }

    /// T65 for one link.
    #[test]
    fn altered_or_foreign_records_are_refused() {
        let (identity, other) = (Identity::generate(), Identity::generate());
        let signed = sign(&identity, &node(), (7, 3), &sample());
        let key = identity.public();
        for at in 0..signed.body.len() {
            let mut body = signed.body.to_vec();
            body[at] ^= 1;
            assert!(
                open(&signed.header, &body.into(), &node(), &key).is_err(),
                "byte {at}"
            );
        }
        let newer = String::from_utf8(signed.header.to_vec())
            .unwrap()
            .replace("\"ver\":3", "\"ver\":4");
        assert_eq!(
            open(newer.as_bytes(), &signed.body, &node(), &key),
            Err(RecordError::Forged)
        );
        assert_eq!(
            open(&signed.header, &signed.body, &node(), &other.public()),
            Err(RecordError::Foreign)
        );
        assert_eq!(
            open(
                &signed.header,
                &signed.body,
                &"home-01".parse().unwrap(),
                &key
            ),
            Err(RecordError::Foreign)
        );
        assert_eq!(
            open(b"[]", &signed.body, &node(), &key),
            Err(RecordError::Header)
        );
    }

    #[test]
    fn texts_are_made_inert() {
        let mut odd = sample();
        odd.software = format!("a\u{1b}[31m\nb\u{202e}{}", "x".repeat(500));
        odd.models.push(model("bad\nname"));
        odd.models.push(model(""));
        odd.models.push(model("qwen3-32b"));
        odd.models[0].cost =
            Some(serde_json::json!({"input": 1.5, "note": "x", "deep": {"a": [1, "b"]}}));
        odd.tags = (0..100).map(|n| format!("t{n}")).collect();
        let clean = clean(odd);
        assert_eq!(clean.software.chars().count(), 256);
        assert!(clean.software.starts_with("a[31m b"));
        let ids: Vec<&str> = clean.models.iter().map(|m| m.id.as_str()).collect();
        assert_eq!(ids, ["qwen3-32b", "org/other"]);
        assert_eq!(
            clean.models[0].cost,
            Some(serde_json::json!({"input": 1.5, "deep": {"a": [1]}}))
        );
        assert_eq!(clean.tags.len(), 64);
    }

    #[test]
    fn too_long_descriptors_are_cut_down() {
        let identity = Identity::generate();
        let long = Descriptor {
            models: (0..256)
                .map(|n| model(&format!("model-{n}-{}", "x".repeat(60))))
                .collect(),
            ..Descriptor::default()
        };
        let signed = sign(&identity, &node(), (1, 1), &long);
        let statement = open(&signed.header, &signed.body, &node(), &identity.public()).unwrap();
        assert!(statement.payload.len() <= DESCRIPTOR_BYTES);
        assert!(!statement.descriptor.models.is_empty());
        assert_eq!(statement.descriptor.models[0].description, "");
    }

    proptest! {
        #[test]
        fn any_bytes_open_or_fail(header: Vec<u8>, body: Vec<u8>) {
            let key = PublicKey([1; 32]);
            prop_assert!(open(&header, &body.into(), &node(), &key).is_err());
        }
    }
}
