//! Answers whoever asked with what a tool tells.

use bytes::Bytes;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::{
    exchange::{End, Reply},
    tools::{Event, Finished, Running, frames},
    wire::code::{Code, Failure},
};

/// Sends what a tool tells to whoever asked; a short answer in one record. Gone with him, the tool
/// ends.
pub(super) async fn tell(mut running: Running, mut reply: Reply, ending: &CancellationToken) {
    let mut headed = false;
    loop {
        let event = tokio::select! {
            biased;
            event = running.events.recv() => event,
            // `running` is dropped, and the tool with it.
            _ = reply.cancelled() => return,
            () = ending.cancelled() => {
                reply.fail(Failure::started(
                    Code::Cancelled,
                    "the node is shutting down and has ended the tool; what it did until then stands",
                ));
                return;
            }
        };
        let Some(event) = event else { return };
        let sent = match (event, headed) {
            (Event::End(Err(failure)), _) => {
                reply.fail(failure);
                return;
            }
            (Event::End(Ok(finished)), false) => {
                // Nothing can be done for a node that is gone.
                let _ = reply
                    .head(200, "{}", Bytes::new(), Some(end(&finished)))
                    .await;
                return;
            }
            (Event::End(Ok(finished)), true) => {
                let _ = reply.end(end(&finished)).await;
                return;
            }
            (Event::Waits(left), _) => {
                if reply.waits(left).await.is_err() {
                    return;
                }
                continue;
            }
            (Event::GoesOn, _) => {
                if reply.accept().await.is_err() {
                    return;
                }
                continue;
            }
            (event, headed) => match frames::encode(&event) {
                None => continue,
                Some(data) if headed => reply.chunk(data, None).await,
                Some(data) => reply.head(200, "{}", data, None).await,
            },
        };
        if sent.is_err() {
            return;
        }
        headed = true;
    }
}

fn end(finished: &Finished) -> End {
    End {
        ok: finished.failure.is_none(),
        usage: None,
        result: RawValue::from_string(finished.result.to_string()).ok(),
    }
}
