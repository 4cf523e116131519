//! `clawmatrix audit`: the record of what other nodes asked for and were asked for. Reads the files, so it needs no node
//! that runs.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    Context,
    error::CliError,
    locate,
    output::{self, Paint, clean},
};
use crate::{
    audit::{self, verify::verify},
    civil::utc,
    config::Config,
    crypto::identity::{Identity, PublicKey},
    mesh::rotation,
    state::StateDir,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show the last entries.
    Tail {
        /// How many.
        #[arg(short = 'n', long, default_value_t = 20)]
        lines: usize,
    },
    /// Check that no line was changed, removed or moved; names the first that was.
    Verify,
    /// Print the whole record, one JSON object a line, as it is on the disk.
    Export,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let state = locate::state_dir(&context.common)?;
    let folder = state.join(audit::FOLDER);
    if !audit::exists(&folder) {
        return Err(CliError::failed(
            format!("there is no audit record in `{}`", folder.display()),
            "the node begins it at its first start, unless `audit` is `false`",
        ));
    }
    match args.verb {
        Verb::Tail { lines } => tail(&folder, lines, context)?,
        Verb::Verify => check(&state, &folder, context)?,
        Verb::Export => each(&folder, output::line)?,
    }
    Ok(0)
}

fn tail(folder: &Path, most: usize, context: &Context) -> Result<(), CliError> {
    let mut last = VecDeque::new();
    each(folder, |line| {
        last.push_back(line.to_owned());
        if last.len() > most {
            last.pop_front();
        }
        Ok(())
    })?;
    let lines: Vec<Value> = last
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| json!({"damaged": line})))
        .collect();
    if context.common.json {
        return output::json(&lines);
    }
    output::print(
        &lines
            .iter()
            .map(|line| shown(line, context.paint))
            .collect::<String>(),
    )
}

fn shown(line: &Value, paint: Paint) -> String {
    let text = |key: &str| clean(line[key].as_str().unwrap_or_default());
    if let Some(damaged) = line["damaged"].as_str() {
        return format!("{} {}\n", paint.red("damaged"), clean(damaged));
    }
    let head = format!(
        "{:>6} {}",
        line["seq"],
        utc(line["ts"].as_u64().unwrap_or(0) / 1000)
    );
    if line["signature"].is_string() {
        return format!("{} signed\n", paint.dim(&head));
    }
    let decision = match line["decision"].as_str() {
        Some("allow") => paint.green("allow"),
        _ => paint.red("deny "),
    };
    // Who asked, or who was asked. Lines of earlier versions are all of others.
    let (arrow, other) = match line["dir"].as_str() {
        Some("out") => ("->", text("to")),
        _ => ("<-", text("from")),
    };
    let mut out = format!(
        "{} {decision} {arrow} {other} {} {}",
        paint.dim(&head),
        text("action"),
        text("result")
    );
    if line["decision"] == "deny" {
        out.push_str(&format!(" (`{}`)", text("rule")));
    }
    if let Some(ms) = line["ms"].as_u64() {
        out.push_str(&format!(" {ms} ms"));
    }
    if let Some(count) = line["count"].as_u64() {
        out.push_str(&format!(" {count} times"));
    }
    out.push('\n');
    out
}

fn check(state: &Path, folder: &Path, context: &Context) -> Result<(), CliError> {
    let sound = verify(folder, &our_keys(state)).map_err(|broken| {
        let cause = std::error::Error::source(&broken);
        let cause = cause.map_or_else(String::new, |cause| format!(": {cause}"));
        CliError::failed(
            format!("the record is broken: {broken}{cause}"),
            "keep a copy of the folder, and look at who could write to it",
        )
    })?;
    if context.common.json {
        return output::json(&json!({
            "sound": true,
            "first": sound.first,
            "last": sound.last,
            "signed": sound.signed,
            "head": sound.head,
        }));
    }
    let signed = match sound.signed {
        0 => "not signed yet".to_owned(),
        signed => format!("signed up to {signed}"),
    };
    output::line(&format!(
        "the record is whole: lines {} to {}, {signed}\nhead: {}",
        sound.first, sound.last, sound.head
    ))
}

/// The keys that sign and signed here; none when they are kept where this command does not find them.
fn our_keys(state: &Path) -> Vec<PublicKey> {
    let (Some(key), Ok(dir)) = (our_key(state), StateDir::open(state)) else {
        return Vec::new();
    };
    let mut keys = rotation::earlier(&dir, key);
    keys.push(key);
    keys
}

fn our_key(state: &Path) -> Option<PublicKey> {
    let dir = StateDir::open(state).ok()?;
    if Some(state) == locate::own_state_dir().as_deref()
        && let Some(config) = locate::own_config_file().filter(|file| file.exists())
        && let Ok(config) = Config::from_file(&config)
    {
        return config.identity(&dir).ok().map(|identity| identity.public());
    }
    let present = state.join("identity.key").exists();
    let identity = present.then(|| Identity::load_or_create(&dir, None));
    Some(identity?.ok()?.public())
}

fn each(folder: &Path, mut work: impl FnMut(&str) -> Result<(), CliError>) -> Result<(), CliError> {
    let failed = |path: PathBuf| {
        move |error| CliError::failed(format!("cannot read `{}`: {error}", path.display()), "")
    };
    for (_, path) in audit::files(folder).map_err(failed(folder.to_owned()))? {
        let file = File::open(&path).map_err(failed(path.clone()))?;
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(failed(path.clone()))?;
            work(&String::from_utf8_lossy(&line))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_cannot_write_to_the_terminal() {
        let line = json!({"seq": 1, "ts": 0, "from": "attic", "action": "model:\u{1b}[2J", "decision": "deny"});
        assert!(!shown(&line, Paint::PLAIN).contains('\u{1b}'));
    }

    #[test]
    fn both_directions_and_the_rule_of_a_refusal_show() {
        let line = |more: Value| {
            let mut line = json!({"seq": 1, "ts": 0, "from": "attic", "action": "tool:exec", "decision": "deny", "rule": "no-exec"});
            line.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            shown(&line, Paint::PLAIN)
        };
        assert!(line(json!({})).contains("deny  <- attic tool:exec"));
        assert!(line(json!({})).contains("(`no-exec`)"));
        let out = line(json!({"dir": "out", "to": "office", "decision": "allow"}));
        assert!(out.contains("allow -> office tool:exec"), "{out}");
        assert!(!out.contains("no-exec"));
    }
}
