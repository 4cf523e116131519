//! What a node says it offers: payload of a `desc` record (protocol 6.1).
//!
//! Nothing in it grants a right. Texts are written by the other node and may be shown to people and
//! models, so control characters and over-long parts are removed before anybody sees them.

use std::collections::HashSet;

use serde_json::Value;

use super::view::{AgentOffer, Descriptor, ModelOffer};
use crate::wire::{
    json,
    limits::{
        DESCRIPTOR_ADDRESSES, DESCRIPTOR_AGENTS, DESCRIPTOR_BYTES, DESCRIPTOR_MODELS,
        DESCRIPTOR_STRING_CHARS, DESCRIPTOR_TAGS,
    },
};

/// The payload, cut down until it fits: first the texts go, then the last models.
#[must_use]
pub fn payload(descriptor: &Descriptor) -> Vec<u8> {
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

/// Reads the payload of another node's record, cleaned; none when it is no descriptor.
#[must_use]
pub fn read(payload: &[u8]) -> Option<Descriptor> {
    json::object(payload).ok().map(clean)
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
    clean_names(&mut descriptor.addresses);
    descriptor.addresses.truncate(DESCRIPTOR_ADDRESSES);
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
    fn descriptor_comes_back() {
        assert_eq!(read(&payload(&sample())), Some(sample()));
        assert_eq!(read(b"[]"), None);
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
        let long = Descriptor {
            models: (0..256)
                .map(|n| model(&format!("model-{n}-{}", "x".repeat(60))))
                .collect(),
            ..Descriptor::default()
        };
        let payload = payload(&long);
        assert!(payload.len() <= DESCRIPTOR_BYTES);
        let read = read(&payload).unwrap();
        assert!(!read.models.is_empty());
        assert_eq!(read.models[0].description, "");
    }

    proptest! {
        #[test]
        fn any_bytes_read_or_fail(payload: Vec<u8>) {
            let _ = read(&payload);
        }
    }
}
