//! Server-sent events as they are read: for answers that stream to the terminal, and from servers that
//! run agents.

/// The longest event that is held, unless whoever reads knows of longer ones; a longer one is an error.
const EVENT_BYTES: usize = 8 << 20;

/// Cuts a byte stream into events. Only `data` is kept: nothing here uses the other fields.
#[derive(Debug)]
pub struct Events {
    most: usize,
    line: Vec<u8>,
    data: Vec<u8>,
    lines: usize,
}

/// An event grew beyond what is held.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {0} MiB")]
pub struct TooLong(usize);

impl Default for Events {
    fn default() -> Self {
        Self::up_to(EVENT_BYTES)
    }
}

impl Events {
    /// Holds events of up to `most` bytes.
    #[must_use]
    pub const fn up_to(most: usize) -> Self {
        Self {
            most,
            line: Vec::new(),
            data: Vec::new(),
            lines: 0,
        }
    }

    /// Takes bytes and gives the data of the events they complete. Looks at each byte once.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<String>, TooLong> {
        let mut events = Vec::new();
        let mut rest = bytes;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            if self.line.last() == Some(&b'\r') {
                self.line.pop();
            }
            self.end_line(&mut events);
            self.line.clear();
        }
        self.line.extend_from_slice(rest);
        if self.line.len() + self.data.len() > self.most {
            return Err(TooLong(self.most >> 20));
        }
        Ok(events)
    }

    fn end_line(&mut self, events: &mut Vec<String>) {
        if self.line.is_empty() {
            if self.lines > 0 {
                events.push(String::from_utf8_lossy(&self.data).into_owned());
            }
            self.data.clear();
            self.lines = 0;
        } else if let Some(value) = self.line.strip_prefix(b"data:") {
            if self.lines > 0 {
                self.data.push(b'\n');
            }
            self.data
                .extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
            self.lines += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_whole_however_they_are_cut() {
        let text = b": hi\r\ndata: one\r\n\r\nevent: x\ndata:two\ndata: lines\n\ndata: unfinished";
        for size in 1..text.len() {
            let mut events = Events::default();
            let mut found = Vec::new();
            for piece in text.chunks(size) {
                found.extend(events.feed(piece).unwrap());
            }
            assert_eq!(found, ["one", "two\nlines"]);
        }
    }

    #[test]
    fn endless_event_is_an_error() {
        let mut events = Events::default();
        let piece = vec![b'x'; 1 << 20];
        assert!((0..9).any(|_| events.feed(&piece).is_err()));
        let mut events = Events::up_to(10 << 20);
        assert!((0..9).all(|_| events.feed(&piece).is_ok()));
        assert_eq!(events.feed(&vec![b'x'; 2 << 20]), Err(TooLong(10)));
    }
}
