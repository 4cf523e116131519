//! One running node: its parts, made in order.

mod changes;
mod offers;
mod secrets;
mod stop;
mod told;

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use tokio::{net::TcpListener, sync::watch, time::Instant};

use self::{
    offers::{agent_offers, offer_models, offered_agents, tell_catalog, tell_load},
    secrets::learn_secrets,
};
use super::{
    Logs, Providers, StartError,
    bind::bind,
    hold,
    metrics::NodeMetrics,
    tools::{private_places, tags_of, workspaces},
};
use crate::{
    approvals::{self, Desk, Inbox, inbound::ApprovalService, outbound::Approvers},
    audit::Audit,
    budgets::{Budgets, inbound::Metered},
    config::{ApprovalConfig, Config},
    control::{Control, Kept, status::Facts},
    crypto::stretch::MeshKeys,
    drain::Tasks,
    events::Events,
    exchange::{Exchange, Handlers, Kind, Limits, Lineage, Opening, Sessions},
    handoff::{
        inbound::HandoffService,
        outbound::{Handoffs, Parts},
    },
    ids::{Boot, MeshName, NodeId},
    mesh::{
        Mesh, MeshSettings,
        handshake::{Ourselves, Params},
        incarnation::advance,
        limiter::Cidr,
        rotation,
        session::Peer,
        tls::ListenerTls,
    },
    messages::{
        self, Courier,
        inbound::{Addressees, MessageService},
        outbound::Messages,
        store::Store,
    },
    models::{
        catalog::Catalog,
        inbound::ModelService,
        lent::{KeyRefresher, LentModels},
        outbound::Outbound,
        provider::Client,
        select::Us,
        serve::Server,
    },
    proxy::{
        self, Assembly, LocalApi,
        metrics::Counters,
        model::Models,
        tokens::{LaunchToken, TokenStore},
    },
    shim::{FromSidecar, bridge::Bridge, keys::ShimKeys, notices, stdio::Voice},
    state::{StateDir, StateLock},
    telemetry::Redactor,
    tools::{
        ToolRunner,
        host::running::Register,
        inbound::{self as tools_inbound, ToolService},
        outbound::{self as tools_outbound, Tools},
    },
    trust::{Level, TrustStore},
    wire::code::Failure,
};

/// Program name and version, as other nodes see it.
const SOFTWARE: &str = concat!("clawmatrix/", env!("CARGO_PKG_VERSION"));
/// `{"proxyPort","listenPort","pid"}` of the running node, for commands and the shim.
const ENDPOINT: &str = "run/endpoint";

impl Sessions for Mesh {
    fn session<'a>(&'a self, node: &'a NodeId) -> Opening<'a> {
        Box::pin(Mesh::session(self, node))
    }
}

impl Addressees for HandoffService {
    fn addressee(&self, wanted: Option<&str>, caller: Option<&Peer>) -> Result<String, Failure> {
        HandoffService::addressee(self, wanted, caller)
    }
}

/// A node at work.
#[derive(Debug)]
pub(super) struct Node {
    tasks: Tasks,
    /// Connections to the local API; waited for before anything else is stopped.
    local: Tasks,
    mesh: Mesh,
    exchange: Exchange,
    audit: Audit,
    budgets: Budgets,
    events: Events,
    tools: ToolService,
    desk: Desk,
    inbox: Inbox,
    tokens: TokenStore,
    api: LocalApi,
    lent: LentModels,
    keys: Option<ShimKeys>,
    bridge: Option<Bridge>,
    redactor: Redactor,
    /// The mesh and its secrets, which change without a restart.
    secrets: (MeshName, MeshKeys),
    drain_timeout: Duration,
    /// What configuration, shim and mesh want the operator to know.
    warnings: watch::Sender<Vec<String>>,
    config_warnings: Vec<String>,
    shim_warnings: Mutex<Vec<String>>,
    state: StateDir,
    _launch: LaunchToken,
    _lock: StateLock,
}

