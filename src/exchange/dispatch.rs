//! Frames in: from an opened inner frame to the transition it asks for.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    BodyReader, Incoming, Reply,
    message::{self, Message},
    remote::Remote,
    stats::Drop as Dropped,
};
use crate::{
    mesh::session::SessionRef,
    wire::{
        code::{Code, Failure},
        inner::Inner,
    },
};

/// Data up to this size is copied out: a slice would pin the whole buffer it was read into.
const COPY_BYTES: usize = 2048;

/// Takes one authenticated frame. What is not of this protocol is dropped and counted: it comes
/// from the other end, not from the neighbour's own layer (protocol 5.2).
pub(super) fn frame(remote: &Arc<Remote>, session: &SessionRef, bytes: Bytes) {
    let counters = &remote.shared.counters;
    let Ok(Inner { json, data }) = Inner::decode(bytes) else {
        counters.dropped(Dropped::Malformed);
        return;
    };
    let Ok(message) = message::decode(&json) else {
        counters.dropped(Dropped::Malformed);
        return;
    };
    let data = if data.len() <= COPY_BYTES {
        Bytes::copy_from_slice(&data)
    } else {
        data
    };
    let mut flood = false;
    let incoming = remote
        .with(|state, out, at| {
            state.heard(at.now);
            match message {
                Message::Request(request) => {
                    let elapsed = session.elapsed();
                    let admitted =
                        state.on_request(&request, data, elapsed, &remote.budget, out, at);
                    return admitted.map(|admitted| (request, admitted));
                }
                Message::UpChunk { rid, seq } => flood = state.on_up_chunk(rid, seq, data, out, at),
                Message::Down(item) => flood = state.on_down(item, data, out, at),
                Message::Ack(acks) => {
                    for ack in acks {
                        state.on_ack(ack, out, at);
                    }
                }
                Message::Cancel { rid } => state.on_cancel(rid, out, at),
                Message::Query { rid } => state.on_query(rid, out, at),
                Message::State { rid, phase } => {
                    if let Some(asker) = state.queries.remove(&rid) {
                        // The asker may have given up meanwhile.
                        let _ = asker.send(phase);
                    }
                }
                Message::Noop => {}
                Message::Unknown { rid } => {
                    counters.dropped(Dropped::UnsupportedType);
                    if let Some(rid) = rid {
                        let failure = Failure::not_started(
                            Code::UnsupportedType,
                            "this node does not know such messages",
                        );
                        out.soft(message::error(rid, None, &failure));
                    }
                }
                Message::Complaint(failure) => {
                    tracing::debug!(peer = %session.peer().node, %failure, "the node complains");
                }
            }
            None
        })
        .0;
    if flood {
        remote.credit_violation(session.as_ref());
    }
    if let Some((request, admitted)) = incoming {
        let rid = request.rid;
        remote.shared.inbound.handle(Incoming {
            caller: session.peer().clone(),
            rid,
            kind: request.kind,
            json,
            body_bytes: request.blen,
            deadline: admitted
                .deadline
                .and_then(|left| tokio::time::Instant::now().checked_add(left)),
            body: BodyReader::new(Arc::clone(remote), rid),
            reply: Reply::new(Arc::clone(remote), rid),
        });
    }
}
