//! What this node lends: the `models` of its configuration joined with the providers the shim
//! resolved. Rebuilt whole whenever the providers change; readers hold a snapshot.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use url::Url;

use super::endpoint::Endpoint;
use crate::{
    config::{Allow, ModelConfig},
    crypto::secret::Secret,
    mesh::{linkstate::Load, session::Peer, view::ModelOffer},
    shim::ProviderEntry,
    wire::limits::{REFRESH_KEY_EVERY, REFRESH_KEY_TIMEOUT},
};

/// Used when neither the configuration nor OpenClaw knows better (contract 2).
const CONTEXT_WINDOW: u64 = 128_000;
/// See [`CONTEXT_WINDOW`].
const MAX_TOKENS: u64 = 4096;
/// Places a model without `maxConcurrent` counts for in the load that others are told: more than a
/// node serves at once, so that such a model never looks full.
const PLACES_OF_AN_UNBOUNDED_MODEL: u32 = 1024;

/// One model we lend.
#[derive(Debug)]
pub struct LentModel {
    /// What others are told of it.
    pub offer: ModelOffer,
    /// Its id at the provider.
    pub upstream: String,
    /// Where it is served.
    pub endpoint: Arc<Endpoint>,
    allow: Option<Allow>,
    gate: Arc<Gate>,
}

/// What goes on at one model now. Outlives a rebuild of the table.
#[derive(Debug)]
struct Gate {
    active: AtomicU32,
    /// Whether its provider gave no answer the last time.
    failing: AtomicBool,
    /// Told whenever a place is taken or given back.
    load_changed: Arc<Notify>,
    pace: Arc<Pace>,
}

/// How long streamed answers of late took to begin, over all models: milliseconds, 0 before the first.
#[derive(Debug, Default)]
struct Pace(AtomicU32);

impl Pace {
    /// One more; it counts for a quarter, so that a handful of requests tell how the provider does now.
    fn note(&self, took: Duration) {
        let took = u32::try_from(took.as_millis()).unwrap_or(u32::MAX).max(1);
        let mix = |old: u32| {
            let (old, took) = (u64::from(old), u64::from(took));
            u32::try_from((3 * old + took + 2) / 4).unwrap_or(u32::MAX)
        };
        // A note lost between two at once matters to nobody.
        let old = self.0.load(Ordering::Relaxed);
        let new = if old == 0 { took } else { mix(old) };
        self.0.store(new, Ordering::Relaxed);
    }
}

/// One request's place at its model; given back on drop.
#[derive(Debug)]
pub struct Place(Arc<Gate>);

impl Place {
    /// A streamed answer has begun, so long after its provider was asked.
    pub(super) fn began(&self, took: Duration) {
        self.0.pace.note(took);
        self.0.load_changed.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
        self.0.load_changed.notify_one();
    }
}

impl LentModel {
    /// Whether `caller` may use it.
    #[must_use]
    pub fn admits(&self, caller: &Peer) -> bool {
        Allow::admits(self.allow.as_ref(), caller)
    }

    /// Notes whether its provider answers at present; true when that is news.
    pub fn provider_answers(&self, answers: bool) -> bool {
        self.gate.failing.swap(!answers, Ordering::Relaxed) == answers
    }

    /// Requests now running.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.gate.active.load(Ordering::Relaxed)
    }
}

/// All lent models at one moment.
#[derive(Debug, Default)]
pub struct Table {
    /// By the id others use.
    pub models: BTreeMap<String, Lent>,
    /// What could not be lent and why, for `status` and the log.
    pub warnings: Vec<String>,
}

/// A model with its limit.
#[derive(Debug, Clone)]
pub struct Lent {
    /// The model.
    pub model: Arc<LentModel>,
    /// Requests at once, if limited.
    pub max_concurrent: Option<u32>,
}

impl Lent {
    /// Takes a place; none when all are taken.
    #[must_use]
    pub fn enter(&self) -> Option<Place> {
        let gate = &self.model.gate;
        let max = self.max_concurrent.unwrap_or(u32::MAX);
        gate.active
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < max).then_some(n + 1)
            })
            .ok()
            .map(|_| {
                gate.load_changed.notify_one();
                Place(gate.clone())
            })
    }
}

