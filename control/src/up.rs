//! `quorate up`: a whole cluster on this machine.
//!
//! Three control replicas, three nodes and a gateway, each a real process, found a circle and serve. With
//! `--demonstration` the cluster runs the demonstration of the README; with `--model` it serves the user's
//! own model directory instead.
//!
//! Simulated parts are labelled. One machine acts as all machines, the members' keys are files beside each
//! other, and GPUs are simulated only with `--simulate-gpus`.

mod cluster;
mod founding;
mod layout;
mod ports;
mod story;

pub use cluster::LocalCluster;
pub use layout::Layout;

use anyhow::{Context as _, Result};
use clap::Args;
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of `quorate up`.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("what").args(["demonstration", "model"]).multiple(true))]
#[command(after_help = "\
Examples:
  quorate up                                   start, or go on with what an earlier run left
  quorate up --model ~/models/my-llama         the same, and serve this model
  quorate up --fresh --simulate-gpus 8xH100    simulate a GPU cluster's scheduling")]
pub struct UpArguments {
    /// Directory of the cluster's state
    #[arg(long, default_value = ".quorate/demo", value_name = "DIR")]
    dir: PathBuf,
    /// Delete the state of an earlier run
    #[arg(long)]
    fresh: bool,
    /// Run the demonstration or serve the model, stop everything, and exit 0 only if every step succeeded
    #[arg(long, requires = "what")]
    once: bool,
    /// Run the demonstration: import, vote, serve, break, heal
    #[arg(long)]
    demonstration: bool,
    /// Directory of all-MiniLM-L6-v2, for the demonstration
    #[arg(long, value_name = "DIR", requires = "demonstration")]
    minilm: Option<PathBuf>,
    /// Directory of the small language model, for the demonstration
    #[arg(long, value_name = "DIR", requires = "demonstration")]
    tiny: Option<PathBuf>,
    /// Directory of documents that the demonstration searches
    #[arg(long, value_name = "DIR", requires = "demonstration")]
    documents: Option<PathBuf>,
    /// Serve this Hugging Face model directory instead of running the demonstration
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Simulate GPUs on every node, like `8xH100`: they are scheduled and compute nothing
    #[arg(long, value_name = "COUNTxNAME")]
    simulate_gpus: Option<String>,
}

/// Runs the cluster until Ctrl-C, or with `--once` until the demonstration or the model's test request has
/// finished.
///
/// # Errors
/// Returns an error if the cluster cannot start, or a step of the demonstration fails.
pub async fn run(arguments: UpArguments) -> Result<()> {
    let began = Instant::now();
    let layout = Layout::claim(&arguments.dir, arguments.fresh)?;
    let cluster = LocalCluster::start(layout, arguments.simulate_gpus.as_deref()).await?;
    let outcome = tokio::select! {
        outcome = live(&cluster, &arguments, began) => outcome,
        failed = cluster.keep_alive() => failed,
        signal = until_signal() => {
            println!("\nstopping");
            signal
        }
    };
    cluster.stop().await.context("stop the cluster")?;
    outcome
}

async fn live(cluster: &LocalCluster, arguments: &UpArguments, began: Instant) -> Result<()> {
    story::finish_earlier_run(cluster, began).await?;
    // The printed commands use the key, so it must exist in every mode.
    story::make_api_key(cluster).await?;
    match &arguments.model {
        Some(model) => story::serve_own_model(cluster, model, began).await?,
        None if arguments.demonstration => story::tell(cluster, arguments, began).await?,
        None => println!("cluster ready after {:.1} s", began.elapsed().as_secs_f64()),
    }
    if arguments.once {
        return Ok(());
    }
    story::print_farewell(cluster).await?;
    std::future::pending().await
}

async fn until_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    Ok(())
}
