//! One node without its mesh: local API, model tunnel and exchange, with sessions of memory to others.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use clawmatrix::{
    approvals::{self, Desk, Inbox, Nodes, inbound::ApprovalService, outbound::Approvers},
    audit::Audit,
    budgets::{Budgets, inbound::Metered},
    config::{ModelConfig, ProxyModel, ToolConfig, TrustConfig},
    control::{Control, Kept, status::Facts},
    crypto::identity::PublicKey,
    drain::Tasks,
    events::Events,
    exchange::{Exchange, Handlers, Kind, Lineage, Opening, Sessions},
    handoff::{
        inbound::{HandoffService, OfferedAgent},
        outbound::{Handoffs, Parts},
        runner::AgentRunner,
    },
    ids::{Boot, NodeId, SessionId},
    mesh::{
        session::{Class, Peer, SendError, Session, SessionHandler, SessionRef},
        view::{AgentOffer, Descriptor, NodeView, Reach, View},
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
    policy::Policy,
    proxy::{Assembly, Limits, LocalApi, metrics::Counters, model::Models, tokens::TokenStore},
    shim::ProviderEntry,
    state::StateDir,
    tools::{
        ToolRunner,
        host::{command::Commands, running::Register},
        inbound::{self as tools_inbound, ToolService},
        outbound::{self as tools_outbound, Tools},
    },
    trust::{Level, TrustStore},
    wire::{
        code::{Code, Failure},
        inner,
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::Instant,
};

/// What a node is made of.
pub struct Setup {
    pub name: &'static str,
    pub models: Vec<ModelConfig>,
    pub providers: BTreeMap<String, ProviderEntry>,
    pub refresher: Option<Arc<dyn KeyRefresher>>,
    pub proxy_models: Vec<ProxyModel>,
    pub agents: Vec<OfferedAgent>,
    pub courier: Option<Arc<dyn Courier>>,
    /// Tools lent.
    pub tools: ToolConfig,
    /// Runs tools that are not the node's own.
    pub gateway: Option<Arc<dyn ToolRunner>>,
    /// Where requests wait for a person.
    pub desk: Desk,
    /// Other nodes that have a say about approvals.
    pub nodes: Nodes,
    /// What is told to whoever watches.
    pub events: Events,
    /// Files no tool opens.
    pub denied: Vec<std::path::PathBuf>,
    /// State folder; a new one if none is given.
    pub folder: Option<tempfile::TempDir>,
    /// What others may use.
    pub budgets: Budgets,
    /// Where it records what others ask for, and it of others.
    pub audit: Audit,
    /// Longest silence of a handoff.
    pub idle: Duration,
    /// Which start of this node it is.
    pub boot: u8,
}

impl Setup {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            models: vec![],
            providers: BTreeMap::new(),
            refresher: None,
            proxy_models: vec![],
            agents: vec![],
            courier: None,
            tools: ToolConfig {
                policy: Policy::disabled(),
                roots: vec![],
                max_output_bytes: 1 << 20,
                commands: Commands::default(),
            },
            gateway: None,
            desk: Desk::unmanned(),
            nodes: Nodes::default(),
            events: Events::default(),
            denied: vec![],
            folder: None,
            budgets: Budgets::default(),
            audit: Audit::off(),
            idle: Duration::from_secs(600),
            boot: 1,
        }
    }

    /// Lends `id` from the server at `url`.
    pub fn lend(mut self, id: &str, url: &str, api: &str) -> Self {
        let mut model = model(id);
        model.base_url = Some(url.parse().unwrap());
        model.api = Some(api.into());
        model.upstream_model = Some("up/stream".into());
        model.api_key = Some(clawmatrix::crypto::secret::Secret::new(
            "sk-upstream-key".into(),
        ));
        self.models.push(model);
        self
    }
}

/// One agent takes the messages of everybody.
#[derive(Debug)]
struct Everybody(Option<String>);