/// Asks OpenClaw for a provider's key afresh. Resolves once [`LentModels::set_providers`] was called
/// with the answer, or when there is none.
pub trait KeyRefresher: Send + Sync + fmt::Debug {
    /// Asks for the key of `provider`.
    fn refresh(&self, provider: String) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Handle to what we lend; cheap to clone.
#[derive(Debug, Clone)]
pub struct LentModels(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    models: Vec<ModelConfig>,
    auto: bool,
    proxy_port: u16,
    gates: Mutex<HashMap<String, Arc<Gate>>>,
    load_changed: Arc<Notify>,
    pace: Arc<Pace>,
    table: watch::Sender<Arc<Table>>,
    refresher: Option<Arc<dyn KeyRefresher>>,
    /// When each provider's key was last asked for; held while asking, so that many refused requests
    /// ask once.
    refreshed: tokio::sync::Mutex<HashMap<String, Instant>>,
}

impl LentModels {
    /// What `models` and `auto` of the configuration lend, given `providers`. `proxy_port` is the bound
    /// port of our own local API, which is never lent.
    #[must_use]
    pub fn new(
        models: Vec<ModelConfig>,
        auto: bool,
        proxy_port: u16,
        providers: &BTreeMap<String, ProviderEntry>,
        refresher: Option<Arc<dyn KeyRefresher>>,
    ) -> Self {
        let lent = Self(Arc::new(Inner {
            models,
            auto,
            proxy_port,
            gates: Mutex::default(),
            load_changed: Arc::default(),
            pace: Arc::default(),
            table: watch::Sender::new(Arc::default()),
            refresher,
            refreshed: tokio::sync::Mutex::default(),
        }));
        lent.set_providers(providers);
        lent
    }

    /// Replaces the providers. Requests under way keep what they began with.
    pub fn set_providers(&self, providers: &BTreeMap<String, ProviderEntry>) {
        let table = self.0.build(providers);
        for warning in &table.warnings {
            if !self.0.table.borrow().warnings.contains(warning) {
                tracing::warn!(warning, "model not lent");
            }
        }
        self.0.table.send_replace(Arc::new(table));
        self.0.load_changed.notify_one();
    }

    /// The present table.
    #[must_use]
    pub fn table(&self) -> Arc<Table> {
        self.0.table.borrow().clone()
    }

    /// Follows changes of the table.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Table>> {
        self.0.table.subscribe()
    }

    /// What others are told, by id.
    #[must_use]
    pub fn offers(&self) -> Vec<ModelOffer> {
        let table = self.table();
        table
            .models
            .values()
            .map(|l| l.model.offer.clone())
            .collect()
    }

    /// How busy all lent models are together (protocol 6.1); none when nothing is lent. Nothing is ever
    /// queued: who finds no place hears `overloaded` at once.
    #[must_use]
    pub fn load(&self) -> Option<Load> {
        let table = self.table();
        let models = table.models.values();
        let idle = Load {
            ttfb_ms: self.0.pace.0.load(Ordering::Relaxed),
            ..Load::default()
        };
        let load = models.fold(idle, |sum, lent| {
            let places = lent.max_concurrent.unwrap_or(PLACES_OF_AN_UNBOUNDED_MODEL);
            Load {
                active: sum.active.saturating_add(lent.model.active()),
                cap: sum.cap.saturating_add(places),
                ..sum
            }
        });
        (!table.models.is_empty()).then_some(load)
    }

    /// Resolves when [`LentModels::load`] may have changed since the last time; for one waiter.
    pub async fn load_changed(&self) {
        self.0.load_changed.notified().await;
    }

    /// The model called `id`, if `caller` may use it; without a caller it is our own request. Absent
    /// and forbidden look the same.
    #[must_use]
    pub fn find(&self, id: &str, caller: Option<&Peer>) -> Option<Lent> {
        let lent = self.0.table.borrow().models.get(id).cloned()?;
        caller
            .is_none_or(|caller| lent.model.admits(caller))
            .then_some(lent)
    }

