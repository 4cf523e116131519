//! `clawmatrix approvals`: what waits for a person on this machine, and the person's decision
//! (protocol 8.4).
//!
//! What is shown is what is signed: hashes are made here, of the very text that is printed.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Context,
    client::{Client, block_on},
    error::{CliError, USAGE},
    locate,
    output::{self, clean},
    setup, terminal,
};
use crate::{
    approvals::{
        ApprovalId, Request, Shown,
        book::CONSOLE_LEVEL,
        key::{KeyError, LockedKey},
    },
    crypto::secret::Secret,
    ids::hex,
};

/// Fewest characters of a passphrase.
const PASSPHRASE_CHARS: usize = 12;
/// Least estimate of the guesses it stands, in powers of ten; each guess costs 64 MiB and a good part
/// of a second.
const PASSPHRASE_LOG10: f64 = 9.0;
/// How much of a content is shown.
const SHOWN_CHARS: usize = 4000;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// File of the operator key [default: operator.key beside ~/.config/clawmatrix/node.json].
    #[arg(long, global = true, value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make an operator key behind a passphrase, and let this node know it.
    Enroll {
        /// Configuration to write it into [default: ~/.config/clawmatrix/node.json, if it is there].
        #[arg(long, value_name = "FILE", conflicts_with = "print")]
        config: Option<PathBuf>,
        /// Print the settings instead of writing them.
        #[arg(long)]
        print: bool,
    },
    /// Print the public half of the operator key, for the configuration of another node.
    Key,
    /// List what waits for a person here, and at nodes whose requests are shown here.
    List,
    /// Show one request with everything it would do.
    Show {
        /// Its id, as `list` prints it.
        id: String,
    },
    /// Let it happen, once. Asks for the passphrase.
    Approve {
        /// Its id.
        id: String,
    },
    /// Refuse it.
    Deny {
        /// Its id.
        id: String,
    },
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let file = match &args.key {
        Some(file) => std::path::absolute(file).unwrap_or_else(|_| file.clone()),
        None => locate::own_config_file()
            .map(|config| config.with_file_name("operator.key"))
            .ok_or_else(|| {
                CliError::with(USAGE, "`HOME` is not set", "name the file with `--key`")
            })?,
    };
    if let Verb::Enroll { config, print } = &args.verb {
        return enroll(&file, config.as_deref(), *print, context);
    }
    let key = LockedKey::load(&file).map_err(|error| failed(&error))?;
    if matches!(args.verb, Verb::Key) {
        output::json(&json!({"approvals": {"operators": [{"key": key.key}]}}))?;
        output::note(
            "For the configuration of a node whose requests you approve from here: it also names this node in `approvals.approvers`, and this node names it in `approvals.approvesFor`.",
        );
        return Ok(0);
    }
    let node = locate::running(&context.common)?;
    let client = Client::with_token(node, key.token.reveal().clone());
    match &args.verb {
        Verb::Enroll { .. } | Verb::Key => {}
        Verb::List => {
            let list = block_on(client.get("/api/v1/approvals")).map_err(unknown)?;
            if context.common.json {
                output::json(&list)?;
            } else {
                output::print(&table(&list))?;
            }
        }
        Verb::Show { id } => {
            let shown = block_on(client.get(&path(id)?)).map_err(unknown)?;
            if context.common.json {
                output::json(&shown)?;
            } else {
                output::print(&Asked::read(&shown)?.text())?;
            }
        }
        Verb::Approve { id } => {
            let path = path(id)?;
            let asked = Asked::read(&block_on(client.get(&path)).map_err(unknown)?)?;
            output::note(asked.text().trim_end());
            asked.check_place()?;
            let mut said = json!({"decision": "approve"});
            if asked.request.level >= CONSOLE_LEVEL {
                let question = format!("Type {} to go on:", clean(&asked.challenge));
                said["challenge"] = json!(terminal::line(&question)?);
            }
            let passphrase = terminal::secret("Passphrase of the operator key:")?;
            let operator = key.unlock(&passphrase).map_err(|error| failed(&error))?;
            let signature = asked.request.sign(&operator);
            said["signature"] = json!(URL_SAFE_NO_PAD.encode(signature));
            let answer = block_on(client.call(Method::POST, &path, Some(&said)))?;
            told(&answer, &format!("{id} is approved"), context)?;
        }
        Verb::Deny { id } => {
            let said = json!({"decision": "deny"});
            let answer = block_on(client.call(Method::POST, &path(id)?, Some(&said)));
            let answer = answer.map_err(unknown)?;
            told(&answer, &format!("{id} is denied"), context)?;
        }
    }
    Ok(0)
}