impl Addressees for Everybody {
    fn addressee(&self, wanted: Option<&str>, _: Option<&Peer>) -> Result<String, Failure> {
        self.0
            .clone()
            .filter(|id| wanted.is_none_or(|wanted| wanted == id))
            .ok_or_else(|| Failure::not_started(Code::AgentNotFound, "no such agent"))
    }
}

/// An agent that everyone may use.
pub fn agent(id: &str, runner: Arc<dyn AgentRunner>) -> OfferedAgent {
    OfferedAgent {
        id: id.into(),
        allow: None,
        tools: None,
        runner: Some(runner),
    }
}

pub fn model(id: &str) -> ModelConfig {
    ModelConfig {
        id: id.into(),
        provider: None,
        upstream_model: None,
        base_url: None,
        api_key: None,
        api: None,
        description: String::new(),
        reasoning: None,
        input: None,
        cost: None,
        context_window: None,
        max_tokens: None,
        max_concurrent: None,
        locality: None,
        allow: None,
    }
}

pub struct Node {
    pub name: NodeId,
    pub port: u16,
    pub launch: String,
    pub openclaw: String,
    pub api: LocalApi,
    pub lent: LentModels,
    pub exchange: Exchange,
    pub tokens: TokenStore,
    pub tasks: Tasks,
    view: watch::Sender<Arc<View>>,
    pub sessions: Arc<Table>,
    key: PublicKey,
    agents: Vec<AgentOffer>,
    boot: Boot,
    pub lineage: Lineage,
    pub tool_service: ToolService,
    pub inbox: Inbox,
    pub events: Events,
    temp: tempfile::TempDir,
    _launch: clawmatrix::proxy::tokens::LaunchToken,
}

impl Node {
    pub async fn start(setup: Setup) -> Self {
        let temp = setup.folder.unwrap_or_else(|| tempfile::tempdir().unwrap());
        let dir = StateDir::open(temp.path()).unwrap();
        let tasks = Tasks::new();
        let name: NodeId = setup.name.parse().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tokens, launch) = TokenStore::start(&dir).unwrap();
        let read = |name| String::from_utf8(dir.read(name).unwrap().unwrap()).unwrap();
        let (launch_text, openclaw) = (read("run/token"), read("openclaw.token"));
        let view = watch::Sender::new(Arc::<View>::default());
        let sessions = Arc::new(Table::default());

