//! `quorate up`: a whole cluster on this machine. Three control replicas, three nodes and a gateway, each a
//! real process, found a circle and serve; with `--demonstration` they tell the story of the README, with `--model`
//! they serve a directory of the user's own instead.
//!
//! What is simulated is said: the machine is one machine, the members' keys are files beside each other,
//! and GPUs only where `--simulate-gpus` pretends them.

mod cluster;
mod founding;
mod layout;
mod ports;
mod process;
mod story;

pub use cluster::Cluster;
pub use layout::Layout;
pub use process::die_with_parent;

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
  quorate up --fresh --simulate-gpus 8xH100    rehearse a GPU cluster's scheduling")]
pub struct UpArguments {
    /// Where the cluster keeps everything
    #[arg(long, default_value = ".quorate/demo", value_name = "DIR")]
    dir: PathBuf,
    /// Forget what an earlier run left
    #[arg(long)]
    fresh: bool,
    /// Tell the story or serve the model, stop everything, exit 0 only if every step held
    #[arg(long, requires = "what")]
    once: bool,
    /// Tell the story: import, vote, serve, break, heal
    #[arg(long)]
    demonstration: bool,
    /// Directory of all-MiniLM-L6-v2, for the demonstration
    #[arg(long, value_name = "DIR", requires = "demonstration")]
    minilm: Option<PathBuf>,
    /// Directory of the small language model, for the demonstration
    #[arg(long, value_name = "DIR", requires = "demonstration")]
    tiny: Option<PathBuf>,
    /// Documents that the demonstration searches
    #[arg(long, value_name = "DIR", requires = "demonstration")]
    documents: Option<PathBuf>,
    /// Serve this Hugging Face model directory of your own instead of telling the story
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Pretend that every node has GPUs, like `8xH100`: they schedule and compute nothing
    #[arg(long, value_name = "COUNTxNAME")]
    simulate_gpus: Option<String>,
}

/// Runs the cluster until Ctrl-C, or once through its story.
///
/// # Errors
/// When the cluster cannot start, or a step of the story does not hold.
pub async fn run(arguments: UpArguments) -> Result<()> {
    let began = Instant::now();
    let layout = Layout::claim(&arguments.dir, arguments.fresh)?;
    let cluster = Cluster::start(layout, arguments.simulate_gpus.as_deref()).await?;
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

async fn live(cluster: &Cluster, arguments: &UpArguments, began: Instant) -> Result<()> {
    story::finish_earlier_run(cluster, began).await?;
    // Whoever reads the last lines can ask at once, whatever the story made.
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