    /// After the provider of `id` refused the credentials of `refused`: an endpoint with other ones, if
    /// OpenClaw has them. Asks at most once every few seconds.
    pub async fn fresh_endpoint(&self, id: &str, refused: &Endpoint) -> Option<Arc<Endpoint>> {
        let provider = refused.provider.clone()?;
        let refresher = self.0.refresher.clone()?;
        let changed = || {
            let lent = self.find(id, None)?;
            let endpoint = lent.model.endpoint.clone();
            (!endpoint.same_credentials(refused)).then_some(endpoint)
        };
        let mut refreshed = self.0.refreshed.lock().await;
        if let Some(endpoint) = changed() {
            return Some(endpoint);
        }
        let recent = |at: &Instant| at.elapsed() < REFRESH_KEY_EVERY;
        if refreshed.get(&provider).is_some_and(recent) {
            return None;
        }
        if timeout(REFRESH_KEY_TIMEOUT, refresher.refresh(provider.clone()))
            .await
            .is_err()
        {
            tracing::debug!(provider, "no fresh key in time");
        }
        refreshed.insert(provider, Instant::now());
        changed()
    }
}

impl Inner {
    fn build(&self, providers: &BTreeMap<String, ProviderEntry>) -> Table {
        let mut table = Table::default();
        for config in &self.models {
            match self.resolve(config, providers) {
                Ok(lent) => {
                    table.models.insert(config.id.clone(), lent);
                }
                Err(reason) => table
                    .warnings
                    .push(format!("model `{}` is not lent: {reason}", config.id)),
            }
        }
        if self.auto {
            for (name, entry) in providers {
                self.lend_all(name, entry, &mut table);
            }
        }
        table
    }

    fn gate(&self, id: &str) -> Arc<Gate> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            Arc::new(Gate {
                active: AtomicU32::new(0),
                failing: AtomicBool::new(false),
                load_changed: self.load_changed.clone(),
                pace: self.pace.clone(),
            })
        };
        gates.entry(id.to_owned()).or_insert_with(new).clone()
    }

    /// Every model of one provider, as `"auto"` wants it. What was named already, or belongs to another
    /// node, is left out.
    fn lend_all(&self, name: &str, entry: &ProviderEntry, table: &mut Table) {
        let endpoint = match endpoint(name, entry) {
            Ok(endpoint) if endpoint.is_local_api(self.proxy_port) => return,
            Ok(endpoint) => Arc::new(endpoint),
            Err(reason) => {
                table
                    .warnings
                    .push(format!("provider `{name}` is not lent: {reason}"));
                return;
            }
        };
        for known in &entry.models {
            let id = if table.models.contains_key(&known.id) {
                format!("{name}/{}", known.id)
            } else {
                known.id.clone()
            };
            if table.models.contains_key(&id) {
                continue;
            }
            let offer = ModelOffer {
                id: id.clone(),
                api: endpoint.api.offered().into(),
                context_window: or(known.context_window, CONTEXT_WINDOW),
                max_tokens: or(known.max_tokens, MAX_TOKENS),
                input: texts(&known.input),
                ..known.clone()
            };
            let model = LentModel {
                offer,
                upstream: known.id.clone(),
                endpoint: endpoint.clone(),
                allow: None,
                gate: self.gate(&id),
            };
            let lent = Lent {
                model: Arc::new(model),
                max_concurrent: None,
            };
            table.models.insert(id, lent);
        }
    }

    fn resolve(
        &self,
        config: &ModelConfig,
        providers: &BTreeMap<String, ProviderEntry>,
    ) -> Result<Lent, String> {
        let empty = Vec::new();
        let (endpoint, known, upstream) = if let Some(base) = &config.base_url {
            let api = config.api.as_deref().unwrap_or("openai-completions");
            let made = Endpoint::new(None, base, api, config.api_key.as_ref(), &BTreeMap::new())
                .map_err(|error| error.to_string())?;
            (made, &empty, last_part(&config.id))
        } else {
            let (name, upstream) = provider_of(config, providers)?;
            let entry = providers.get(name).ok_or_else(|| {
                format!(
                    "OpenClaw knows no provider `{name}`; set `baseUrl`, or add the provider there"
                )
            })?;
            let mut entry = entry.clone();
            if let Some(api) = &config.api {
                entry.api.clone_from(api);
            }
            if let Some(key) = &config.api_key {
                entry.api_key = Some(key.reveal().clone());
            }
            let models = &providers[name].models;
            (endpoint(name, &entry)?, models, upstream)
        };
        if endpoint.is_local_api(self.proxy_port) {
            return Err("its provider is this node's own local API, which would be a loop".into());
        }
        let upstream = config
            .upstream_model
            .clone()
            .unwrap_or_else(|| upstream.to_owned());
        let known = known.iter().find(|m| m.id == upstream);
        let pick = |own: Option<u64>, theirs: fn(&ModelOffer) -> u64, fallback| {
            own.unwrap_or_else(|| or(known.map_or(0, theirs), fallback))
        };
        let offer = ModelOffer {
            id: config.id.clone(),
            name: known.map(|m| m.name.clone()).unwrap_or_default(),
            api: endpoint.api.offered().into(),
            context_window: pick(config.context_window, |m| m.context_window, CONTEXT_WINDOW),
            max_tokens: pick(config.max_tokens, |m| m.max_tokens, MAX_TOKENS),
            input: texts(
                config
                    .input
                    .as_ref()
                    .or(known.map(|m| &m.input))
                    .unwrap_or(&Vec::new()),
            ),
            reasoning: config
                .reasoning
                .unwrap_or_else(|| known.is_some_and(|m| m.reasoning)),
            cost: config.cost.clone().or_else(|| known?.cost.clone()),
            locality: config.locality.clone().or_else(|| known?.locality.clone()),
            description: config.description.clone(),
        };
        Ok(Lent {
            model: Arc::new(LentModel {
                offer,
                upstream,
                endpoint: Arc::new(endpoint),
                allow: config.allow.clone(),
                gate: self.gate(&config.id),
            }),
            max_concurrent: config.max_concurrent,
        })
    }
}