        let boot = Boot([setup.boot; 16]);
        let key = PublicKey([name.as_str().len() as u8 ^ name.as_str().as_bytes()[0]; 32]);
        let events = setup.events;
        let audit = setup.audit.telling(events.clone());
        let asking = audit.clone().asking(name.clone(), key.id());
        let us = |proxy_models| Us {
            node: name.clone(),
            min_trust: Level::Pinned,
            proxy_models,
        };
        let lent = LentModels::new(setup.models, false, port, &setup.providers, setup.refresher);
        let server = Server::new(lent.clone(), Client::new(tasks.clone()), 256 << 20);
        let service = ModelService::new(name.clone(), server.clone(), audit.clone(), tasks.clone());
        let lineage = Lineage::default();
        let agents = setup.agents.iter().map(|agent| AgentOffer {
            id: agent.id.clone(),
            ..AgentOffer::default()
        });
        let agents: Vec<AgentOffer> = agents.collect();
        let handoff_service = HandoffService::new(
            name.clone(),
            setup.agents,
            setup.idle,
            lineage.clone(),
            audit.clone(),
            tasks.clone(),
        );
        let store = Store::open(&dir).unwrap();
        let message_service = MessageService::new(
            name.clone(),
            Arc::new(Everybody(agents.first().map(|agent| agent.id.clone()))),
            setup.courier,
            store.clone(),
            audit.clone(),
            tasks.clone(),
        );
        let tool_service = ToolService::new(tools_inbound::Parts {
            node: name.clone(),
            config: setup.tools,
            denied: setup.denied,
            free: vec![],
            gateway: setup.gateway,
            tags: Arc::new(|_| vec![]),
            budgets: setup.budgets.clone(),
            running: Register::default(),
            audit: audit.clone(),
            desk: setup.desk.clone(),
            tasks: tasks.clone(),
        });
        let inbox = Inbox::new(setup.nodes, setup.desk.clone(), events.clone());
        let approval_service = Arc::new(ApprovalService::new(approvals::inbound::Parts {
            node: name.clone(),
            desk: setup.desk.clone(),
            inbox: inbox.clone(),
            tasks: tasks.clone(),
        }));
        let handlers = Handlers::new()
            .with(Kind::Model, Arc::new(service.clone()))
            .with(Kind::Handoff, Arc::new(handoff_service.clone()))
            .with(Kind::Send, Arc::new(message_service.clone()))
            .with(Kind::Tool, Arc::new(tool_service.clone()))
            .with(Kind::ApprovalReq, approval_service.clone())
            .with(Kind::Approval, approval_service);
        let handlers = Metered {
            inner: Arc::new(handlers),
            budgets: setup.budgets.clone(),
            audit: audit.clone(),
        };
        let exchange = Exchange::new(tasks.clone(), Arc::new(handlers));
        service.count_bodies(exchange.budget());
        let catalog = Catalog::load(
            &us(setup.proxy_models.clone()),
            port,
            lent.clone(),
            view.subscribe(),
            dir.clone(),
        )
        .unwrap();
        let outbound = Outbound::new(
            us(setup.proxy_models),
            server,
            exchange.clone(),
            sessions.clone(),
            view.subscribe(),
            asking.clone(),
        );
        let handoffs = Handoffs::new(Parts {
            us: name.clone(),
            min_trust: Level::Pinned,
            idle: setup.idle,
            exchange: exchange.clone(),
            sessions: sessions.clone(),
            view: view.subscribe(),
            service: handoff_service,
            audit: asking.clone(),
            tasks: tasks.clone(),
        });
        let messages = Messages::new(messages::outbound::Parts {
            us: name.clone(),
            min_trust: Level::Pinned,
            exchange: exchange.clone(),
            sessions: sessions.clone(),
            view: view.subscribe(),
            service: message_service.clone(),
            store,
            audit: asking.clone(),
        });
        let tools = Tools::new(tools_outbound::Parts {
            us: Peer {
                node: name.clone(),
                key,
                boot,
                level: Level::Trusted,
                labels: Arc::from([]),
            },
            min_trust: Level::Pinned,
            exchange: exchange.clone(),
            sessions: sessions.clone(),
            view: view.subscribe(),
            service: tool_service.clone(),
            audit: asking,
        });
        tasks.spawn(message_service.run());
        tasks.spawn(messages.clone().run());
        let approvers = Approvers::new(approvals::outbound::Parts {
            desk: setup.desk.clone(),
            inbox: inbox.clone(),
            min_trust: Level::Pinned,
            exchange: exchange.clone(),
            sessions: sessions.clone(),
            tasks: tasks.clone(),
        });
        tasks.spawn(approvers.clone().run());
        let counters = Arc::new(Counters::default());
        let control = Control {
            handoffs,
            messages,
            tools,
            budgets: setup.budgets.clone(),
            approvers: approvers.clone(),
            lineage: lineage.clone(),
            events: events.clone(),
            facts: Facts {
                node: name.clone(),
                key_id: key.id(),
                started: Instant::now(),
                listen_port: None,
                tls: None,
                proxy_port: port,
                agents: vec![],
                tags: vec!["test".into()],
                lent: lent.clone(),
                trust: TrustStore::in_memory(&TrustConfig::default(), &[]).unwrap(),
                waiting: setup.desk.count(),
                waiting_elsewhere: inbox.count(),
                warnings: watch::Sender::new(vec!["be careful".to_owned()]).subscribe(),
                view: view.subscribe(),
            },
            tokens: tokens.clone(),
            catalog: catalog.clone(),
            budget: exchange.budget(),
            kept: Kept::default(),
            tasks: tasks.clone(),
            metrics: vec![counters.clone()],
        };
        let api = LocalApi::new(Assembly {
            port,
            tokens: tokens.clone(),
            models: Models {
                outbound,
                budget: exchange.budget(),
                identity: true,
            },
            catalog,
            control,
            counters,
            limits: Limits::default(),
        });
        api.serve(listener, &tasks);
        api.set_ready(true);
        Self {
            name,
            port,
            launch: launch_text,
            openclaw,
            api,
            lent,
            exchange,
            tokens,
            tasks,
            view,
            sessions,
            key,
            agents,
            boot,
            lineage,
            tool_service,
            inbox,
            events,
            temp,
            _launch: launch,
        }
    }

    /// Ends the node and gives what it has on disk to the next start. A copy: some of its parts hold one
    /// another until the process ends, and with them the lock on the file.
    pub async fn stop(self) -> tempfile::TempDir {
        self.tasks.close(Duration::ZERO).await;
        let next = tempfile::tempdir().unwrap();
        let name = "messages.redb";
        std::fs::copy(self.temp.path().join(name), next.path().join(name)).unwrap();
        next
    }

    /// Another node goes out of sight.
    pub fn lose(&self, other: &NodeId) {
        self.view.send_modify(|view| {
            let mut nodes = view.nodes.clone();
            if let Some(node) = nodes.get_mut(other) {
                node.reach = Reach::Unreachable;
            }
            *view = Arc::new(View {
                nodes,
                ..View::default()
            });
        });
    }

    /// Asks this node for a tool of `office`; status and answer.
    pub async fn tool_of_office(
        &self,
        verb: &str,
        mut body: serde_json::Value,
        patience: Duration,
    ) -> (u16, serde_json::Value) {
        body["node"] = "office".into();
        let client = reqwest::Client::builder().no_proxy().timeout(patience);
        let request = client
            .build()
            .unwrap()
            .post(self.url(&format!("/api/v1/tools/{verb}")));
        let answer = request.bearer_auth(&self.launch).json(&body).send().await;
        let answer = answer.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn peer(&self, level: Level) -> Peer {
        Peer {
            node: self.name.clone(),
            key: self.key,
            boot: self.boot,
            level,
            labels: Arc::from([]),
        }
    }

    /// Shows `other` in this node's view.
    pub fn see(&self, other: &Node, reach: Reach, latency_ms: f64) {
        self.see_at(other, reach, latency_ms, Level::Pinned);
    }

    /// As [`Node::see`], trusted that far.
    pub fn see_at(&self, other: &Node, reach: Reach, latency_ms: f64, level: Level) {
        let seen = NodeView {
            node: other.name.clone(),
            key_id: Some(other.key.id()),
            level: Some(level),
            reach,
            reachable_via: None,
            latency_ms: Some(latency_ms),
            descriptor: Arc::new(Descriptor {
                agents: other.agents.clone(),
                models: other.lent.offers(),
                ..Descriptor::default()
            }),
            load: None,
            last_seen: None,
            problem: None,
        };
        self.view.send_modify(|view| {
            let mut nodes = view.nodes.clone();
            nodes.insert(other.name.clone(), seen);
            *view = Arc::new(View {
                nodes,
                ..View::default()
            });
        });
    }
}

