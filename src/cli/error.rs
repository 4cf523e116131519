//! Why a command failed: exit code, message, hint (contract 4).

use super::output::Paint;

/// It failed.
pub(super) const FAILED: u8 = 1;
/// The command was used wrongly.
pub(super) const USAGE: u8 = 2;
/// The state folder is held by another process.
pub(super) const HELD: u8 = 73;
/// The configuration is bad.
pub(super) const CONFIG: u8 = 78;
/// Ended by Ctrl-C.
pub(super) const INTERRUPTED: u8 = 130;

/// A failure as the operator sees it.
#[derive(Debug)]
pub(super) struct CliError {
    /// Exit code.
    pub(super) code: u8,
    message: String,
    hint: String,
}

impl CliError {
    /// A failure with code 1.
    pub(super) fn failed(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::with(FAILED, message, hint)
    }

    /// A failure with another code.
    pub(super) fn with(code: u8, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: hint.into(),
        }
    }

    /// Message and hint.
    pub(super) fn text(&self, paint: Paint) -> String {
        // A configuration brings its own list in this form.
        if self.message.starts_with("error: ") {
            return self.message.clone();
        }
        let mut text = format!("{}: {}", paint.red("error"), self.message);
        if !self.hint.is_empty() {
            text.push_str("\n  hint: ");
            text.push_str(&self.hint);
        }
        text
    }

    /// The message alone.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// The way out.
    pub(super) fn hint(&self) -> &str {
        &self.hint
    }
}

impl From<crate::config::ConfigError> for CliError {
    fn from(error: crate::config::ConfigError) -> Self {
        Self::with(CONFIG, error.to_string(), "")
    }
}

impl From<crate::state::StateError> for CliError {
    fn from(error: crate::state::StateError) -> Self {
        match &error {
            crate::state::StateError::Held(_) => Self::with(
                HELD,
                error.to_string(),
                "stop that process, or use another `--state-dir`",
            ),
            crate::state::StateError::Io { source, .. } => {
                let message = format!("{error}: {source}");
                Self::failed(message, "check owner and mode of the folder")
            }
        }
    }
}
