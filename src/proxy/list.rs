//! `GET /v1/models` and `GET /v1/models/{id}`: every model usable from here, as `node/model` and as the
//! bare id.

use std::collections::BTreeSet;

use http::{HeaderValue, Response, header::CONTENT_TYPE};
use serde::Serialize;

use super::{
    body::ReplyBody,
    error::{self, Asked},
};
use crate::{
    ids::NodeId,
    models::catalog::{Catalog, Usable},
    wire::code::{Code, Failure},
};

#[derive(Serialize)]
struct Model<'a> {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'a str,
    name: &'a str,
    context_window: u64,
    max_tokens: u64,
    input: &'a [String],
    reasoning: bool,
    api: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    locality: Option<&'a str>,
    path: &'static str,
    load: Load,
}

#[derive(Serialize)]
struct Load {
    active: Option<u32>,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

fn model(id: String, usable: &Usable) -> Model<'_> {
    let offer = &usable.offer;
    Model {
        id,
        object: "model",
        // Nobody knows; clients only want a number.
        created: 0,
        owned_by: usable.node.as_str(),
        name: if offer.name.is_empty() {
            &offer.id
        } else {
            &offer.name
        },
        context_window: offer.context_window,
        max_tokens: offer.max_tokens,
        input: &offer.input,
        reasoning: offer.reasoning,
        api: &offer.api,
        locality: offer.locality.as_deref(),
        path: usable.path.as_str(),
        load: Load {
            active: usable.active,
        },
    }
}

/// Answers the list, or one model of it; on `/nodes/{node}` only that node's, by their own ids.
pub fn get(
    catalog: &Catalog,
    node: Option<&NodeId>,
    wanted: Option<&str>,
    asked: Asked,
) -> Response<ReplyBody> {
    let mut usable = catalog.usable();
    if let Some(node) = node {
        usable.retain(|u| u.node == *node);
    }
    let mut seen = BTreeSet::new();
    let mut data = Vec::new();
    for entry in &usable {
        if node.is_none() {
            data.push(model(format!("{}/{}", entry.node, entry.offer.id), entry));
        }
        // The first of an id is the node a bare request goes to.
        if seen.insert(&entry.offer.id) {
            data.push(model(entry.offer.id.clone(), entry));
        }
    }
    let text = match wanted {
        None => serde_json::to_string(&List {
            object: "list",
            data,
        }),
        Some(wanted) => match data.iter().find(|model| model.id == wanted) {
            Some(model) => serde_json::to_string(model),
            None => {
                let message =
                    "no live node lends that model; `GET /v1/models` lists what they lend";
                return error::response(&Failure::not_started(Code::ModelNotFound, message), asked);
            }
        },
    };
    json(text.unwrap_or_default(), asked)
}

/// A JSON answer.
pub fn json(text: String, asked: Asked) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::whole(text));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    error::stamp(&mut response, asked.id);
    response
}
