//! `GET /api/v1/events`: what happens on this node, as it happens.

use bytes::Bytes;
use futures_util::stream;
use http::Response;
use tokio::time::timeout;

use super::answer;
use crate::{
    events::{Event, Events, Watcher},
    proxy::{body::ReplyBody, error::Asked},
    wire::{code::Failure, limits::EVENT_KEEP_ALIVE},
};

/// A stream of events from now on, until the client goes or the node stops.
///
/// # Errors
/// `overloaded` when as many watch as may.
pub fn follow(events: &Events, asked: Asked) -> Result<Response<ReplyBody>, Failure> {
    let watcher = events.watch()?;
    // The head goes out at once: what happens from here on is told.
    let first = Some(Bytes::from_static(b": watching\n\n"));
    let pieces = stream::unfold((watcher, first), |(mut watcher, first)| async move {
        let piece = match first {
            Some(first) => first,
            None => next(&mut watcher).await?,
        };
        Some((piece, (watcher, None)))
    });
    Ok(answer::events(pieces, asked))
}

async fn next(watcher: &mut Watcher) -> Option<Bytes> {
    match timeout(EVENT_KEEP_ALIVE, watcher.next()).await {
        Ok(event) => Some(written(&*event?)),
        Err(_) => Some(Bytes::from_static(b": alive\n\n")),
    }
}

fn written(event: &Event) -> Bytes {
    let mut out = Vec::new();
    if let Some(seq) = event.seq {
        out.extend_from_slice(format!("id: {seq}\n").as_bytes());
    }
    answer::put_event(&mut out, event.what.as_str(), &event.data);
    out.into()
}
