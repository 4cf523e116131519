//! What the tools of a node must know of the node as a whole.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use tokio::sync::watch;

use crate::{config::Config, mesh::view::View, tools::inbound::TagsOf};

/// Tags of other nodes, for rules that deny by them.
pub(super) fn tags_of(view: Arc<OnceLock<watch::Receiver<Arc<View>>>>) -> TagsOf {
    Arc::new(move |node| {
        let view = view.get().map(|view| view.borrow().clone());
        let about = view.as_ref().and_then(|view| view.nodes.get(node));
        about.map_or_else(Vec::new, |node| node.descriptor.tags.clone())
    })
}

/// The gateway's own state folder: the one ours lies in.
fn gateway_folder(state_dir: &Path, gateway: bool) -> Option<PathBuf> {
    let folder = std::path::absolute(state_dir).ok()?;
    folder.parent().filter(|_| gateway).map(Path::to_owned)
}

/// What no tool opens: state and configuration of this node and of its gateway.
pub(super) fn private_places(config: &Config, state_dir: &Path, gateway: bool) -> Vec<PathBuf> {
    let mut places = config.private_files.clone();
    places.push(state_dir.to_owned());
    places.extend(gateway_folder(state_dir, gateway));
    let named = ["OPENCLAW_CONFIG_PATH", "OPENCLAW_STATE_DIR"];
    places.extend(
        named
            .iter()
            .filter_map(|name| Some(std::env::var_os(name)?.into())),
    );
    places
        .into_iter()
        .filter_map(|place| std::path::absolute(place).ok())
        .collect()
}

/// The workspaces of agents, which OpenClaw keeps within its state folder.
pub(super) fn workspaces(state_dir: &Path, gateway: bool) -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".openclaw"));
    let folders = gateway_folder(state_dir, gateway).into_iter().chain(home);
    folders
        .flat_map(|folder| {
            let mut found = vec![folder.join("workspace")];
            let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            let named = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default();
                name.to_string_lossy().starts_with("workspace-")
            };
            found.extend(entries.map(|entry| entry.path()).filter(named));
            found
        })
        .collect()
}
