//! Which models can be used from here: our own, those of nodes we see, those we saw within 30 days, and
//! those the configuration promises. Feeds `GET /v1/models` and, through the shim, OpenClaw's provider
//! entries.
//!
//! An entry in OpenClaw's configuration outlives its node's absence, or a configured agent would lose
//! its model over a reboot. So what was seen is remembered in `known-models.json`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    endpoint::ApiKind,
    lent::LentModels,
    select::{Path, Us},
};
use crate::{
    config::ProxyModel,
    ids::NodeId,
    mesh::view::{ModelOffer, View},
    shim::CatalogEntry,
    state::{StateDir, StateError},
    trust::Level,
    wire::limits::KNOWN_MODEL_TTL,
};

/// Where the memory stands in the state folder.
pub const KNOWN_MODELS: &str = "known-models.json";

/// Name of the entry with the bare ids.
pub const BARE: &str = "clawmatrix";

/// Models remembered in all: 40 nodes that lend as many as a descriptor holds.
const MOST: usize = 10_000;

/// A model's last sight is written down this often, not on every change of the mesh.
const SIGHT: u64 = 24 * 3600;

/// A model that can be used now.
#[derive(Debug, Clone)]
pub struct Usable {
    /// Who lends it.
    pub node: NodeId,
    /// How that node is reached.
    pub path: Path,
    /// What it is.
    pub offer: ModelOffer,
    /// Requests now running, when it is ours.
    pub active: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sighting {
    offer: ModelOffer,
    /// Seconds since 1970.
    seen: u64,
}

type Memory = BTreeMap<NodeId, BTreeMap<String, Sighting>>;

/// Handle to the catalog; cheap to clone.
#[derive(Debug, Clone)]
pub struct Catalog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: NodeId,
    min_trust: Level,
    proxy_models: Vec<ProxyModel>,
    proxy_port: u16,
    lent: LentModels,
    view: watch::Receiver<Arc<View>>,
    dir: StateDir,
    known: Mutex<Memory>,
    entries: watch::Sender<Arc<Vec<CatalogEntry>>>,
}

