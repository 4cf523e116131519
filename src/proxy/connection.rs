//! The accept loop of the local API and the care of one connection: its time limits, the watch for a
//! client that went away, its end in a drain.

use std::{future::Future, pin::pin, sync::Arc, task::Poll, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    body::ReplyBody,
    io::{Activity, Busy, Phase, SharedIo},
};
use crate::{
    drain::Tasks,
    wire::limits::{
        LOCAL_BODY_TIMEOUT, LOCAL_HEADER_BYTES, LOCAL_HEADER_TIMEOUT, LOCAL_IDLE_TIMEOUT,
        LOCAL_WATCH,
    },
};

/// A client that still uploads gets this long to read the answer that refused it.
const LINGER: Duration = Duration::from_secs(2);

/// Answers one request. The guard says that the request is under way; whoever makes the answer keeps it
/// in the answer's body.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Answers `request`.
    fn handle(
        self,
        request: Request<Incoming>,
        busy: Busy,
    ) -> impl Future<Output = Response<ReplyBody>> + Send + 'static;
}

/// Accepts connections until `drain`; those beyond `connections` wait in the system's queue.
pub async fn accept<H: Handler>(
    listener: TcpListener,
    handler: H,
    connections: usize,
    drain: CancellationToken,
    tasks: Tasks,
) {
    let places = Arc::new(Semaphore::new(connections));
    loop {
        let next = async {
            // Never closed, so a place comes in the end.
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = drain.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = serve(stream, handler.clone(), drain.clone());
                // Ends when the client goes, by its time limits, or in a drain.
                tasks.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a local connection");
                // Out of descriptors, most likely: trying at once would spin.
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// How long a phase may last, and for [`Phase::Request`] how often to look.
const fn limit(phase: Phase) -> Duration {
    match phase {
        Phase::New => LOCAL_BODY_TIMEOUT,
        Phase::Idle => LOCAL_IDLE_TIMEOUT,
        Phase::Head => LOCAL_HEADER_TIMEOUT,
        Phase::Request => LOCAL_WATCH,
    }
}

async fn serve<H: Handler>(stream: TcpStream, handler: H, drain: CancellationToken) {
    // Without it, small events wait for acknowledgements of earlier ones.
    let _ = stream.set_nodelay(true);
    let activity = Arc::new(Activity::default());
    let io = SharedIo::new(stream, activity.clone());
    let service = {
        let activity = activity.clone();
        service_fn(move |request| {
            let answer = handler.clone().handle(request, activity.begin());
            async move { Ok::<_, std::convert::Infallible>(answer.await) }
        })
    };
    {
        let mut connection = pin!(
            http1::Builder::new()
                .auto_date_header(false)
                .timer(TokioTimer::new())
                // Ours below spare an idle connection; hyper's would not.
                .header_read_timeout(None)
                .max_header_size(LOCAL_HEADER_BYTES)
                .serve_connection(TokioIo::new(io.clone()), service)
                .with_upgrades()
        );
        let mut draining = pin!(drain.cancelled());
        let mut drained = false;
        let mut phase = Phase::New;
        let mut timer = pin!(sleep(limit(phase)));
        std::future::poll_fn(|cx| {
            if !drained && draining.as_mut().poll(cx).is_ready() {
                drained = true;
                connection.as_mut().graceful_shutdown();
            }
            // An error is a client that spoke no HTTP or went away: its own affair.
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            loop {
                let now = activity.phase();
                if now != phase {
                    phase = now;
                    timer.as_mut().reset(Instant::now() + limit(phase));
                }
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                if phase != Phase::Request || io.client_gone() {
                    // Dropping the connection drops the handler and its answer, and with them every
                    // guard that stops a provider.
                    return Poll::Ready(());
                }
                timer.as_mut().reset(Instant::now() + LOCAL_WATCH);
            }
        })
        .await;
    }
    // In a drain nobody waits: what was answered is in the client's hands. A connection that became a
    // WebSocket is in others'.
    if !drain.is_cancelled() && !io.handed_on() {
        let _ = timeout(LINGER, io.linger()).await;
    }
}
