//! The writing task of a link: takes what waits, seals it in place, gives the socket one batch at a
//! time. No timer and no wait for company: a free writer sends at once what is there, a busy one
//! finds what has piled up meanwhile.

use std::sync::{Arc, atomic::Ordering};

use tokio::time::{Instant, timeout};

use super::{Ending, Link, lock, pace::Pace};
use crate::{
    crypto::seal::Sealer,
    mesh::transport::{Message, MessageSink, TransportError},
    wire::{
        close::CloseCode,
        frame::LinkHeader,
        limits::{CLOSE_LINGER, WRITE_STALL},
        record,
    },
};

pub(super) async fn run<S: MessageSink>(link: Arc<Link>, mut sink: S, mut sealer: Sealer) {
    let stopped = link.stop.cancelled();
    tokio::pin!(stopped);
    let mut said_bye = false;
    let mut pace = Pace::new();
    sink.hold_back(pace.bytes());
    loop {
        let step = tokio::select! {
            biased;
            () = &mut stopped => break,
            step = timeout(WRITE_STALL, batch(&link, &mut sink, &mut sealer, &mut pace)) => step,
        };
        match step {
            Ok(Ok(sent)) => {
                link.freed.notify_waiters();
                if sent {
                    continue;
                }
            }
            Ok(Err(error)) => {
                link.finish(Ending::Broken(format!("cannot send: {error}")));
                break;
            }
            Err(_) => {
                link.end(CloseCode::Timeout, "the other side takes nothing");
                break;
            }
        }
        if link.draining.load(Ordering::Relaxed) {
            if said_bye {
                break;
            }
            said_bye = true;
            link.send_link(&LinkHeader::Bye);
            continue;
        }
        tokio::select! {
            biased;
            () = &mut stopped => break,
            () = link.queued.notified() => {}
        }
    }
    close(&link, &mut sink).await;
}

/// Sends one batch; false when nothing waited.
async fn batch<S: MessageSink>(
    link: &Link,
    sink: &mut S,
    sealer: &mut Sealer,
    pace: &mut Pace,
) -> Result<bool, TransportError> {
    let began = Instant::now();
    let mut bytes = 0;
    loop {
        // The first frame of a batch may be larger than what is left of it.
        let limit = if bytes == 0 {
            usize::MAX
        } else {
            pace.bytes().saturating_sub(bytes)
        };
        let Some(mut record) = lock(&link.queue).pop(limit) else {
            break;
        };
        let sealed = match record::covered(&record) {
            Some(covered) => sealer.seal_before_rest(&mut record, covered),
            None => sealer.seal(&mut record),
        };
        sealed.map_err(|_| TransportError::TooLarge)?;
        bytes += record.len();
        sink.feed(Message::Binary(record)).await?;
    }
    if bytes == 0 {
        return Ok(false);
    }
    sink.flush().await?;
    if pace.left(bytes, began.elapsed()) {
        sink.hold_back(pace.bytes());
    }
    link.traffic.sent(bytes);
    Ok(true)
}

/// Says why, if it is us who close, and gives the neighbour a moment to close its side.
async fn close<S: MessageSink>(link: &Link, sink: &mut S) {
    let code = match link.ending.get() {
        Some(Ending::Ours { code, .. }) => *code,
        Some(Ending::Theirs { .. } | Ending::Broken(_)) | None => CloseCode::Normal,
    };
    let _ = timeout(CLOSE_LINGER, sink.close(code as u16, code.text())).await;
    // While draining the reader still delivers; it ends when the neighbour has closed too.
    let _ = timeout(CLOSE_LINGER, link.stop.cancelled()).await;
    link.stop.cancel();
    lock(&link.queue).clear();
    link.freed.notify_waiters();
}
