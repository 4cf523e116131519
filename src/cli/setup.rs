//! `clawmatrix setup`: the first configuration.
//!
//! A secret never comes by argument: it is read from a file or standard input, or made here. It is
//! written to a file of its own (0600) which the configuration names, so that the configuration
//! itself can be shown and copied.

use std::{
    fs,
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Map, Value, json};

use super::{
    Context,
    error::{CliError, USAGE},
    locate, output, secret,
};
use crate::{
    config::{self, Config, Source},
    state::write_atomic,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name of this node [default: the host's name].
    #[arg(long, value_name = "NAME")]
    node_id: Option<String>,
    /// Name of the mesh [default: default].
    #[arg(long, value_name = "NAME")]
    mesh: Option<String>,
    /// Accept links from other nodes, on this port [default: 19000].
    #[arg(long, value_name = "PORT", num_args = 0..=1)]
    listen: Option<Option<u16>>,
    /// A node to dial, as `name=ws://host:19000`; may be given more than once.
    #[arg(long, value_name = "NODE=URL", value_parser = peer)]
    peer: Vec<(String, String)>,
    /// File that holds the cluster secret. Without it and `--secret-stdin` a new secret is made.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Read the cluster secret from standard input.
    #[arg(long, conflicts_with = "secret_file")]
    secret_stdin: bool,
    /// Where to write the configuration [default: ~/.config/clawmatrix/node.json].
    #[arg(long, value_name = "FILE", conflicts_with = "openclaw")]
    config: Option<PathBuf>,
    /// Replace a configuration that is there.
    #[arg(long)]
    force: bool,
    /// Put the settings into OpenClaw's configuration, by `openclaw config patch`.
    #[arg(long)]
    openclaw: bool,
    /// Print the settings of `plugins.entries.clawmatrix.config` instead of writing them.
    #[arg(long, alias = "emit", conflicts_with = "config")]
    print: bool,
}

fn peer(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((node, url)) if !node.is_empty() && !url.is_empty() => {
            Ok((node.to_owned(), url.to_owned()))
        }
        _ => Err("write it as `office-01=ws://office.example:19000`".to_owned()),
    }
}

/// Where the settings go.
enum Target {
    /// A file of our own.
    File(PathBuf),
    /// OpenClaw's configuration, by its writer.
    OpenClaw,
    /// Standard output: the plugin hands them to OpenClaw's writer.
    Print,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let target = target(args)?;
    let mut answers = Answers {
        node_id: args.node_id.clone(),
        listen: args.listen,
        peers: args.peer.clone(),
    };
    let asked = args.node_id.is_none()
        && args.peer.is_empty()
        && args.listen.is_none()
        && !args.secret_stdin
        && io::stdin().is_terminal()
        && io::stderr().is_terminal();
    if asked {
        answers.ask()?;
    }
    let mut settings = answers.settings(args.mesh.as_deref());

    let folder = folder(&target, context)?;
    let secret = chosen_secret(args, &folder)?;
    let openclaw = !matches!(target, Target::File(_));
    check(&settings, &secret, openclaw, &folder)?;
    let file = secret.file(&folder, openclaw);
    settings.insert("secretFile".into(), file.to_string_lossy().into());
    let file = folder.join(file);
    if let Some(text) = secret.text() {
        write_private(&file, &format!("{text}\n"))?;
    }

    let settings = Value::Object(settings);
    let written = match &target {
        Target::Print => {
            output::json(&settings)?;
            None
        }
        Target::File(path) => {
            write_private(path, &pretty(&settings))?;
            Some(path.display().to_string())
        }
        Target::OpenClaw => {
            patch(&settings)?;
            Some("OpenClaw's configuration".to_owned())
        }
    };
    if context.common.json && written.is_some() {
        output::json(
            &json!({"written": written, "secretFile": file, "secretMade": secret.made()}),
        )?;
    }
    if let Some(written) = &written {
        output::note(&format!("Wrote {written}."));
    }
    if secret.made() {
        output::note(&format!(
            "Made a cluster secret: {}. Copy this file to every other node and run `setup --secret-file` there.",
            file.display()
        ));
    }
    if let Target::File(path) = &target {
        let named = if locate::own_config_file().as_ref() == Some(path) {
            String::new()
        } else {
            format!(" --config {}", path.display())
        };
        output::note(&format!("Start the node: clawmatrix run{named}"));
    }
    Ok(0)
}

