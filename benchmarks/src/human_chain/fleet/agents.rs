//! Process of the benchmark that runs some of the agents, until its parent ends.

use crate::cluster::nodes::agent_config;
use anyhow::{Context as _, Result, bail};
use gpu_agent::agent::run as run_agent;
use overlay::CancellationToken;
use protocol::CircleId;
use protocol::governance::SignedGenesis;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinSet;

/// Pause between the starts of two agents: a burst of handshakes would only measure itself.
const START_PAUSE: Duration = Duration::from_millis(5);

/// Agents of one process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AgentsPart {
    pub(super) circle: CircleId,
    pub(super) genesis: PathBuf,
    /// Directories of the agents.
    pub(super) directories: Vec<PathBuf>,
}

/// Runs the agents that the description names.
pub(crate) fn run(description: &str) -> Result<()> {
    host::children::die_with_parent();
    let part: AgentsPart = serde_json::from_str(description)?;
    let genesis: SignedGenesis = serde_json::from_slice(&std::fs::read(&part.genesis)?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (mut agents, shutdown) = (JoinSet::new(), CancellationToken::new());
        for directory in part.directories {
            let config = agent_config(&directory, &genesis, part.circle, None)
                .with_context(|| format!("`{}`", directory.display()))?;
            agents.spawn(run_agent(config, shutdown.clone()));
            tokio::time::sleep(START_PAUSE).await;
        }
        match agents.join_next().await {
            Some(ended) => bail!("an agent ended: {ended:?}"),
            None => Ok(()),
        }
    })
}