impl Node {
    /// Makes every part and begins to work; ready when it returns. Blocks on files, which harms
    /// nobody while nothing runs yet. Must be called within a runtime.
    pub(super) fn start(
        config: Config,
        providers: Providers,
        state_dir: &Path,
        voice: Option<&Voice>,
        logs: Logs,
    ) -> Result<Self, StartError> {
        let Logs { redactor, dropped } = logs;
        learn_secrets(&redactor, &config, &providers);
        let (state, lock) = hold(state_dir)?;
        let tasks = Tasks::new();
        // Stretching takes a quarter of a second of one core: begin before anything else.
        let keys = MeshKeys::start(
            &config.mesh,
            config.secret.clone(),
            config.accept_secrets.clone(),
            &tasks,
        );
        let secrets = (config.mesh.clone(), keys.clone());
        let in_folder = config.identity_file.is_none() && config.identity_seed.is_none();
        let held = config.identity(&state)?;
        let (identity, rotations) = rotation::take_over(&state, held, in_folder)?;
        let identity = Arc::new(identity);
        let trust = TrustStore::load(&state, &config.trust, &config.peers)?;

        let local = bind(
            "proxyPort",
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            config.proxy_port,
        )?;
        let proxy_port = port_of(&local)?;
        let listener = config
            .listen
            .as_ref()
            .map(|listen| bind("listenPort", listen.host, listen.port))
            .transpose()?;
        let listen_port = listener.as_ref().map(port_of).transpose()?;
        let tls_files = config.listen.as_ref().and_then(|l| l.tls.clone());
        let tls = tls_files.map(ListenerTls::open).transpose()?;

        let shim_keys = voice.map(|voice| ShimKeys::new(voice.clone()));
        let bridge = voice.map(|voice| Bridge::new(voice.clone()));
        let refresher = shim_keys
            .clone()
            .map(|keys| Arc::new(keys) as Arc<dyn KeyRefresher>);
        let lent = LentModels::new(
            config.models.clone(),
            config.models_auto,
            proxy_port,
            &providers,
            refresher,
        );
        let client = Client::new(tasks.clone());
        let server = Server::new(
            lent.clone(),
            client.clone(),
            config.limits.response_body_bytes,
        );
        let audit = if config.audit {
            Audit::open(&state, identity.clone(), &tasks)?
        } else {
            Audit::off()
        };
        let budgets = Budgets::load(state.clone(), config.limits.per_peer);
        let events = Events::default();
        let audit = audit.telling(events.clone());
        let asking = audit
            .clone()
            .asking(config.node_id.clone(), identity.public().id());
        let service = ModelService::new(
            config.node_id.clone(),
            server.clone(),
            audit.clone(),
            tasks.clone(),
        );
        let memory = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let limits = Limits {
            request_body_bytes: config.limits.request_body_bytes,
            response_body_bytes: config.limits.response_body_bytes,
            peer_budget_bytes: memory(config.limits.peer_memory_bytes),
            node_budget_bytes: memory(config.limits.node_memory_bytes),
        };
        let lineage = Lineage::default();
        let handoff_service = HandoffService::new(
            config.node_id.clone(),
            offered_agents(&config.agents, bridge.as_ref(), &client, &tasks)?,
            config.handoff_timeout,
            lineage.clone(),
            audit.clone(),
            tasks.clone(),
        );
        let store = Store::open(&state)?;
        let message_service = MessageService::new(
            config.node_id.clone(),
            Arc::new(handoff_service.clone()),
            bridge
                .clone()
                .map(|bridge| Arc::new(bridge) as Arc<dyn Courier>),
            store.clone(),
            audit.clone(),
            tasks.clone(),
        );
        let desk = Desk::new(
            &config.approvals.operators,
            config.approvals.wait,
            events.clone(),
        );
        let inbox = Inbox::new(config.approvals.nodes.clone(), desk.clone(), events.clone());
        let approval_service = Arc::new(ApprovalService::new(approvals::inbound::Parts {
            node: config.node_id.clone(),
            desk: desk.clone(),
            inbox: inbox.clone(),
            tasks: tasks.clone(),
        }));
        let view = Arc::new(OnceLock::new());
        let tool_service = ToolService::new(tools_inbound::Parts {
            node: config.node_id.clone(),
            config: config.tools.clone(),
            denied: private_places(&config, state_dir, voice.is_some()),
            free: workspaces(state_dir, voice.is_some()),
            gateway: bridge
                .clone()
                .map(|bridge| Arc::new(bridge) as Arc<dyn ToolRunner>),
            tags: tags_of(view.clone()),
            budgets: budgets.clone(),
            running: Register::open(&state),
            audit: audit.clone(),
            desk: desk.clone(),
            tasks: tasks.clone(),
        });
        let handlers = Handlers::new()
            .with(Kind::Model, Arc::new(service.clone()))
            .with(Kind::Handoff, Arc::new(handoff_service.clone()))
            .with(Kind::Send, Arc::new(message_service.clone()))
            .with(Kind::Tool, Arc::new(tool_service.clone()))
            .with(Kind::ApprovalReq, approval_service.clone())
            .with(Kind::Approval, approval_service);
        let metered = Metered {
            inner: Arc::new(handlers),
            budgets: budgets.clone(),
            audit: audit.clone(),
        };
        let exchange = Exchange::with_limits(tasks.clone(), Arc::new(metered), limits);
        service.count_bodies(exchange.budget());

        let ourselves = Ourselves {
            node_id: config.node_id.clone(),
            mesh: config.mesh.clone(),
            identity: identity.clone(),
            keys,
            trust: trust.clone(),
            params: Params {
                relay: config.relay,
                hb: config.heartbeat.as_secs(),
                boot: Boot::random(),
                sw: SOFTWARE.into(),
            },
        };
        let settings = MeshSettings {
            heartbeat: config.heartbeat,
            trusted_proxies: proxies(&config.trusted_proxies),
            relays: config.relays.clone(),
            rotations,
            state: Some(state.clone()),
            ..MeshSettings::new(ourselves, advance(&state)?)
        };
        let mesh = Mesh::new(settings, Arc::new(exchange.clone()), tasks.clone());
        // Nothing has arrived yet.
        let _ = view.set(mesh.view());

        let us = Us {
            node: config.node_id.clone(),
            min_trust: config.outbound_min_trust,
            proxy_models: config.proxy_models.clone(),
        };
        let catalog = Catalog::load(&us, proxy_port, lent.clone(), mesh.view(), state.clone())?;
        let outbound = Outbound::new(
            us,
            server,
            exchange.clone(),
            Arc::new(mesh.clone()),
            mesh.view(),
            asking.clone(),
        );
        let handoffs = Handoffs::new(Parts {
            us: config.node_id.clone(),
            min_trust: config.outbound_min_trust,
            idle: config.handoff_timeout,
            exchange: exchange.clone(),
            sessions: Arc::new(mesh.clone()),
            view: mesh.view(),
            service: handoff_service,
            audit: asking.clone(),
            tasks: tasks.clone(),
        });
        let messages = Messages::new(messages::outbound::Parts {
            us: config.node_id.clone(),
            min_trust: config.outbound_min_trust,
            exchange: exchange.clone(),
            sessions: Arc::new(mesh.clone()),
            view: mesh.view(),
            service: message_service.clone(),
            store,
            audit: asking.clone(),
        });
        let tools = Tools::new(tools_outbound::Parts {
            us: Peer {
                node: config.node_id.clone(),
                key: identity.public(),
                boot: Boot::random(),
                level: Level::Trusted,
                labels: Arc::from([]),
            },
            min_trust: config.outbound_min_trust,
            exchange: exchange.clone(),
            sessions: Arc::new(mesh.clone()),
            view: mesh.view(),
            service: tool_service.clone(),
            audit: asking,
        });
        let approvers = Approvers::new(approvals::outbound::Parts {
            desk: desk.clone(),
            inbox: inbox.clone(),
            min_trust: config.outbound_min_trust,
            exchange: exchange.clone(),
            sessions: Arc::new(mesh.clone()),
            tasks: tasks.clone(),
        });
        let (tokens, launch) = TokenStore::start(&state)?;
        tokens.set_operators(digests(&config.approvals));
        let counters = Arc::new(Counters::default());
        let warnings = watch::Sender::new(config.warnings.clone());
        let api = LocalApi::new(Assembly {
            port: proxy_port,
            tokens: tokens.clone(),
            models: Models {
                outbound,
                budget: exchange.budget(),
                identity: config.model_identity,
            },
            catalog: catalog.clone(),
            control: Control {
                handoffs,
                messages: messages.clone(),
                tools,
                budgets: budgets.clone(),
                approvers: approvers.clone(),
                lineage,
                events: events.clone(),
                budget: exchange.budget(),
                facts: Facts {
                    node: config.node_id.clone(),
                    key_id: identity.public().id(),
                    started: Instant::now(),
                    listen_port,
                    tls: tls.clone(),
                    proxy_port,
                    agents: agent_offers(&config.agents),
                    tags: config.tags.clone(),
                    lent: lent.clone(),
                    waiting: desk.count(),
                    waiting_elsewhere: inbox.count(),
                    warnings: warnings.subscribe(),
                    view: mesh.view(),
                    trust,
                },
                tokens: tokens.clone(),
                catalog: catalog.clone(),
                kept: Kept::default(),
                tasks: tasks.clone(),
                metrics: vec![
                    counters.clone(),
                    Arc::new(NodeMetrics {
                        exchange: exchange.clone(),
                        mesh: mesh.clone(),
                        log: dropped,
                        audit: audit.clone(),
                        tasks: tasks.clone(),
                    }),
                ],
            },
            counters,
            limits: proxy::Limits {
                request_body_bytes: config.limits.request_body_bytes,
                connections: config.limits.connections as usize,
                requests_per_token: config.limits.requests_per_token as usize,
            },
        });

        // Everything is made; from here on it works.
        tasks.spawn(offer_models(mesh.clone(), lent.clone(), &config));
        tasks.spawn(tell_load(mesh.clone(), lent.clone()));
        tasks.spawn(changes::tell(mesh.view(), events.clone()));
        tasks.spawn(catalog.clone().run());
        tasks.spawn(budgets.clone().run());
        tasks.spawn(message_service.run());
        tasks.spawn(messages.run());
        tasks.spawn(approvers.run());
        if let (Some(voice), Some(notify)) = (voice, config.approvals.notify.clone()) {
            let us = config.node_id.clone();
            tasks.spawn(notices::run(
                us,
                desk.clone(),
                inbox.clone(),
                notify,
                voice.clone(),
            ));
        }
        if let Some(voice) = voice {
            tasks.spawn(tell_catalog(voice.clone(), catalog.subscribe()));
        }
        if let Some(listener) = listener {
            mesh.listen(adopt(listener)?, tls);
        }
        mesh.dial(config.peers.clone());
        if let Some(bounds) = config.dial_advertised.clone() {
            let configured = config.peers.iter().map(|peer| peer.node_id.clone());
            mesh.dial_advertised(bounds, configured.collect());
        }
        let homes = config.proxy_models.iter();
        mesh.keep_warm(homes.filter_map(|model| model.node_id.clone()).collect());
        let connections = Tasks::new();
        api.serve(adopt(local)?, &connections);
        write_endpoint(&state, proxy_port, listen_port)?;
        api.set_ready(true);
        if let Some(voice) = voice {
            voice.say(&FromSidecar::Ready {
                proxy_port,
                listen_port,
            });
        }
        tracing::info!(
            node = %config.node_id,
            key = %identity.public().id(),
            proxy_port,
            listen_port,
            "node is ready"
        );
        name_operators(&desk);
        for warning in &config.warnings {
            tracing::warn!(warning, "configuration");
        }
        Ok(Self {
            tasks,
            local: connections,
            mesh,
            exchange,
            audit,
            budgets,
            events,
            tools: tool_service,
            desk,
            inbox,
            tokens,
            api,
            lent,
            keys: shim_keys,
            bridge,
            redactor,
            secrets,
            drain_timeout: config.drain_timeout,
            warnings,
            config_warnings: config.warnings,
            shim_warnings: Mutex::default(),
            state,
            _launch: launch,
            _lock: lock,
        })
    }

