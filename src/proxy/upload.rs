//! Reads a request body whole: a model request must be repeatable until output was delivered.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::timeout;

use crate::{
    exchange::{HeldBody, NodeBudget},
    wire::{
        code::{Code, Failure},
        limits::LOCAL_BODY_TIMEOUT,
    },
};

/// A body that is still to be read.
#[derive(Debug)]
pub struct Upload<'a> {
    /// The body.
    pub body: Incoming,
    /// Its longest length.
    pub limit: u64,
    /// Counts what is held.
    pub budget: &'a NodeBudget,
}

/// Reads `upload`, counting it against the budget as it comes. A length beyond the limit is refused before a byte is
/// read.
///
/// # Errors
/// `payload_too_large`, `overloaded`, and `invalid_request` when the upload stalls or breaks.
pub async fn read(upload: Upload<'_>) -> Result<(Bytes, HeldBody), Failure> {
    let Upload {
        mut body,
        limit,
        budget,
    } = upload;
    let too_large = || {
        Failure::not_started(
            Code::PayloadTooLarge,
            format!("the request body is larger than {limit} bytes"),
        )
    };
    let invalid = |text: &str| Failure::not_started(Code::InvalidRequest, text);
    if body.size_hint().lower() > limit {
        return Err(too_large());
    }
    let full = || Failure {
        retry_after: Some(Duration::from_secs(1)),
        ..Failure::not_started(Code::Overloaded, "too many request bodies are held at once")
    };
    let mut share = budget.hold(0).ok_or_else(full)?;
    let (mut first, mut all) = (Bytes::new(), BytesMut::new());
    loop {
        let frame = timeout(LOCAL_BODY_TIMEOUT, body.frame())
            .await
            .map_err(|_| invalid("the upload stalled"))?;
        let data = match frame {
            None => break,
            Some(Err(_)) => return Err(invalid("the upload broke off")),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(_trailers) => continue,
            },
        };
        let held = first.len().max(all.len());
        if (held + data.len()) as u64 > limit {
            return Err(too_large());
        }
        if !share.grow(data.len()) {
            return Err(full());
        }
        if held == 0 {
            first = data;
        } else {
            if all.is_empty() {
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&data);
        }
    }
    let body = if all.is_empty() { first } else { all.freeze() };
    Ok((body, share))
}
