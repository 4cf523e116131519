//! Counts WebSocket frames below the library that assembles them (protocol 5.5): a flood of pings or
//! of one-byte fragments costs us more than it costs the sender, and the library shows neither.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::mesh::bucket::Bucket;

/// The read error of a connection that flooded us.
#[derive(Debug, Clone, Copy)]
pub struct Flood;

impl fmt::Display for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many pings or fragments")
    }
}

impl std::error::Error for Flood {}

/// Follows the frame headers in a byte stream. Pure.
#[derive(Debug)]
pub struct Scan(State);

#[derive(Debug)]
enum State {
    // Inside the HTTP answer before the first frame; how much of its end was seen.
    Http { matched: usize },
    Header { bytes: [u8; 14], have: usize },
    Payload { left: u64 },
}

const HTTP_END: &[u8] = b"\r\n\r\n";
const NEW_HEADER: State = State::Header {
    bytes: [0; 14],
    have: 0,
};

/// Header length and payload length, once enough of the header is there.
fn lengths(header: &[u8]) -> Option<(usize, u64)> {
    let second = *header.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let (extended, payload) = match second & 0x7f {
        126 => (
            2,
            u64::from(u16::from_be_bytes(*header.get(2..4)?.first_chunk()?)),
        ),
        127 => (8, u64::from_be_bytes(*header.get(2..10)?.first_chunk()?)),
        short => (0, u64::from(short)),
    };
    let total = 2 + extended + mask;
    (header.len() >= total).then_some((total, payload))
}

impl Scan {
    /// Follows a stream of frames.
    #[must_use]
    pub const fn frames() -> Self {
        Self(NEW_HEADER)
    }

    /// Follows an HTTP answer, then frames.
    #[must_use]
    pub const fn after_http() -> Self {
        Self(State::Http { matched: 0 })
    }

    /// Takes the next bytes; gives how many control frames and fragments began in them.
    pub fn take(&mut self, mut bytes: &[u8]) -> u32 {
        let mut counted = 0;
        while let Some(first) = bytes.first() {
            match &mut self.0 {
                State::Http { matched } => {
                    *matched = if *first == HTTP_END[*matched] {
                        *matched + 1
                    } else {
                        usize::from(*first == HTTP_END[0])
                    };
                    bytes = &bytes[1..];
                    if *matched == HTTP_END.len() {
                        self.0 = NEW_HEADER;
                    }
                }
                State::Header {
                    bytes: header,
                    have,
                } => {
                    header[*have] = *first;
                    *have += 1;
                    bytes = &bytes[1..];
                    if let Some((_, left)) = lengths(&header[..*have]) {
                        let last = header[0] & 0x80 != 0;
                        let opcode = header[0] & 0x0f;
                        if !last || opcode == 0 || opcode >= 8 {
                            counted += 1;
                        }
                        self.0 = if left == 0 {
                            NEW_HEADER
                        } else {
                            State::Payload { left }
                        };
                    }
                }
                State::Payload { left } => {
                    let here = usize::try_from(*left).map_or(bytes.len(), |n| n.min(bytes.len()));
                    bytes = &bytes[here..];
                    *left -= here as u64;
                    if *left == 0 {
                        self.0 = NEW_HEADER;
                    }
                }
            }
        }
        counted
    }
}

/// An I/O object whose reads are counted.
#[derive(Debug)]
pub struct Meter<I> {
    io: I,
    scan: Scan,
    bucket: Bucket,
}

impl<I> Meter<I> {
    /// Over a connection that carries frames already.
    #[must_use]
    pub fn frames(io: I) -> Self {
        Self::with(io, Scan::frames())
    }

    /// Over a connection on which the other side answers an upgrade first.
    #[must_use]
    pub fn after_http(io: I) -> Self {
        Self::with(io, Scan::after_http())
    }

    fn with(io: I, scan: Scan) -> Self {
        Self {
            io,
            scan,
            bucket: Bucket::for_link(Instant::now()),
        }
    }

    /// What it counts on.
    pub fn get_ref(&self) -> &I {
        &self.io
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Meter<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let counted = self.scan.take(&buf.filled()[before..]);
        if counted > 0 && !self.bucket.take(counted, Instant::now()) {
            return Poll::Ready(Err(io::Error::other(Flood)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Meter<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn controls_and_fragments_count_and_whole_messages_do_not() {
        let frames: &[(&[u8], u32)] = &[
            (&[0x82, 3, 1, 2, 3], 0),
            (&[0x82, 0x83, 9, 9, 9, 9, 1, 2, 3], 0),
            (&[0x89, 0], 1),
            (&[0x8a, 2, 0x89, 0x89], 1),
            (&[0x02, 1, 7], 1),
            (&[0x80, 1, 7], 1),
            (&[0x82, 126, 0, 200], 0),
        ];
        let mut all = Vec::new();
        let mut expected = 0;
        for (frame, counted) in frames {
            all.extend_from_slice(frame);
            expected += counted;
        }
        all.extend_from_slice(&[0x89; 200]);
        all.extend_from_slice(&[0x89, 0]);
        assert_eq!(Scan::frames().take(&all), expected + 1);
        let mut http = b"HTTP/1.1 101 x\r\na: b\r\r\n\r\n".to_vec();
        http.extend_from_slice(&all);
        let mut scan = Scan::after_http();
        let one_by_one: u32 = http.chunks(1).map(|byte| scan.take(byte)).sum();
        assert_eq!(one_by_one, expected + 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_counted_alike_in_any_pieces(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            piece in 1usize..50,
        ) {
            let whole = Scan::frames().take(&bytes);
            let mut scan = Scan::frames();
            let pieces: u32 = bytes.chunks(piece).map(|part| scan.take(part)).sum();
            prop_assert_eq!(whole, pieces);
        }
    }
}
