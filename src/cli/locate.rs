//! Which node a command means: where its state folder is, and whether it runs.

use std::{
    io::{self, BufRead as _, IsTerminal as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{
    Common,
    error::{CliError, USAGE},
    output::note,
};
use crate::app;

/// `<state>/run/endpoint` of a running node.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Endpoint {
    /// Port of the local API.
    pub(super) proxy_port: u16,
    /// Port of the mesh listener, if it listens.
    pub(super) listen_port: Option<u16>,
    /// Its process.
    pub(super) pid: u32,
}

/// A node that runs.
#[derive(Debug, Clone)]
pub(super) struct Running {
    /// Its state folder.
    pub(super) state: PathBuf,
    /// Where its local API is.
    pub(super) endpoint: Endpoint,
}

/// The state folder of a node without OpenClaw.
pub(super) fn own_state_dir() -> Option<PathBuf> {
    xdg("XDG_STATE_HOME", ".local/state").map(|d| d.join("clawmatrix"))
}

/// The configuration file of a node without OpenClaw.
pub(super) fn own_config_file() -> Option<PathBuf> {
    xdg("XDG_CONFIG_HOME", ".config").map(|d| d.join("clawmatrix/node.json"))
}

/// The folder of the node under OpenClaw's state folder.
pub(super) fn openclaw_state_dir() -> Option<PathBuf> {
    std::env::var_os("OPENCLAW_STATE_DIR")
        .filter(|d| !d.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(home()?.join(".openclaw")))
        .map(|d| d.join("clawmatrix"))
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME")
        .filter(|h| !h.is_empty())
        .map(PathBuf::from)
}

/// An XDG folder; a relative value is ignored, as its specification says.
fn xdg(variable: &str, default: &str) -> Option<PathBuf> {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|d| d.is_absolute())
        .or_else(|| Some(home()?.join(default)))
}

/// The folders a command looks into, in order.
pub(super) fn candidates(common: &Common) -> Vec<PathBuf> {
    match &common.state_dir {
        Some(dir) => vec![dir.clone()],
        None => openclaw_state_dir()
            .into_iter()
            .chain(own_state_dir())
            .collect(),
    }
}

/// The state folder a command works on when no node need run: that of the running node, else the
/// first that exists.
pub(super) fn state_dir(common: &Common) -> Result<PathBuf, CliError> {
    if let Some(running) = pick(live(common))? {
        return Ok(running.state);
    }
    let all = candidates(common);
    all.iter()
        .find(|d| d.is_dir())
        .or(common.state_dir.as_ref())
        .cloned()
        .ok_or_else(|| {
            CliError::failed(
                format!("no node has run here: there is no {}", listed(&all)),
                "start one with `clawmatrix run`, or name its folder with `--state-dir`",
            )
        })
}

/// The running node a command means.
pub(super) fn running(common: &Common) -> Result<Running, CliError> {
    if let Some(running) = pick(live(common))? {
        return Ok(running);
    }
    let all = candidates(common);
    for dir in &all {
        if let Some(failure) = app::last_failure(dir) {
            return Err(CliError::failed(
                format!(
                    "the node of `{}` does not run: its last start failed with code {}:\n{}",
                    dir.display(),
                    failure.code,
                    failure.message
                ),
                "",
            ));
        }
        if let Some(endpoint) = endpoint(dir) {
            return Err(CliError::failed(
                format!(
                    "the node of `{}` does not run: its endpoint file names port {} and process {}, and nothing answers there",
                    dir.display(),
                    endpoint.proxy_port,
                    endpoint.pid
                ),
                "the file is left over from a crash; start the node with `clawmatrix run`, or the OpenClaw gateway",
            ));
        }
    }
    Err(CliError::failed(
        format!("no running node found in {}", listed(&all)),
        "start one with `clawmatrix run` or the OpenClaw gateway, or name its folder with `--state-dir`",
    ))
}

/// Nodes that answer, among the candidates.
pub(super) fn live(common: &Common) -> Vec<Running> {
    candidates(common)
        .into_iter()
        .filter_map(|state| {
            let endpoint = endpoint(&state)?;
            answers(endpoint.proxy_port).then_some(Running { state, endpoint })
        })
        .collect()
}

/// The endpoint file of a folder, if there is a readable one.
pub(super) fn endpoint(state: &Path) -> Option<Endpoint> {
    let bytes = std::fs::read(state.join("run/endpoint")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn answers(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok()
}

/// The one node, or the person's choice.
pub(super) fn pick(mut live: Vec<Running>) -> Result<Option<Running>, CliError> {
    if live.len() < 2 {
        return Ok(live.pop());
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        let folders: Vec<PathBuf> = live.into_iter().map(|r| r.state).collect();
        return Err(CliError::with(
            USAGE,
            format!("two nodes run here: {}", listed(&folders)),
            "say which with `--state-dir`",
        ));
    }
    note("Two nodes run here:");
    for (i, node) in live.iter().enumerate() {
        note(&format!("  {} {}", i + 1, node.state.display()));
    }
    note("Which one (number)?");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    match answer.trim().parse::<usize>() {
        Ok(n) if read.is_ok() && (1..=live.len()).contains(&n) => Ok(Some(live.swap_remove(n - 1))),
        _ => Err(CliError::with(
            USAGE,
            "no node chosen",
            "say which with `--state-dir`",
        )),
    }
}

fn listed(folders: &[PathBuf]) -> String {
    if folders.is_empty() {
        return "any folder, for `HOME` is not set".to_owned();
    }
    folders
        .iter()
        .map(|d| format!("`{}`", d.display()))
        .collect::<Vec<_>>()
        .join(" or ")
}
