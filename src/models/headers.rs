//! Which headers cross the tunnel. The rest belongs to one hop, names our caller, or opens doors.
//!
//! Header names are lower case, as hyper hands them out. A set that crosses the mesh is one small JSON
//! object, `hdr` (protocol 5.3).

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::splice::push_string;
use crate::wire::limits::HDR_BYTES;

/// Vendor headers a client may send to a provider, apart from those in `x-`.
const REQUEST: &[&str] = &[
    "accept",
    "user-agent",
    "http-referer",
    "traceparent",
    "tracestate",
    "prefer",
];

/// Vendor headers a client needs of an answer, apart from those in `x-`.
const RESPONSE: &[&str] = &[
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "location",
    "request-id",
    "retry-after",
    "retry-after-ms",
];

/// Families of vendor headers, both ways.
const FAMILIES: &[&str] = &["anthropic-", "openai-", "x-"];

/// Members of `x-` that are no vendor's: credentials, what proxies add, what browsers obey, ours.
const NOT_VENDOR: &[&str] = &[
    "x-accel-",
    "x-api-key",
    "x-auth",
    "x-clawmatrix-",
    "x-content-type-options",
    "x-forwarded-",
    "x-frame-options",
    "x-goog-api-key",
    "x-goog-iam-",
    "x-http-method",
    "x-powered-by",
    "x-real-ip",
    "x-xss-protection",
];

fn is_vendor(name: &str) -> bool {
    FAMILIES.iter().any(|family| name.starts_with(family))
        && !NOT_VENDOR.iter().any(|other| name.starts_with(other))
}

/// Whether a client's header goes to the provider. `content-type` is one of them; lengths, codings and
/// credentials are not.
#[must_use]
pub fn request_passes(name: &str) -> bool {
    name == "content-type" || REQUEST.contains(&name) || (is_vendor(name) && name != "x-request-id")
}

/// Whether a provider's header goes to the client. `x-request-id` is ours on every answer; the
/// provider's comes as `x-upstream-request-id`.
#[must_use]
pub fn response_passes(name: &str) -> bool {
    name == "content-type" || RESPONSE.contains(&name) || is_vendor(name)
}

/// The part of `headers` that `passes`, at most [`HDR_BYTES`] of it. `content-type` and `accept` first,
/// so that a client with many vendor headers loses others.
#[must_use]
pub fn pick(headers: &HeaderMap, passes: fn(&str) -> bool) -> HeaderMap {
    let mut out = HeaderMap::with_capacity(headers.len().min(32));
    let mut room = HDR_BYTES;
    let mut add = |name: &HeaderName, value: &HeaderValue| {
        // As JSON: quotes, colon, comma; escapes are rare in values, and what needs many is dropped.
        let cost = name.as_str().len() + value.len() + 6;
        if value.to_str().is_ok() && cost <= room {
            room -= cost;
            out.append(name, value.clone());
        }
    };
    for name in [http::header::CONTENT_TYPE, http::header::ACCEPT] {
        if passes(name.as_str())
            && let Some(value) = headers.get(&name)
        {
            add(&name, value);
        }
    }
    for (name, value) in headers {
        if name != http::header::CONTENT_TYPE
            && name != http::header::ACCEPT
            && passes(name.as_str())
        {
            add(name, value);
        }
    }
    out
}

/// `headers` as the JSON object `hdr`. Values of one name are joined by a comma, as HTTP allows.
#[must_use]
pub fn to_json(headers: &HeaderMap) -> String {
    let mut out = String::from("{");
    for name in headers.keys() {
        if out.len() > 1 {
            out.push(',');
        }
        push_string(&mut out, name.as_str());
        out.push(':');
        let mut values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
        let first = values.next().unwrap_or_default();
        match values.next() {
            None => push_string(&mut out, first),
            Some(second) => {
                let mut all = format!("{first}, {second}");
                for value in values {
                    all.push_str(", ");
                    all.push_str(value);
                }
                push_string(&mut out, &all);
            }
        }
    }
    out.push('}');
    out
}

/// Reads `hdr`, keeping what `passes` here too: the other node's list may be longer, or it may lie.
#[must_use]
pub fn from_json(json: &str, passes: fn(&str) -> bool) -> HeaderMap {
    let mut out = HeaderMap::new();
    let Ok(Pairs(pairs)) = serde_json::from_str::<Pairs<'_>>(json) else {
        return out;
    };
    let mut room = HDR_BYTES;
    for (name, value) in pairs {
        let cost = name.len() + value.len() + 6;
        if cost > room || !passes(&name) {
            continue;
        }
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_str(&value),
        ) {
            room -= cost;
            out.append(name, value);
        }
    }
    out
}

/// A JSON object of strings in its order; other values are left out.
struct Pairs<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'de> serde::Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        #[derive(serde::Deserialize)]
        #[serde(transparent)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Pairs<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some((Text(name), Text(value))) = map.next_entry()? {
                    // `hdr` is bounded by bytes; this bounds the number of its parts.
                    if pairs.len() < 128 {
                        pairs.push((name, value));
                    }
                }
                Ok(Pairs(pairs))
            }
        }
        d.deserialize_map(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn credentials_and_hop_headers_stay_behind() {
        let sent = map(&[
            ("authorization", "Bearer local"),
            ("x-api-key", "local"),
            ("cookie", "a=b"),
            ("host", "127.0.0.1"),
            ("connection", "keep-alive"),
            ("accept-encoding", "gzip"),
            ("x-forwarded-for", "10.0.0.1"),
            ("origin", "http://x"),
            ("content-length", "3"),
            ("openai-organization", "org"),
            ("anthropic-version", "2023-06-01"),
            ("x-stainless-lang", "js"),
            ("content-type", "application/json"),
        ]);
        let passed = pick(&sent, request_passes);
        let mut names: Vec<_> = passed.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "anthropic-version",
                "content-type",
                "openai-organization",
                "x-stainless-lang"
            ]
        );
    }

    #[test]
    fn the_set_survives_the_mesh() {
        let sent = map(&[
            ("content-type", "text/event-stream; a=\"b\""),
            ("x-ratelimit-remaining", "7"),
            ("set-cookie", "no"),
            ("server", "no"),
            ("retry-after", "2"),
        ]);
        let passed = pick(&sent, response_passes);
        let back = from_json(&to_json(&passed), response_passes);
        assert_eq!(passed, back);
        assert_eq!(back.len(), 3);
    }

    #[test]
    fn a_hostile_set_is_cut_and_filtered() {
        assert!(from_json("[]", response_passes).is_empty());
        assert!(from_json(r#"{"x-a":1}"#, response_passes).is_empty());
        let back = from_json(
            r#"{"set-cookie":"a","x-ok":"1","x-bad":"a\r\nb: c","x-bad name":"1"}"#,
            response_passes,
        );
        assert_eq!(back.len(), 1);
        let huge = format!(r#"{{"x-a":"{}","x-b":"1"}}"#, "y".repeat(HDR_BYTES));
        assert_eq!(from_json(&huge, response_passes).len(), 1);
    }
}