fn told(answer: &Value, line: &str, context: &Context) -> Result<(), CliError> {
    if context.common.json {
        output::json(answer)
    } else {
        output::line(line)
    }
}

fn path(id: &str) -> Result<String, CliError> {
    let id: ApprovalId = id.parse().map_err(|_| {
        CliError::with(
            USAGE,
            format!("`{}` is no id of a request", clean(id)),
            "`clawmatrix approvals list` prints them",
        )
    })?;
    Ok(format!("/api/v1/approvals/{id}"))
}

fn failed(error: &KeyError) -> CliError {
    let hint = match error {
        KeyError::Missing(_) => {
            "make one with `clawmatrix approvals enroll`, or name it with `--key`".to_owned()
        }
        KeyError::Exists(_) => {
            "use it, or move it away; its entry in `approvals.operators` goes with it".to_owned()
        }
        KeyError::Open(path) => format!("run `chmod 600 '{}'`", path.display()),
        KeyError::Damaged(_) => "enroll again, and remove the old entry".to_owned(),
        KeyError::Passphrase => {
            "a passphrase that is lost cannot be found again: enroll anew".to_owned()
        }
        KeyError::Io { .. } => String::new(),
    };
    CliError::failed(error.to_string(), hint)
}

/// Makes a key and registers it.
fn enroll(
    file: &Path,
    config: Option<&Path>,
    print: bool,
    context: &Context,
) -> Result<u8, CliError> {
    for state in locate::candidates(&context.common) {
        let state = std::path::absolute(&state).unwrap_or(state);
        if file.starts_with(&state) {
            return Err(CliError::with(
                USAGE,
                format!("`{}` lies in the node's state folder", file.display()),
                "keep the operator key where nothing of the node does, or on a stick",
            ));
        }
    }
    if file.exists() {
        return Err(failed(&KeyError::Exists(file.to_owned())));
    }
    // Under OpenClaw, or with a state folder of one's own choice, that file is another node's.
    let alone = match &context.common.state_dir {
        None => true,
        Some(dir) => locate::own_state_dir().as_ref() == Some(dir),
    };
    let target = match config {
        Some(path) => Some(path.to_owned()),
        None if print => None,
        None => locate::own_config_file().filter(|path| alone && path.exists()),
    };
    // Read before anything is made: what cannot be written then is known now.
    let mut settings = target.as_deref().map(read_settings).transpose()?;
    let passphrase = new_passphrase()?;
    let key = LockedKey::make(&passphrase);
    let operator = key.operator();
    let entry = json!({
        "key": operator.key,
        "tokenSha256": operator.token_sha256.map(|digest| hex(&digest)),
    });
    if let Some(settings) = &mut settings {
        add(settings, entry.clone())?;
    }
    key.save(file).map_err(|error| failed(&error))?;
    output::note(&format!(
        "Wrote the operator key {} to {}.",
        operator.key.id(),
        file.display()
    ));
    let snippet = json!({"approvals": {"operators": [entry]}});
    match (&target, &settings) {
        (Some(path), Some(settings)) => {
            setup::write_private(path, &setup::pretty(settings))?;
            output::note(&format!("Wrote its public half into {}.", path.display()));
            output::note(&next_step(context));
            if context.common.json {
                output::json(&json!({"key": file, "config": path, "operator": entry}))?;
            }
        }
        _ => {
            output::json(&snippet)?;
            output::note(
                "Put this into the node's configuration: under OpenClaw into `plugins.entries.clawmatrix.config`, which starts the node anew by itself.",
            );
            output::note(&next_step(context));
        }
    }
    Ok(0)
}

/// What makes a new operator count.
fn next_step(context: &Context) -> String {
    let nodes = locate::live(&context.common);
    match nodes.as_slice() {
        [node] => format!(
            "It counts once the node reads its configuration again: `kill -HUP {}`. Then `clawmatrix approvals list` shows what waits.",
            node.endpoint.pid
        ),
        _ => "It counts from the next start of the node on, or once SIGHUP makes it read its configuration again. Then `clawmatrix approvals list` shows what waits.".to_owned(),
    }
}

/// An operator the node does not know has another way out than a program with a wrong token.
fn unknown(error: CliError) -> CliError {
    if !error.message().ends_with("(invalid_api_key)") {
        return error;
    }
    CliError::failed(
        "the node does not know this operator key",
        "its configuration must list it in `approvals.operators`; a node without OpenClaw reads that again by SIGHUP",
    )
}