/// A cable between two nodes; pulled when dropped.
pub struct Cable {
    ends: [(Exchange, SessionRef, Arc<Table>, NodeId); 2],
    cut: Arc<AtomicBool>,
    way: Arc<Way>,
}

/// What a test does to a cable.
#[derive(Debug, Default)]
struct Way {
    /// Takes frames and loses them.
    loses: AtomicBool,
    /// Seconds that its sessions say they are older than they are.
    older: AtomicU64,
}

impl Cable {
    /// From now on every frame is lost, and nobody is told.
    pub fn lose(&self) {
        self.way.loses.store(true, Ordering::Relaxed);
    }

    /// As if both machines had been suspended for so many seconds.
    pub fn suspend(&self, seconds: u64) {
        self.way.older.fetch_add(seconds, Ordering::Relaxed);
    }

    pub fn pull(&self) {
        if !self.cut.swap(true, Ordering::Relaxed) {
            for (exchange, session, table, other) in &self.ends {
                table.0.lock().unwrap().remove(other);
                exchange.lost(session);
            }
        }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.pull();
    }
}

/// Joins two nodes over memory; both see each other as direct neighbours.
pub fn join(a: &Node, b: &Node, latency_ms: f64) -> Cable {
    let cut = Arc::new(AtomicBool::new(false));
    let way = Arc::<Way>::default();
    let (to_b, from_a) = mpsc::channel(1024);
    let (to_a, from_b) = mpsc::channel(1024);
    let id = SessionId::random();
    let end = |peer: Peer, to| -> SessionRef {
        Arc::new(Memory {
            id,
            peer,
            began: Instant::now(),
            to,
            cut: cut.clone(),
            way: way.clone(),
        })
    };
    let at_a = end(b.peer(Level::Pinned), to_b);
    let at_b = end(a.peer(Level::Pinned), to_a);
    for (node, other, session, mut frames) in
        [(a, b, at_a.clone(), from_b), (b, a, at_b.clone(), from_a)]
    {
        node.exchange.up(&session);
        let table = &node.sessions.0;
        table
            .lock()
            .unwrap()
            .insert(other.name.clone(), session.clone());
        node.see(other, Reach::Direct, latency_ms);
        let exchange = node.exchange.clone();
        let cut = cut.clone();
        node.tasks.spawn(async move {
            while let Some((class, frame)) = frames.recv().await {
                if cut.load(Ordering::Relaxed) {
                    return;
                }
                exchange.frame(&session, class, frame);
            }
        });
    }
    Cable {
        ends: [
            (a.exchange.clone(), at_a, a.sessions.clone(), b.name.clone()),
            (b.exchange.clone(), at_b, b.sessions.clone(), a.name.clone()),
        ],
        cut,
        way,
    }
}

