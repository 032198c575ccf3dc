//! `quorate control` and `quorate agent`: prepare the directories of the daemons and run them.
//!
//! `quorate up` starts the same daemons.

use crate::node::{self, NodeFile};
use crate::print;
use crate::server::{self, ServerConfig};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Subcommand};
use gpu_agent::agent::DrainConfig;
use overlay::CancellationToken;
use overlay::people::ServerCertificate;
use protocol::governance::{
    ControlReplica, GatewayEndpoint, NodeAdmission, NodeRole, SignedGenesis, StorageEndpoint,
};
use protocol::manifest::parse_bytes;
use protocol::{CircleId, NodeId, NodeName, OwnerName, Refusal, ReplicaId, StoreName, error_code};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub(crate) enum ControlCommand {
    /// Create a replica's key and its bootstrap marker, once; print the replica's entry for the genesis
    #[command(after_help = "\
Example:
  quorate control init --dir control-1 --id 1 --overlay 10.0.0.1:7600 \\
    --api https://10.0.0.1:7601 > control-1.json")]
    Init {
        /// State directory of the replica
        #[arg(long)]
        dir: PathBuf,
        /// Number of the replica: 1, 2, 3, ...
        #[arg(long)]
        id: u64,
        /// Address on which agents and other replicas reach it
        #[arg(long, value_name = "HOST:PORT")]
        overlay: String,
        /// URL under which users reach its API
        #[arg(long, value_name = "URL")]
        api: String,
    },
    /// Run a control replica
    #[command(after_help = "\
Example:
  quorate control run --dir control-1 --genesis genesis.json --overlay 0.0.0.0:7600 \\
    --api 0.0.0.0:7601 --tls-cert api.pem --tls-key api.key")]
    Run(ControlRun),
}