impl Catalog {
    /// The catalog of the node `us`, with what it remembered. A damaged memory is started afresh.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be read.
    pub fn load(
        us: &Us,
        proxy_port: u16,
        lent: LentModels,
        view: watch::Receiver<Arc<View>>,
        dir: StateDir,
    ) -> Result<Self, StateError> {
        let known = dir.read(KNOWN_MODELS)?.map_or_else(Memory::new, |bytes| {
            serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, "known-models.json is damaged, starting afresh");
                Memory::new()
            })
        });
        let catalog = Self(Arc::new(Inner {
            node: us.node.clone(),
            min_trust: us.min_trust,
            proxy_models: us.proxy_models.clone(),
            proxy_port,
            lent,
            view,
            dir,
            known: Mutex::new(known),
            entries: watch::Sender::new(Arc::default()),
        }));
        catalog.refresh(now());
        Ok(catalog)
    }

    /// The entries OpenClaw should have. Changes only when a node, a model's id, name, api, window or
    /// input changes, never for load.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Vec<CatalogEntry>>> {
        self.0.entries.subscribe()
    }

    /// Keeps the catalog in step with the mesh and with what we lend, until both are gone.
    pub async fn run(self) {
        let mut view = self.0.view.clone();
        let mut lent = self.0.lent.subscribe();
        loop {
            // An hour bounds how late a model that was gone for 30 days leaves.
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                changed = lent.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(Duration::from_secs(3600)) => {}
            }
            if self.refresh(now()) {
                self.save().await;
            }
        }
    }

    /// What can be used now, best node first for each id.
    #[must_use]
    pub fn usable(&self) -> Vec<Usable> {
        let inner = &*self.0;
        let mut out: Vec<_> = inner
            .lent
            .table()
            .models
            .values()
            .map(|lent| Usable {
                node: inner.node.clone(),
                path: Path::Local,
                offer: lent.model.offer.clone(),
                active: Some(lent.model.active()),
            })
            .collect();
        let view = inner.view.borrow().clone();
        let mut others: Vec<_> = view
            .nodes
            .values()
            .filter(|node| node.node != inner.node)
            .filter(|node| node.level.is_none_or(|level| level >= inner.min_trust))
            .filter_map(|node| Some((Path::of(node.reach)?, node)))
            .collect();
        others.sort_by(|(a_path, a), (b_path, b)| {
            let latency = |ms: Option<f64>| ms.unwrap_or(f64::MAX);
            let trusted = |level: Option<Level>| level < Some(Level::Trusted);
            (trusted(a.level), a_path)
                .cmp(&(trusted(b.level), b_path))
                .then(latency(a.latency_ms).total_cmp(&latency(b.latency_ms)))
        });
        for (path, node) in others {
            out.extend(node.descriptor.models.iter().map(|offer| Usable {
                node: node.node.clone(),
                path,
                offer: offer.clone(),
                active: None,
            }));
        }
        out
    }

    /// Forgets models of `node` (all nodes without one), only `model` if given. What a live node lends
    /// comes back at once. Says how many were forgotten.
    ///
    /// # Errors
    /// [`StateError`] when the memory cannot be written.
    pub async fn forget(
        &self,
        node: Option<&str>,
        model: Option<&str>,
    ) -> Result<usize, StateError> {
        let forgotten = {
            let mut known = self.known();
            let count = |known: &Memory| known.values().map(BTreeMap::len).sum::<usize>();
            let before = count(&known);
            for (name, models) in known.iter_mut() {
                if node.is_none_or(|node| node == name.as_str()) {
                    models.retain(|id, _| model.is_some_and(|model| model != id));
                }
            }
            known.retain(|_, models| !models.is_empty());
            before - count(&known)
        };
        self.refresh(now());
        self.write().await?;
        Ok(forgotten)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn save(&self) {
        if let Err(error) = self.write().await {
            tracing::warn!(%error, "cannot remember models");
        }
    }

    async fn write(&self) -> Result<(), StateError> {
        let text = serde_json::to_vec_pretty(&*self.known()).unwrap_or_default();
        let dir = self.0.dir.clone();
        // A file sync takes milliseconds: not on the runtime's thread.
        match tokio::task::spawn_blocking(move || dir.write(KNOWN_MODELS, &text)).await {
            Ok(result) => result,
            // Only when the runtime goes down meanwhile; what was known before stays on disk.
            Err(_) => Ok(()),
        }
    }

    /// Takes in what is seen at `now` and forgets what is too old. Whether the memory must be written.
    fn refresh(&self, now: u64) -> bool {
        let mut changed = false;
        {
            let mut known = self.known();
            for usable in self.usable() {
                if usable.path == Path::Local || ApiKind::from_text(&usable.offer.api).is_none() {
                    continue;
                }
                let total: usize = known.values().map(BTreeMap::len).sum();
                let models = known.entry(usable.node).or_default();
                let full = total >= MOST && !models.contains_key(&usable.offer.id);
                let same = models.get(&usable.offer.id).is_some_and(|sighting| {
                    sighting.offer == usable.offer && now < sighting.seen + SIGHT
                });
                if same || full {
                    continue;
                }
                changed = true;
                let sighting = Sighting {
                    seen: now,
                    offer: usable.offer,
                };
                models.insert(sighting.offer.id.clone(), sighting);
            }
            known.retain(|_, models| {
                models.retain(|_, sighting| {
                    let fresh = now < sighting.seen + KNOWN_MODEL_TTL.as_secs();
                    changed |= !fresh;
                    fresh
                });
                !models.is_empty()
            });
        }
        let entries = self.build();
        self.0.entries.send_if_modified(|old| {
            let same = keys(old).eq(keys(&entries));
            if !same {
                *old = Arc::new(entries);
            }
            !same
        });
        changed
    }

    /// Every entry, from all four sources.
    fn build(&self) -> Vec<CatalogEntry> {
        let inner = &*self.0;
        let mut nodes: BTreeMap<&NodeId, BTreeMap<String, ModelOffer>> = BTreeMap::new();
        let own = inner.lent.table();
        for (id, lent) in &own.models {
            let models = nodes.entry(&inner.node).or_default();
            models.insert(id.clone(), lent.model.offer.clone());
        }
        let known = self.known();
        for (node, models) in known.iter() {
            let listed = nodes.entry(node).or_default();
            for (id, sighting) in models {
                listed
                    .entry(id.clone())
                    .or_insert_with(|| sighting.offer.clone());
            }
        }
        let mut bare: BTreeMap<String, ModelOffer> = BTreeMap::new();
        for entry in &inner.proxy_models {
            let promised = || promised(&entry.id);
            match &entry.node_id {
                Some(node) => {
                    let models = nodes.entry(node).or_default();
                    models.entry(entry.id.clone()).or_insert_with(promised);
                }
                None => {
                    bare.entry(entry.id.clone()).or_insert_with(promised);
                }
            }
        }
        let mut seen = BTreeSet::new();
        for models in nodes.values() {
            for (id, offer) in models {
                // A real offer beats a promise, the first node in the alphabet beats the next: which
                // one does not matter, but it must not change for nothing.
                if seen.insert(id.clone()) {
                    bare.insert(id.clone(), offer.clone());
                }
            }
        }
        let base = format!("http://127.0.0.1:{}", inner.proxy_port);
        let mut out: Vec<_> = nodes
            .into_iter()
            .map(|(node, models)| {
                let models = models.into_values().map(|offer| ModelOffer {
                    name: format!("{} @ {node}", inner.name(&offer, Some(node))),
                    ..offer
                });
                entry(
                    node.as_str(),
                    format!("{base}/nodes/{node}/v1"),
                    models.collect(),
                )
            })
            .collect();
        let models = bare.into_values().map(|offer| ModelOffer {
            name: inner.name(&offer, None),
            ..offer
        });
        let models: Vec<_> = models.collect();
        if !models.is_empty() {
            out.push(entry(BARE, format!("{base}/v1"), models));
        }
        out
    }
}

