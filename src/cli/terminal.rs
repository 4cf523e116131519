//! Asking the person at the terminal itself: a passphrase never comes by argument, environment or
//! standard input, where others could read or put it.

use std::{fs::File, io::Write as _};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::error::{CliError, INTERRUPTED};
use crate::crypto::secret::Secret;

/// Longest answer.
const ANSWER_BYTES: usize = 1024;

/// The terminal with what is typed not shown; dropped, it is as before.
struct Silent<'a> {
    terminal: &'a File,
    before: Termios,
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        // There is nothing to be done about a terminal that is gone.
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::failed(
        format!("cannot ask at the terminal: {error}"),
        "run this at a terminal of the machine itself: a passphrase is typed by a person",
    )
}

/// Asks for a line that is not shown.
pub(super) fn secret(question: &str) -> Result<Secret<String>, CliError> {
    ask(question, false).map(Secret::new)
}

/// Asks for a line that is shown.
pub(super) fn line(question: &str) -> Result<String, CliError> {
    ask(question, true)
}

fn ask(question: &str, shown: bool) -> Result<String, CliError> {
    let mut terminal = File::options()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .map_err(failed)?;
    let before = tcgetattr(&terminal).map_err(failed)?;
    let mut quiet = before.clone();
    // Character by character and without signals, so that Ctrl-C leaves the terminal as it was.
    quiet.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
    tcsetattr(&terminal, OptionalActions::Flush, &quiet).map_err(failed)?;
    let out = terminal.try_clone().map_err(failed)?;
    let silent = Silent {
        terminal: &out,
        before,
    };
    let mut echo = &out;
    write!(echo, "{question} ").map_err(failed)?;
    let answer = read(&mut terminal, &mut |typed| {
        if shown {
            // What cannot be shown is typed all the same.
            let _ = echo.write_all(typed);
        }
    });
    let _ = (&out).write_all(b"\n");
    drop(silent);
    answer
}

/// Reads a line key by key.
fn read(
    terminal: &mut impl std::io::Read,
    echo: &mut dyn FnMut(&[u8]),
) -> Result<String, CliError> {
    let mut typed = Zeroizing::new(Vec::with_capacity(ANSWER_BYTES));
    let mut key = [0];
    loop {
        if terminal.read(&mut key).map_err(failed)? == 0 {
            return Err(failed("it was closed"));
        }
        match key[0] {
            b'\r' | b'\n' => break,
            3 => return Err(CliError::with(INTERRUPTED, "interrupted", "")),
            4 if typed.is_empty() => return Err(failed("nothing was typed")),
            8 | 0x7f => {
                // A character may be several bytes.
                while let Some(byte) = typed.pop() {
                    if byte & 0xc0 != 0x80 {
                        echo(b"\x08 \x08");
                        break;
                    }
                }
            }
            0x15 => {
                while typed.pop().is_some() {}
                echo(b"\r\x1b[K");
            }
            byte if byte < 0x20 => {}
            byte if typed.len() < ANSWER_BYTES => {
                typed.push(byte);
                echo(&key);
            }
            _ => return Err(failed("the answer is too long")),
        }
    }
    String::from_utf8(typed.to_vec()).map_err(|_| failed("that is no text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(mut keys: &[u8]) -> Result<String, u8> {
        read(&mut keys, &mut |_| {}).map_err(|error| error.code)
    }

    #[test]
    fn a_line_is_typed_corrected_and_given_up() {
        assert_eq!(typed(b"a\xc3\xa9\x7fbc\x08d\r"), Ok("abd".into()));
        assert_eq!(typed(b"wrong\x15right\n"), Ok("right".into()));
        assert_eq!(typed(b"half\x03"), Err(INTERRUPTED));
        assert!(typed(b"\x04").is_err());
        assert!(typed(b"never ended").is_err());
        assert!(typed(&[b'x'; ANSWER_BYTES + 1]).is_err());
    }
}