#[derive(Debug, Args)]
pub(crate) struct ControlRun {
    /// State directory of the replica
    #[arg(long)]
    dir: PathBuf,
    /// Signed genesis of the circle
    #[arg(long, value_name = "FILE")]
    genesis: PathBuf,
    /// Address to listen on for agents and replicas, or `fd:N` for an inherited socket
    #[arg(long, value_name = "HOST:PORT")]
    overlay: String,
    /// Address to listen on for the API, or `fd:N`; loopback only without a certificate
    #[arg(long, value_name = "HOST:PORT")]
    api: String,
    /// TLS certificate chain of the API, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of that certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Create a node's keys and print its entry, for a genesis or for a request for admission
    #[command(after_help = "\
Example:
  quorate agent init --dir node-1 --name node-1 --region eu-1 --storage 10.0.0.7:7700 \\
    --store disk-0 --store disk-1 > node-1.json")]
    Init(AgentInit),
    /// Run a node's agent
    #[command(after_help = "\
Example:
  quorate agent run --dir node-1 --genesis genesis.json --circle ID --storage 0.0.0.0:7700")]
    Run(Box<AgentRun>),
    /// Hand a signed halt to the agent on this machine, when no control replica reaches it
    #[command(after_help = "Example:\n  quorate agent halt halt.json --dir node-1")]
    Halt {
        /// File that `quorate halt --out` wrote
        file: PathBuf,
        /// State directory of the node
        #[arg(long)]
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AgentInit {
    /// State directory of the node
    #[arg(long)]
    dir: PathBuf,
    /// Name of the node
    #[arg(long)]
    name: NodeName,
    /// Region of the node
    #[arg(long, default_value = "local")]
    region: String,
    /// Party that owns the node, to which its usage is counted
    #[arg(long, value_name = "NAME")]
    owner: Option<OwnerName>,
    /// Label for node selectors; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Do not run services on this node
    #[arg(long)]
    no_worker: bool,
    /// Address under which the node offers storage
    #[arg(long, value_name = "HOST:PORT", requires = "store")]
    storage: Option<String>,
    /// Name of a store, one per disk; may be given several times
    #[arg(long, requires = "storage")]
    store: Vec<StoreName>,
    /// Run a gateway that workers reach under this address
    #[arg(long, value_name = "HOST:PORT", requires = "gateway_api")]
    gateway: Option<String>,
    /// URL under which applications reach the gateway
    #[arg(long, value_name = "URL", requires = "gateway")]
    gateway_api: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AgentRun {
    /// State directory of the node
    #[arg(long)]
    dir: PathBuf,
    /// Signed genesis of the circle
    #[arg(long, value_name = "FILE")]
    genesis: PathBuf,
    /// Id of the circle, pinned: everything that control sends is verified against it
    #[arg(long)]
    circle: CircleId,
    /// Address to offer storage on, or `fd:N`
    #[arg(long, value_name = "HOST:PORT")]
    storage: Option<String>,
    /// Address on which workers reach this node's gateway, or `fd:N`
    #[arg(long, value_name = "HOST:PORT", requires = "gateway_api")]
    gateway: Option<String>,
    /// Address on which applications reach this node's gateway, or `fd:N`
    #[arg(long, value_name = "HOST:PORT", requires = "gateway")]
    gateway_api: Option<String>,
    /// TLS certificate chain of the gateway's API, PEM
    #[arg(long, value_name = "FILE", requires = "gateway_tls_key")]
    gateway_tls_cert: Option<PathBuf>,
    /// Private key of that certificate, PEM
    #[arg(long, value_name = "FILE", requires = "gateway_tls_cert")]
    gateway_tls_key: Option<PathBuf>,
    /// Loopback address for the node's Prometheus metrics, or `fd:N`
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    /// Loopback address for the gateway's Prometheus metrics, or `fd:N`
    #[arg(long, value_name = "HOST:PORT")]
    gateway_metrics: Option<String>,
    /// Path of the `quorate-serve` binary [default: beside this one]
    #[arg(long, value_name = "FILE")]
    serve_program: Option<PathBuf>,
    /// CPU to offer, in thousandths of a core [default: all]
    #[arg(long)]
    cpu_millicores: Option<u64>,
    /// Memory to offer, like `4 GiB` [default: all]
    #[arg(long)]
    memory: Option<String>,
    /// Simulate GPUs, like `8xH100`: they are scheduled, compute nothing, and are labelled simulated
    /// everywhere
    #[arg(long, value_name = "COUNTxNAME")]
    simulate_gpus: Option<String>,
    /// Control group under which the sandboxes are created
    #[arg(long)]
    cgroup: Option<String>,
    /// First host user id reserved for sandboxes
    #[arg(long, default_value_t = 600_000)]
    ids_first: u32,
    /// Number of id pairs reserved for sandboxes
    #[arg(long, default_value_t = 512)]
    id_pairs: u32,
    /// Time in seconds for which SIGTERM lets streams finish; a second signal ends them at once
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    #[arg(value_parser = clap::value_parser!(u64).range(..=3600))]
    drain_seconds: u64,
}

/// Logs to standard error: text on a terminal, JSON elsewhere. `RUST_LOG` sets the filter.
pub(crate) fn start_logging() {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // It would report a closed pipe with `eprintln!`, which panics on one.
    let builder = builder.log_internal_errors(false);
    let outcome =
        if std::io::stderr().is_terminal() { builder.try_init() } else { builder.json().try_init() };
    // A second initialization in one process, as in tests, keeps the first subscriber.
    drop(outcome);
}

/// Returns the tokens that the first and the second SIGINT or SIGTERM cancel.
fn until_signals() -> Result<[CancellationToken; 2]> {
    use tokio::signal::unix::{SignalKind, signal};
    let tokens = [CancellationToken::new(), CancellationToken::new()];
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let cancelled = tokens.clone();
    tokio::spawn(async move {
        for token in cancelled {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            tracing::info!("stopping");
            token.cancel();
        }
    });
    Ok(tokens)
}

pub(crate) async fn control(command: ControlCommand) -> Result<()> {
    match command {
        ControlCommand::Init { dir, id, overlay, api } => {
            let identity = server::create_replica(&dir)?;
            let replica =
                ControlReplica { id: ReplicaId(id), key: identity.public_key(), address: overlay, api };
            print::out(serde_json::to_string_pretty(&replica)?);
            Ok(())
        }
        ControlCommand::Run(arguments) => run_control(arguments).await,
    }
}

async fn run_control(arguments: ControlRun) -> Result<()> {
    start_logging();
    let identity = server::load_replica(&arguments.dir)?;
    let genesis: SignedGenesis = super::circle::read_json(&arguments.genesis)?;
    human_chain::CircleState::found(&genesis, None)
        .with_context(|| format!("`{}`", arguments.genesis.display()))?;
    let own = genesis.genesis.control.iter().find(|replica| replica.key == identity.public_key());
    let id = own.ok_or_else(|| anyhow!("the genesis lists no replica with this directory's key"))?.id;
    let certificate = match (&arguments.tls_cert, &arguments.tls_key) {
        (Some(chain), Some(key)) => Some(read_certificate(chain, key)?),
        _ => None,
    };
    let config = ServerConfig {
        id,
        directory: arguments.dir,
        identity,
        genesis,
        overlay: listen(&arguments.overlay).await?,
        api: listen(&arguments.api).await?,
        certificate,
    };
    tracing::info!(replica = %id, "control replica starts");
    let [shutdown, _] = until_signals()?;
    server::run(config, shutdown).await
}

fn read_certificate(chain: &Path, key: &Path) -> Result<ServerCertificate> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("read `{}`", path.display()));
    Ok(ServerCertificate::from_pem(&read(chain)?, &read(key)?)?)
}

/// Binds a listener. If another process holds the port, the error suggests how to find that process.
pub(super) async fn listen(name: &str) -> Result<tokio::net::TcpListener> {
    overlay::listen::tcp(name).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            let message = format!("{error}; `ss -ltnp` shows the process that uses it");
            Refusal::new(error_code::PORT_IN_USE, message).into()
        }
        _ => error.into(),
    })
}