impl Inner {
    /// What people call a model: our configuration's word, the lender's, else its id.
    fn name(&self, offer: &ModelOffer, node: Option<&NodeId>) -> String {
        let ours = self.proxy_models.iter().find(|entry| {
            entry.id == offer.id
                && (node.is_none() || entry.node_id.is_none() || entry.node_id.as_ref() == node)
        });
        ours.and_then(|entry| entry.description.clone())
            .or_else(|| (!offer.name.is_empty()).then(|| offer.name.clone()))
            .unwrap_or_else(|| offer.id.clone())
    }
}

/// A model nobody has described yet (contract 2).
fn promised(id: &str) -> ModelOffer {
    ModelOffer {
        id: id.to_owned(),
        api: "openai-completions".into(),
        context_window: 128_000,
        max_tokens: 4096,
        input: vec!["text".into()],
        ..ModelOffer::default()
    }
}

fn entry(provider: &str, base_url: String, models: Vec<ModelOffer>) -> CatalogEntry {
    // Each model carries its own api; the entry's is that of the first.
    let api = models.first().map_or("openai-completions", |m| &m.api);
    CatalogEntry {
        provider: provider.to_owned(),
        base_url,
        api: api.to_owned(),
        models,
    }
}

/// What makes two catalogs differ.
fn keys(entries: &[CatalogEntry]) -> impl Iterator<Item = impl PartialEq> {
    entries.iter().flat_map(|entry| {
        entry.models.iter().map(|m| {
            let texts = (&entry.provider, &m.id, &m.name, &m.api);
            (texts, m.context_window, &m.input)
        })
    })
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
