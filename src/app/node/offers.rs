//! What a node offers the others and its gateway: agents and models.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};

use super::SOFTWARE;
use crate::{
    app::{StartError, agents::EndpointAgent},
    config::{AgentConfig, Config},
    drain::Tasks,
    handoff::{inbound::OfferedAgent, runner::AgentRunner},
    mesh::{
        Mesh,
        view::{AgentOffer, Descriptor},
    },
    models::{lent::LentModels, provider::Client},
    shim::{CatalogEntry, FromSidecar, bridge::Bridge, stdio::Voice},
};

/// Shortest time between two looks at how busy the lent models are.
const LOAD_EVERY: Duration = Duration::from_secs(1);

/// The agents with who runs each: its server if it has one, else the gateway, else nobody.
pub(super) fn offered_agents(
    agents: &[AgentConfig],
    bridge: Option<&Bridge>,
    client: &Client,
    tasks: &Tasks,
) -> Result<Vec<OfferedAgent>, StartError> {
    let offered = |agent: &AgentConfig| {
        let runner = match &agent.endpoint {
            Some(endpoint) => {
                let agent = EndpointAgent::new(endpoint, client.clone(), tasks.clone())
                    .map_err(|error| StartError::Agent(agent.id.clone(), error))?;
                Some(Arc::new(agent) as Arc<dyn AgentRunner>)
            }
            None => bridge.map(|bridge| Arc::new(bridge.clone()) as Arc<dyn AgentRunner>),
        };
        Ok(OfferedAgent {
            id: agent.id.clone(),
            allow: agent.allow.clone(),
            tools: agent.tools.clone(),
            runner,
        })
    };
    agents.iter().map(offered).collect()
}

pub(super) fn agent_offers(agents: &[AgentConfig]) -> Vec<AgentOffer> {
    let offer = |agent: &AgentConfig| AgentOffer {
        id: agent.id.clone(),
        description: agent.description.clone(),
        tags: agent.tags.clone(),
    };
    agents.iter().map(offer).collect()
}

/// Tells the mesh what we offer, now and whenever the lent models change.
pub(super) fn offer_models(
    mesh: Mesh,
    lent: LentModels,
    config: &Config,
) -> impl Future<Output = ()> + Send + 'static {
    let agents = agent_offers(&config.agents);
    let tags = config.tags.clone();
    let addresses = config.advertise.clone();
    async move {
        let mut changes = lent.subscribe();
        loop {
            changes.borrow_and_update();
            mesh.set_offer(Descriptor {
                software: SOFTWARE.into(),
                agents: agents.clone(),
                models: lent.offers(),
                tags: tags.clone(),
                addresses: addresses.clone(),
                ..Descriptor::default()
            });
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Tells the mesh how busy the lent models are, whenever that changes.
pub(super) async fn tell_load(mesh: Mesh, lent: LentModels) {
    let mut told = None;
    loop {
        let load = lent.load();
        if load != told {
            mesh.set_load(load);
            told = load;
        }
        lent.load_changed().await;
        // What changes meanwhile is seen at the next look.
        sleep(LOAD_EVERY).await;
    }
}

/// Tells the shim which provider entries OpenClaw should have.
pub(super) async fn tell_catalog(
    voice: Voice,
    mut changes: watch::Receiver<Arc<Vec<CatalogEntry>>>,
) {
    loop {
        let entries = changes.borrow_and_update().to_vec();
        voice.say(&FromSidecar::Catalog { entries });
        if changes.changed().await.is_err() {
            return;
        }
    }
}