fn read_settings(path: &Path) -> Result<Value, CliError> {
    let unreadable = |error: &dyn std::fmt::Display| {
        CliError::failed(
            format!("cannot read `{}`: {error}", path.display()),
            "`--print` prints the settings for you to put there",
        )
    };
    let bytes = std::fs::read(path).map_err(|error| unreadable(&error))?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| unreadable(&error))?;
    if value.get("nodeId").is_some() {
        Ok(value)
    } else {
        Err(unreadable(&"it is no configuration of a node alone"))
    }
}

/// Puts an operator into settings.
fn add(settings: &mut Value, entry: Value) -> Result<(), CliError> {
    let strange = || {
        CliError::failed(
            "`approvals.operators` of the configuration is no list",
            "mend it first, or use `--print`",
        )
    };
    let approvals = settings
        .as_object_mut()
        .ok_or_else(strange)?
        .entry("approvals")
        .or_insert_with(|| json!({}));
    let operators = approvals
        .as_object_mut()
        .ok_or_else(strange)?
        .entry("operators")
        .or_insert_with(|| json!([]));
    operators.as_array_mut().ok_or_else(strange)?.push(entry);
    Ok(())
}

/// Asks for a passphrase twice.
fn new_passphrase() -> Result<Secret<String>, CliError> {
    output::note(
        "Choose a passphrase for the operator key: several words nobody can guess. It is needed for each approval.",
    );
    loop {
        let first = terminal::secret("Passphrase:")?;
        if let Some(why) = weak(first.reveal()) {
            output::note(why);
            continue;
        }
        if terminal::secret("The same again:")? == first {
            return Ok(first);
        }
        output::note("They differ; once more.");
    }
}

fn weak(passphrase: &str) -> Option<&'static str> {
    if passphrase.chars().count() < PASSPHRASE_CHARS {
        return Some("It has fewer than 12 characters.");
    }
    let guesses = zxcvbn::zxcvbn(passphrase, &["clawmatrix", "openclaw"]).guesses_log10();
    (guesses < PASSPHRASE_LOG10).then_some("It is too easy to guess.")
}

/// What the node says of a request.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    #[serde(flatten)]
    shown: Shown,
    here: bool,
    left_ms: u64,
    #[serde(default)]
    data: String,
    #[serde(default)]
    challenge: String,
}

/// A request as a person sees it, and as it is signed.
struct Asked {
    id: ApprovalId,
    challenge: String,
    request: Request,
    /// Whether it waits at this node, and not at another one.
    here: bool,
    left: Duration,
}

impl Asked {
    fn read(shown: &Value) -> Result<Self, CliError> {
        let strange = || {
            CliError::failed(
                "the node's answer is not understood",
                "it is of another version; restart it",
            )
        };
        let told: Told = serde_json::from_value(shown.clone()).map_err(|_| strange())?;
        let data = BASE64_STANDARD.decode(&told.data).map_err(|_| strange())?;
        Ok(Self {
            id: told.shown.id,
            challenge: told.challenge,
            request: told.shown.request(Bytes::from(data)),
            here: told.here,
            left: Duration::from_millis(told.left_ms),
        })
    }

    /// Level 3 is approved where it waits.
    fn check_place(&self) -> Result<(), CliError> {
        if self.here || self.request.level < CONSOLE_LEVEL {
            return Ok(());
        }
        let (id, node) = (self.id, &self.request.to);
        Err(CliError::failed(
            format!("a request of level 3 is approved on node `{node}` itself"),
            format!("run `clawmatrix approvals approve {id}` there"),
        ))
    }

    /// Everything, inert: control, invisible and turning characters are escaped, word by word.
    fn text(&self) -> String {
        let request = &self.request;
        let by = if request.agent {
            ", a model on its own"
        } else {
            ""
        };
        let place = if self.here { "" } else { ", another node" };
        let mut out = format!("Request {}\n", self.id);
        let mut row = |name: &str, value: &str| {
            out.push_str(&format!("  {name:<10} {value}\n"));
        };
        row(
            "From:",
            &format!("{} (key {}){by}", request.from, request.from_key.id()),
        );
        row(
            "Action:",
            &format!("{} on {}{place}", inert(&request.action), request.to),
        );
        if !request.touches.is_empty() {
            row("Touches:", &words(&request.touches));
        }
        if let Some(folder) = &request.workdir {
            row("In folder:", &words(std::slice::from_ref(folder)));
        }
        row("Arguments:", &inert(&request.args));
        row(
            "Rule:",
            &format!("{}, level {}", inert(&request.rule), request.level),
        );
        row("Time left:", &format!("{} s", self.left.as_secs()));
        if !request.data.is_empty() {
            row("Content:", &format!("{} bytes", request.data.len()));
            out.push_str(&content(&request.data));
        }
        out
    }
}