fn target(args: &Args) -> Result<Target, CliError> {
    if args.print {
        return Ok(Target::Print);
    }
    if args.openclaw {
        return Ok(Target::OpenClaw);
    }
    let path = super::run::file_or_default(args.config.as_deref())?;
    let path = std::path::absolute(&path).unwrap_or(path);
    if path.exists() && !args.force {
        return Err(CliError::failed(
            format!("`{}` is there already", path.display()),
            "edit it, or replace it with `--force`",
        ));
    }
    Ok(Target::File(path))
}

/// The folder a new secret goes to: beside the configuration, or the node's folder under OpenClaw.
fn folder(target: &Target, context: &Context) -> Result<PathBuf, CliError> {
    let none = || {
        CliError::with(
            USAGE,
            "there is no place for the secret: `HOME` is not set",
            "give `--secret-file`",
        )
    };
    match target {
        Target::File(path) => path.parent().map(Path::to_owned).ok_or_else(none),
        Target::OpenClaw | Target::Print => {
            let dir = context
                .common
                .state_dir
                .clone()
                .or_else(locate::openclaw_state_dir)
                .ok_or_else(none)?;
            Ok(std::path::absolute(&dir).unwrap_or(dir))
        }
    }
}

/// Where the secret comes from.
enum Chosen {
    /// A file the person named.
    Named(PathBuf),
    /// The file an earlier setup left.
    Kept,
    /// Given on standard input.
    Given(String),
    /// Made here.
    Made(String),
}

impl Chosen {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Given(text) | Self::Made(text) => Some(text),
            Self::Named(_) | Self::Kept => None,
        }
    }

    fn made(&self) -> bool {
        matches!(self, Self::Made(_))
    }

    /// The value of `secretFile`. Under OpenClaw it is absolute, for the plugin runs elsewhere.
    fn file(&self, folder: &Path, absolute: bool) -> PathBuf {
        match self {
            Self::Named(path) => path.clone(),
            _ if absolute => folder.join(SECRET_FILE),
            _ => PathBuf::from(SECRET_FILE),
        }
    }
}

/// Name of the file a secret is written to.
const SECRET_FILE: &str = "secret";

fn chosen_secret(args: &Args, folder: &Path) -> Result<Chosen, CliError> {
    if let Some(file) = &args.secret_file {
        let path = std::path::absolute(file).unwrap_or_else(|_| file.clone());
        return Ok(Chosen::Named(path));
    }
    let kept = folder.join(SECRET_FILE);
    if args.secret_stdin {
        if kept.exists() && !args.force {
            return Err(CliError::failed(
                format!("`{}` is there already", kept.display()),
                "keep it by leaving `--secret-stdin` out, or replace it with `--force`",
            ));
        }
        let mut text = String::new();
        io::stdin()
            .lock()
            .take(4096)
            .read_to_string(&mut text)
            .map_err(|error| {
                CliError::failed(format!("cannot read standard input: {error}"), "")
            })?;
        return Ok(Chosen::Given(
            text.trim_end_matches(['\r', '\n']).to_owned(),
        ));
    }
    if kept.exists() {
        return Ok(Chosen::Kept);
    }
    Ok(Chosen::Made(secret::generate()))
}

/// Nothing is written that a start would refuse.
fn check(
    settings: &Map<String, Value>,
    secret: &Chosen,
    openclaw: bool,
    folder: &Path,
) -> Result<(), CliError> {
    let mut whole = settings.clone();
    match secret.text() {
        Some(text) => whole.insert("secret".into(), text.into()),
        None => whole.insert(
            "secretFile".into(),
            secret.file(folder, true).to_string_lossy().into(),
        ),
    };
    let source = Source {
        openclaw,
        folder,
        env: &config::process_env,
    };
    let config = Config::from_value(Value::Object(whole), &source)?;
    for warning in &config.warnings {
        output::note(&format!("warning: {warning}"));
    }
    Ok(())
}

