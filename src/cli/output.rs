//! Printing: colours on a terminal only, and a closed pipe is no error.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use super::error::CliError;

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    /// No colours.
    pub(super) const PLAIN: Self = Self(false);

    /// Colours when standard output is a terminal.
    pub(super) fn of_stdout() -> Self {
        Self(io::stdout().is_terminal() && wanted())
    }

    /// Colours when standard error is a terminal.
    pub(super) fn of_stderr() -> Self {
        Self(io::stderr().is_terminal() && wanted())
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    /// For heads.
    pub(super) fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// For what matters less.
    pub(super) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    /// For what is well.
    pub(super) fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// For what is doubtful.
    pub(super) fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }

    /// For what is wrong.
    pub(super) fn red(self, text: &str) -> String {
        self.wrap("31", text)
    }
}

fn wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// Prints a result. A reader that went away (`| head`) is not a failure.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    print_while_read(text).map(|_read| ())
}

/// Prints a piece of a result that goes on; whether somebody still reads it.
pub(super) fn print_while_read(text: &str) -> Result<bool, CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CliError::failed(
            format!("cannot write the result: {error}"),
            "",
        )),
    }
}

/// Prints a line.
pub(super) fn line(text: &str) -> Result<(), CliError> {
    print(&format!("{text}\n"))
}

/// Where content goes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Prints content of another node: byte for byte, on a terminal with control characters escaped.
pub(super) fn content(target: Target, bytes: &[u8]) -> Result<(), CliError> {
    let terminal = match target {
        Target::Out => io::stdout().is_terminal(),
        Target::Err => io::stderr().is_terminal(),
    };
    let shown = if terminal {
        clean_text(&String::from_utf8_lossy(bytes)).into_bytes()
    } else {
        bytes.to_vec()
    };
    let written = match target {
        Target::Out => {
            let mut out = io::stdout().lock();
            out.write_all(&shown).and_then(|()| out.flush())
        }
        Target::Err => io::stderr().lock().write_all(&shown),
    };
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::failed(
            format!("cannot write the result: {error}"),
            "",
        )),
        _ => Ok(()),
    }
}

/// Content as the node's API tells it: text, or base64.
pub(super) fn decoded(text: &serde_json::Value, base64: &serde_json::Value) -> Vec<u8> {
    use base64::{Engine as _, prelude::BASE64_STANDARD};

    match (text.as_str(), base64.as_str()) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(encoded)) => BASE64_STANDARD.decode(encoded).unwrap_or_default(),
        (None, None) => Vec::new(),
    }
}

/// Prints a value as JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::failed(format!("cannot write the result: {error}"), ""))?;
    line(&text)
}

/// Tells the person something that is not the result.
pub(super) fn note(text: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(io::stderr(), "{text}");
}

/// A text from another node, fit for a terminal: control characters escaped.
pub(super) fn clean(text: &str) -> String {
    escape(text, &[])
}

/// The same for a text of several lines.
pub(super) fn clean_text(text: &str) -> String {
    escape(text, &['\n', '\t'])
}

fn escape(text: &str, keep: &[char]) -> String {
    text.chars()
        .flat_map(|c| {
            let escape = (c.is_control() && !keep.contains(&c))
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            let plain = (!escape).then_some(c);
            let escaped = escape.then(|| c.escape_unicode());
            plain.into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}
