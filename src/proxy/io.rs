//! The socket of a local client, shared between hyper and the watcher that looks for a client that
//! went away. hyper notices a close by itself only while it wants to read; it does not while a request
//! body is left unread or bytes of a next request are already buffered.

use std::{
    io::{self, IoSlice},
    net::Shutdown,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_util::FutureExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

/// What the two sides of one connection tell one another. All on one thread in practice; atomics only
/// because hyper wants the service to be `Send`.
#[derive(Debug, Default)]
pub struct Activity {
    /// Requests whose handler or answer is alive: none or one.
    requests: AtomicUsize,
    /// Whether bytes came since the last request began.
    bytes: AtomicBool,
    /// Whether any request has begun on this connection.
    used: AtomicBool,
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was sent yet.
    New,
    /// Between two requests.
    Idle,
    /// Parts of a request's head have come.
    Head,
    /// A request is being read, worked on or answered.
    Request,
}

impl Activity {
    /// What the connection is doing now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.requests.load(Ordering::Relaxed) > 0 {
            Phase::Request
        } else if self.bytes.load(Ordering::Relaxed) {
            Phase::Head
        } else if self.used.load(Ordering::Relaxed) {
            Phase::Idle
        } else {
            Phase::New
        }
    }

    /// A request has begun; it ends when the guard is dropped.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.used.store(true, Ordering::Relaxed);
        self.bytes.store(false, Ordering::Relaxed);
        Busy(self.clone())
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
        // What came meanwhile was the body; the start of a pipelined request falls under the idle
        // limit instead of the header limit, which is harmless.
        self.0.bytes.store(false, Ordering::Relaxed);
    }
}

/// A socket that hyper reads and writes while others look at it.
#[derive(Debug, Clone)]
pub struct SharedIo {
    stream: Arc<TcpStream>,
    activity: Arc<Activity>,
}

impl SharedIo {
    /// Shares `stream`.
    #[must_use]
    pub fn new(stream: TcpStream, activity: Arc<Activity>) -> Self {
        Self {
            stream: Arc::new(stream),
            activity,
        }
    }

    /// Whether the client has closed, or half-closed, its side. Never waits.
    #[must_use]
    pub fn client_gone(&self) -> bool {
        match self.stream.ready(Interest::READABLE).now_or_never() {
            Some(Ok(ready)) => ready.is_read_closed(),
            Some(Err(_)) => true,
            None => false,
        }
    }

    /// Whether somebody else has the socket now, after an upgrade.
    #[must_use]
    pub fn handed_on(&self) -> bool {
        Arc::strong_count(&self.stream) > 1
    }

    /// Reads and forgets until the client closes. A close with unread bytes would be a reset, which
    /// destroys an answer the client has not read yet (a 413 while it still uploads).
    pub async fn linger(&self) {
        let _ = socket2::SockRef::from(&*self.stream).shutdown(Shutdown::Write);
        let mut scratch = vec![0; 16 * 1024];
        loop {
            if self.stream.readable().await.is_err() {
                return;
            }
            match self.stream.try_read(&mut scratch) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

impl AsyncRead for SharedIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read(buf.initialize_unfilled()) {
                Ok(n) => {
                    buf.advance(n);
                    if n > 0 {
                        self.activity.bytes.store(true, Ordering::Relaxed);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for SharedIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_write(data) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_write_vectored(data) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A client that closed first makes this fail; nothing is lost then.
        let _ = socket2::SockRef::from(&*self.stream).shutdown(Shutdown::Write);
        Poll::Ready(Ok(()))
    }
}
