//! The two ends of the conversation as channels: a thread that reads standard input, a thread that
//! writes standard output. Threads, because a pipe read cannot be cancelled and must not keep the
//! runtime from ending.

use std::{
    io::{self, BufRead, Read, Write},
    time::Duration,
};

use tokio::sync::mpsc;

use super::{FromSidecar, ToSidecar};

/// Longest line the shim may send: a configuration with every provider it can name fits many times.
const LINE_BYTES: u64 = 8 * 1024 * 1024;
/// Messages waiting in either direction: the pieces of a few runs while the node is busy. A shim
/// that sends faster is slowed down by its pipe.
const QUEUE_MESSAGES: usize = 256;

/// What arrives from the shim.
#[derive(Debug)]
pub enum Heard {
    /// A message.
    Message(Box<ToSidecar>),
    /// A line that is none; the text says why and never quotes the line, which may hold a key.
    Garbled(String),
    /// The gateway is gone: exit within 1 s.
    Ended,
}

/// Sends to the shim. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Voice(mpsc::Sender<String>);

impl Voice {
    /// Queues one message. When the shim does not read, the message is dropped and logged, for the
    /// node must not wait for it; the next change sends the whole state again.
    pub fn say(&self, message: &FromSidecar) {
        if !self.ask(message) {
            tracing::warn!("the shim does not read; message dropped");
        }
    }

    /// Queues a message that wants an answer; false when the shim does not read and it was dropped.
    #[must_use]
    pub fn ask(&self, message: &FromSidecar) -> bool {
        match serde_json::to_string(message) {
            Ok(line) => self.0.try_send(line + "\n").is_ok(),
            Err(error) => {
                tracing::error!(%error, "message for the shim cannot be written");
                false
            }
        }
    }

    /// A voice whose lines are read from the other end, for tests.
    #[cfg(test)]
    pub(crate) fn recorded() -> (Self, mpsc::Receiver<String>) {
        let (say, said) = mpsc::channel(QUEUE_MESSAGES);
        (Self(say), said)
    }

    /// Waits a moment until the last messages are written, before the process ends.
    pub async fn finish(&self) {
        let written = async {
            while self.0.capacity() < QUEUE_MESSAGES {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            // The queue is empty once the last line was taken; give its write a moment, too.
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        // A shim that does not read gets no more than this.
        let _ = tokio::time::timeout(Duration::from_millis(200), written).await;
    }
}

/// Opens the conversation over this process's standard input and output.
///
/// # Errors
/// When no thread can be started.
pub fn open() -> io::Result<(mpsc::Receiver<Heard>, Voice)> {
    let (heard_in, heard) = mpsc::channel(QUEUE_MESSAGES);
    let (say, said) = mpsc::channel(QUEUE_MESSAGES);
    std::thread::Builder::new()
        .name("shim-in".into())
        .spawn(move || listen(io::stdin().lock(), &heard_in))?;
    std::thread::Builder::new()
        .name("shim-out".into())
        .spawn(move || speak(io::stdout(), said))?;
    Ok((heard, Voice(say)))
}

fn listen(mut input: impl BufRead, heard: &mpsc::Sender<Heard>) {
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut input).take(LINE_BYTES).read_until(b'\n', &mut line);
        let message = match read {
            Ok(0) | Err(_) => Heard::Ended,
            Ok(_) if line.last() != Some(&b'\n') && line.len() as u64 == LINE_BYTES => {
                // Never resynchronise inside a line: what follows is the rest of it.
                let _ = heard.blocking_send(Heard::Garbled("line longer than 8 MiB".into()));
                Heard::Ended
            }
            Ok(_) => match serde_json::from_slice(&line) {
                Ok(message) => Heard::Message(Box::new(message)),
                Err(error) => Heard::Garbled(format!(
                    "not a message: {:?} error at column {}",
                    error.classify(),
                    error.column()
                )),
            },
        };
        let last = matches!(message, Heard::Ended);
        if heard.blocking_send(message).is_err() || last {
            return;
        }
    }
}

fn speak(mut output: impl Write, mut said: mpsc::Receiver<String>) {
    while let Some(line) = said.blocking_recv() {
        let written = output
            .write_all(line.as_bytes())
            .and_then(|()| output.flush());
        if written.is_err() {
            // The reader is gone; the end of standard input says so to the rest of the node.
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(input: &str) -> Vec<Heard> {
        let (send, mut receive) = mpsc::channel(QUEUE_MESSAGES);
        listen(input.as_bytes(), &send);
        drop(send);
        std::iter::from_fn(|| receive.blocking_recv()).collect()
    }

    #[test]
    fn messages_then_end() {
        let heard = hear("{\"type\":\"config\",\"config\":{}}\n{\"type\":\"drain\"}\n");
        assert!(matches!(&heard[0], Heard::Message(m) if matches!(**m, ToSidecar::Config { .. })));
        assert!(matches!(&heard[1], Heard::Message(m) if matches!(**m, ToSidecar::Drain)));
        assert!(matches!(heard[2], Heard::Ended));
    }

    #[test]
    fn a_bad_line_is_named_without_its_content_and_the_next_one_is_read() {
        let heard = hear("{\"type\":\"config\",\"secret\":\"hush-hush\"\n{\"type\":\"drain\"}\n");
        assert!(matches!(&heard[0], Heard::Garbled(why) if !why.contains("hush")));
        assert!(matches!(&heard[1], Heard::Message(_)));
    }

    #[test]
    fn end_of_input_inside_a_line_is_still_the_end() {
        let heard = hear("{\"type\":\"dra");
        assert!(matches!(heard.last(), Some(Heard::Ended)));
    }
}