pub(super) fn write_private(path: &Path, text: &str) -> Result<(), CliError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .and_then(|()| write_atomic(path, text.as_bytes()))
        .map_err(|error| {
            CliError::failed(format!("cannot write `{}`: {error}", path.display()), "")
        })
}

pub(super) fn pretty(value: &Value) -> String {
    // Printing texts, numbers and lists cannot fail.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

/// Hands the settings to OpenClaw's own writer, on its standard input.
fn patch(settings: &Value) -> Result<(), CliError> {
    let patch = json!({"plugins": {"entries": {"clawmatrix": {"config": settings}}}});
    let failed = |why: String| {
        CliError::failed(
            format!("OpenClaw's configuration was not changed: {why}"),
            "`clawmatrix setup --print` prints the settings for `plugins.entries.clawmatrix.config`",
        )
    };
    let mut child = Command::new("openclaw")
        .args(["config", "patch", "--stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| failed(format!("cannot start `openclaw`: {error}")))?;
    if let Some(mut input) = child.stdin.take() {
        input
            .write_all(patch.to_string().as_bytes())
            .map_err(|error| failed(error.to_string()))?;
    }
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    if status.success() {
        Ok(())
    } else {
        Err(failed(format!(
            "`openclaw config patch` ended with {status}"
        )))
    }
}

/// What the person wants.
struct Answers {
    node_id: Option<String>,
    listen: Option<Option<u16>>,
    peers: Vec<(String, String)>,
}

impl Answers {
    fn ask(&mut self) -> Result<(), CliError> {
        let host = host_name();
        let name = question(&format!("Name of this node [{host}]:"))?;
        self.node_id = (!name.is_empty()).then_some(name);
        let listen =
            question("Can other nodes reach this machine, so that it should accept links? [y/N]")?;
        if listen.to_lowercase().starts_with('y') {
            self.listen = Some(None);
        }
        loop {
            let text =
                question("A node to dial, as `office-01=ws://office.example:19000` [none]:")?;
            if text.is_empty() {
                return Ok(());
            }
            match peer(&text) {
                Ok(peer) => self.peers.push(peer),
                Err(way) => output::note(&way),
            }
        }
    }

    fn settings(&self, mesh: Option<&str>) -> Map<String, Value> {
        let mut settings = Map::new();
        let node_id = self.node_id.clone().unwrap_or_else(host_name);
        settings.insert("nodeId".into(), node_id.into());
        if let Some(mesh) = mesh {
            settings.insert("mesh".into(), mesh.into());
        }
        if let Some(port) = self.listen {
            settings.insert("listen".into(), true.into());
            if let Some(port) = port {
                settings.insert("listenPort".into(), port.into());
            }
        }
        if !self.peers.is_empty() {
            let peers: Vec<Value> = self
                .peers
                .iter()
                .map(|(node, url)| json!({"nodeId": node, "url": url}))
                .collect();
            settings.insert("peers".into(), peers.into());
        }
        settings
    }
}

fn question(text: &str) -> Result<String, CliError> {
    let mut err = io::stderr();
    let asked = write!(err, "{text} ").and_then(|()| err.flush());
    let mut answer = String::new();
    let read = asked.and_then(|()| io::stdin().lock().read_line(&mut answer));
    match read {
        Ok(_) => Ok(answer.trim().to_owned()),
        Err(error) => Err(CliError::failed(
            format!("cannot ask: {error}"),
            "give the answers as options",
        )),
    }
}

/// The host's name as a node id: what does not fit is left out.
fn host_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let short = name.split('.').next().unwrap_or_default();
    let kept: String = short
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        .take(64)
        .collect();
    let kept = kept.trim_matches(['-', '_']);
    if kept.is_empty() {
        "node-01".to_owned()
    } else {
        kept.to_owned()
    }
}