fn or(value: u64, fallback: u64) -> u64 {
    if value == 0 { fallback } else { value }
}

fn texts(input: &[String]) -> Vec<String> {
    if input.is_empty() {
        vec!["text".to_owned()]
    } else {
        input.to_vec()
    }
}

fn last_part(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}

fn endpoint(name: &str, entry: &ProviderEntry) -> Result<Endpoint, String> {
    let base = Url::parse(&entry.base_url)
        .map_err(|_| format!("the base URL of provider `{name}` is not a URL"))?;
    let key = entry.api_key.clone().map(Secret::new);
    Endpoint::new(
        Some(name.to_owned()),
        &base,
        &entry.api,
        key.as_ref(),
        &entry.headers,
    )
    .map_err(|error| format!("provider `{name}`: {error}"))
}

/// The provider of a model and the model's id there: as configured, else by the text before the first
/// `/`, else the one provider that has such a model.
fn provider_of<'a>(
    config: &'a ModelConfig,
    providers: &'a BTreeMap<String, ProviderEntry>,
) -> Result<(&'a str, &'a str), String> {
    let has = |name: &str, id: &str| {
        providers
            .get(name)
            .is_some_and(|entry| entry.models.iter().any(|m| m.id == id))
    };
    if let Some(name) = &config.provider {
        // An id with a slash may be the provider's own, or carry the provider's name in front.
        let id = if has(name, &config.id) {
            &config.id
        } else {
            match config.id.split_once('/') {
                Some((first, rest)) if first == name => rest,
                _ => last_part(&config.id),
            }
        };
        return Ok((name, id));
    }
    if let Some((first, rest)) = config.id.split_once('/')
        && providers.contains_key(first)
    {
        return Ok((first, rest));
    }
    let mut owners = providers.keys().filter(|name| has(name, &config.id));
    match (owners.next(), owners.next()) {
        (Some(name), None) => Ok((name, &config.id)),
        (Some(a), Some(b)) => Err(format!("both `{a}` and `{b}` have it; set `provider`")),
        (None, _) => Err("no provider of OpenClaw has it; set `provider` or `baseUrl`".into()),
    }
}

#[cfg(test)]
mod tests;