#[derive(Debug, Default)]
pub struct Table(Mutex<HashMap<NodeId, SessionRef>>);

impl Sessions for Table {
    fn session<'a>(&'a self, node: &'a NodeId) -> Opening<'a> {
        let table = self.0.lock().unwrap();
        let found = table
            .get(node)
            .cloned()
            .ok_or_else(|| Failure::not_started(Code::NoRoute, "no path to the node"));
        Box::pin(std::future::ready(found))
    }
}

#[derive(Debug)]
struct Memory {
    id: SessionId,
    peer: Peer,
    began: Instant,
    to: mpsc::Sender<(Class, Bytes)>,
    cut: Arc<AtomicBool>,
    way: Arc<Way>,
}

impl Session for Memory {
    fn id(&self) -> SessionId {
        self.id
    }
    fn peer(&self) -> &Peer {
        &self.peer
    }
    fn elapsed(&self) -> Duration {
        self.began.elapsed() + Duration::from_secs(self.way.older.load(Ordering::Relaxed))
    }
    fn rtt(&self) -> Option<Duration> {
        Some(Duration::from_millis(1))
    }
    fn send(&self, class: Class, json: &[u8], data: &[u8]) -> Result<(), SendError> {
        if self.cut.load(Ordering::Relaxed) {
            return Err(SendError::Gone);
        }
        if self.way.loses.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut buffer = BytesMut::new();
        inner::put(&mut buffer, json, data).map_err(|_| SendError::TooLarge)?;
        // Room is kept back for control frames, which must never find the queue full.
        if class != Class::Control && self.to.capacity() < 512 {
            return Err(SendError::Full);
        }
        self.to
            .try_send((class, buffer.freeze()))
            .map_err(|_| SendError::Gone)
    }
    fn room(&self, _class: Class) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            if let Ok(permits) = self.to.reserve_many(600).await {
                drop(permits);
            }
        })
    }
    fn fail(&self, reason: &'static str) {
        panic!("a session failed: {reason}");
    }
}