pub(crate) async fn agent(command: AgentCommand) -> Result<()> {
    match command {
        AgentCommand::Init(arguments) => init_agent(arguments),
        AgentCommand::Run(arguments) => run_agent(*arguments).await,
        AgentCommand::Halt { file, dir } => halt_agent(&file, &dir).await,
    }
}

fn init_agent(arguments: AgentInit) -> Result<()> {
    let labels: BTreeMap<String, String> = arguments
        .label
        .iter()
        .map(|label| label.split_once('=').map(|(key, value)| (key.to_string(), value.to_string())))
        .collect::<Option<_>>()
        .ok_or_else(|| anyhow!("a label has the form KEY=VALUE"))?;
    let mut roles = BTreeSet::new();
    if !arguments.no_worker {
        roles.insert(NodeRole::Worker);
    }
    let stores: BTreeSet<StoreName> = arguments.store.into_iter().collect();
    let storage = arguments.storage.map(|address| StorageEndpoint { address, stores });
    if storage.is_some() {
        roles.insert(NodeRole::Storage);
    }
    let keys = node::create_keys(&arguments.dir, arguments.gateway.is_some())?;
    let gateway = match (keys.gateway, arguments.gateway, arguments.gateway_api) {
        (Some(key), Some(address), Some(api)) => {
            roles.insert(NodeRole::Gateway);
            Some(GatewayEndpoint { key, address, api })
        }
        _ => None,
    };
    if roles.is_empty() {
        bail!("a node needs at least one role: worker, storage or gateway");
    }
    let admission = NodeAdmission {
        name: arguments.name,
        id: NodeId(keys.identity.public_key()),
        encryption: keys.encryption.clone(),
        roles,
        region: arguments.region,
        owner: arguments.owner,
        labels,
        storage,
        gateway,
        proof: node::UNSIGNED,
    };
    let admission = keys.claim(admission);
    NodeFile { admission: admission.clone() }.save(&arguments.dir)?;
    print::out(serde_json::to_string_pretty(&admission)?);
    Ok(())
}

/// Hands a signed halt to the agent of a node on this machine.
async fn halt_agent(file: &Path, directory: &Path) -> Result<()> {
    let signed = super::halts::read_halt(file)?;
    let verdict = gpu_agent::agent::hand_halt(directory, &signed)
        .await
        .with_context(|| format!("no agent answers in `{}`", directory.display()))?;
    match verdict.code {
        None => print::out(format_args!("halt {}: {}", signed.halt.id(), verdict.message)),
        Some(code) => return Err(Refusal::new(code, verdict.message).into()),
    }
    Ok(())
}

async fn run_agent(arguments: AgentRun) -> Result<()> {
    start_logging();
    let genesis: SignedGenesis = super::circle::read_json(&arguments.genesis)?;
    let memory = arguments.memory.as_deref().map(parse_bytes).transpose().map_err(|error| anyhow!(error))?;
    let [requested, shutdown] = until_signals()?;
    let settings = node::NodeSettings {
        directory: arguments.dir,
        genesis,
        circle: arguments.circle,
        storage: optional_listener(arguments.storage.as_deref()).await?,
        gateway_workers: optional_listener(arguments.gateway.as_deref()).await?,
        gateway_api: optional_listener(arguments.gateway_api.as_deref()).await?,
        gateway_metrics: optional_listener(arguments.gateway_metrics.as_deref()).await?,
        gateway_tls: arguments.gateway_tls_cert.zip(arguments.gateway_tls_key),
        metrics: optional_listener(arguments.metrics.as_deref()).await?,
        serve_program: arguments.serve_program,
        cpu_millicores: arguments.cpu_millicores,
        memory_bytes: memory,
        simulate_gpus: arguments.simulate_gpus,
        cgroup: arguments.cgroup,
        ids_first: arguments.ids_first,
        id_pairs: arguments.id_pairs,
        drain: DrainConfig { requested, limit: Duration::from_secs(arguments.drain_seconds) },
    };
    node::run(settings, shutdown).await
}

async fn optional_listener(name: Option<&str>) -> Result<Option<tokio::net::TcpListener>> {
    match name {
        Some(name) => listen(name).await.map(Some),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    #[tokio::test]
    async fn the_first_signal_requests_a_drain_and_the_second_an_end() {
        let [first, second] = until_signals().expect("handlers of signals");
        kill(Pid::this(), Signal::SIGTERM).expect("this process");
        first.cancelled().await;
        assert!(!second.is_cancelled());
        kill(Pid::this(), Signal::SIGINT).expect("this process");
        second.cancelled().await;
    }
}
