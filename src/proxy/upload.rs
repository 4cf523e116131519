//! Reads a request body whole: a model request must be repeatable until output was delivered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::timeout;

use crate::wire::{
    code::{Code, Failure},
    limits::{LOCAL_BODIES_BYTES, LOCAL_BODY_TIMEOUT, REQUEST_BODY_BYTES},
};

/// Bytes of bodies held for all clients together; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Budget(Arc<AtomicUsize>);

/// A share of the budget, given back on drop.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    /// An empty share.
    #[must_use]
    pub fn share(&self) -> Share {
        Share {
            budget: self.clone(),
            bytes: 0,
        }
    }
}

impl Share {
    /// Takes more; false when the budget does not allow it.
    fn grow(&mut self, bytes: usize) -> bool {
        let taken = self
            .budget
            .0
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                held.checked_add(bytes)
                    .filter(|held| *held <= LOCAL_BODIES_BYTES)
            });
        if taken.is_ok() {
            self.bytes += bytes;
        }
        taken.is_ok()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Reads `body`, counting it against `share`. A length beyond the limit is refused before a byte is
/// read.
///
/// # Errors
/// `payload_too_large`, `overloaded`, and `invalid_request` when the upload stalls or breaks.
pub async fn read(mut body: Incoming, share: &mut Share) -> Result<Bytes, Failure> {
    let too_large = || {
        Failure::not_started(
            Code::PayloadTooLarge,
            "the request body is larger than 32 MiB",
        )
    };
    let invalid = |text: &str| Failure::not_started(Code::InvalidRequest, text);
    if body.size_hint().lower() > REQUEST_BODY_BYTES as u64 {
        return Err(too_large());
    }
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
        if held + data.len() > REQUEST_BODY_BYTES {
            return Err(too_large());
        }
        if !share.grow(data.len()) {
            return Err(Failure {
                retry_after: Some(Duration::from_secs(1)),
                ..Failure::not_started(Code::Overloaded, "too many request bodies are held at once")
            });
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
    Ok(if all.is_empty() { first } else { all.freeze() })
}