/// Each word in quotes, so that nobody takes two for one.
fn words(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    quoted.join(" ")
}

/// A text on one line, with whatever is not plainly visible escaped.
fn inert(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let plain = matches!(c, '"' | '\'' | '\\');
            let escaped = (!plain).then(|| c.escape_debug());
            plain
                .then_some(c)
                .into_iter()
                .chain(escaped.into_iter().flatten())
        })
        .collect()
}

/// The begin of a content, line by line.
fn content(data: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(data) else {
        return "    it is no text; `show --json` has it as base64\n".to_owned();
    };
    let shown: String = text.chars().take(SHOWN_CHARS).collect();
    let mut out = String::new();
    for line in shown.split('\n') {
        out.push_str(&format!("    | {}\n", inert(line)));
    }
    if shown.len() < text.len() {
        out.push_str(&format!(
            "    {} more bytes; `show --json` has all\n",
            text.len() - shown.len()
        ));
    }
    out
}

fn table(list: &Value) -> String {
    let none = Vec::new();
    let all = list["approvals"].as_array().unwrap_or(&none);
    if all.is_empty() {
        return "nothing waits for a person\n".to_owned();
    }
    let mut out = String::new();
    for one in all {
        let Ok(Asked {
            id, request, left, ..
        }) = Asked::read(one)
        else {
            continue;
        };
        let what = if request.touches.is_empty() {
            inert(&request.args)
        } else {
            words(&request.touches)
        };
        let what: String = what.chars().take(120).collect();
        out.push_str(&format!(
            "{id}  {} wants {} on {}: {what} ({} s left)\n",
            request.from,
            inert(&request.action),
            request.to,
            left.as_secs()
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(args: &str, touches: &[&str], data: &str) -> Asked {
        let from_key = crate::crypto::identity::Identity::generate().public();
        Asked::read(&json!({
            "id": "0a0b0c0d", "rid": crate::ids::RequestId([7; 16]), "from": "home", "fromKey": from_key, "to": "office",
            "action": "tool:exec", "args": args, "level": 2, "rule": "r", "touches": touches, "workdir": null,
            "agent": true, "askedMs": 1, "expMs": 2, "here": true, "leftMs": 1, "data": BASE64_STANDARD.encode(data),
        }))
        .unwrap()
    }

    /// T103: what would change how a terminal shows it stands there escaped.
    #[test]
    fn what_is_shown_is_inert() {
        let text = asked(
            "{\"argv\":[\"\u{1b}[2J\u{202e}\u{200b}\"]}",
            &[
                "/bin/rm",
                "a b",
                "\u{1b}]0;x\u{7}",
                "\u{2066}\u{feff}\u{202e}cod.txt",
                "line\nfeed",
            ],
            "one\r\u{1b}[1Atwo\nthree\u{2069}",
        )
        .text();
        let bad = |c: char| (c.is_control() && c != '\n') || !c.is_ascii();
        assert!(!text.contains(bad), "{text}");
        assert_eq!(text.lines().count(), 10, "{text}");
        for part in [
            r#""/bin/rm" "a b""#,
            r"\u{1b}[2J\u{202e}\u{200b}",
            r#""line\nfeed""#,
            r"| one\r\u{1b}[1Atwo",
            "a model on its own",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn settings_keep_what_they_had() {
        let mut settings = json!({"nodeId": "a", "approvals": {"wait": 5, "operators": [1]}});
        add(&mut settings, json!(2)).unwrap();
        assert_eq!(
            settings,
            json!({"nodeId": "a", "approvals": {"wait": 5, "operators": [1, 2]}})
        );
        assert!(add(&mut json!({"approvals": []}), json!(1)).is_err());
    }

    #[test]
    fn passphrases_that_are_easily_guessed_are_refused() {
        for poor in [
            "short",
            "password1234",
            "aaaaaaaaaaaaaaaa",
            "clawmatrix openclaw",
        ] {
            assert!(weak(poor).is_some(), "{poor}");
        }
        assert_eq!(weak("three grey herons wait"), None);
    }
}