    /// The configured grace period.
    pub(super) const fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }

    /// The way to the gateway's process, if it is our parent.
    pub(super) fn bridge(&self) -> Option<Bridge> {
        self.bridge.clone()
    }
}

/// Who sees what waits for a person, by the digests of their tokens.
fn digests(approvals: &ApprovalConfig) -> impl Iterator<Item = [u8; 32]> {
    let operators = approvals.operators.iter();
    operators.filter_map(|operator| operator.token_sha256)
}

/// Whose word counts is not to be changed unseen.
fn name_operators(desk: &Desk) {
    for key in desk.operators() {
        tracing::info!(%key, "this operator key may approve");
    }
}

/// The validated CIDR texts of the configuration.
fn proxies(texts: &[String]) -> Vec<Cidr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn port_of(listener: &std::net::TcpListener) -> Result<u16, StartError> {
    let address = listener.local_addr().map_err(|source| StartError::System {
        action: "read the bound address",
        source,
    })?;
    Ok(address.port())
}

fn adopt(listener: std::net::TcpListener) -> Result<TcpListener, StartError> {
    TcpListener::from_std(listener).map_err(|source| StartError::System {
        action: "watch the listener",
        source,
    })
}

fn write_endpoint(
    state: &StateDir,
    proxy_port: u16,
    listen_port: Option<u16>,
) -> Result<(), StartError> {
    let endpoint = serde_json::json!({
        "proxyPort": proxy_port,
        "listenPort": listen_port,
        "pid": std::process::id(),
    });
    state.write(ENDPOINT, endpoint.to_string().as_bytes())?;
    state.remove(super::failure::FILE);
    Ok(())
}
