//! `demo`: the demonstration of Quorate, from outside.
//!
//! It starts `quorate up` as a child process and then does what a person would: it runs commands of
//! `quorate`, sends HTTP requests, kills processes and edits files. It links no product crate but the
//! protocol and the overlay, so its findings are findings about the binaries.

mod closing;
mod command;
mod openai;
mod processes;
mod story;
mod up;

use anyhow::{Result, anyhow};
use clap::Parser;
use command::Quorate;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;
use story::Demonstration;
use up::{UpOutput, UpProcess};

/// Demonstrate a cluster on this machine: import, vote, serve, break, heal
#[derive(Debug, Parser)]
#[command(name = "demo")]
pub(crate) struct Arguments {
    /// Directory of the cluster's state
    #[arg(long, default_value = ".quorate/demo", value_name = "DIR")]
    dir: PathBuf,
    /// Delete the state of an earlier run
    #[arg(long)]
    fresh: bool,
    /// Run the story, stop everything, and exit 0 only if every step succeeded
    #[arg(long)]
    once: bool,
    /// Directory of all-MiniLM-L6-v2
    #[arg(long, value_name = "DIR")]
    minilm: PathBuf,
    /// Directory of the small language model
    #[arg(long, value_name = "DIR")]
    tiny: PathBuf,
    /// Directory of documents to search
    #[arg(long, value_name = "DIR")]
    documents: Option<PathBuf>,
    /// Simulate GPUs on every node, like `8xH100`: they are scheduled and compute nothing
    #[arg(long, value_name = "COUNTxNAME")]
    simulate_gpus: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    // Children die with the thread that starts them, so they start on this one.
    let outcome = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(demonstrate(&arguments)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the cluster, runs the story, and stops the cluster at its end or at Ctrl-C.
async fn demonstrate(arguments: &Arguments) -> Result<()> {
    let began = Instant::now();
    let directory = std::path::absolute(&arguments.dir)?;
    let quorate = Quorate::beside_this_program(&directory)?;
    let mut up = UpProcess::start(&quorate, &directory, arguments)?;
    let demonstration = Demonstration { directory, quorate, up: up.pid()?, began };
    let outcome = tokio::select! {
        outcome = live(&demonstration, up.output(), arguments) => outcome,
        ended = up.ended() => return Err(anyhow!("`quorate up` ended: {}", ended?)),
        signal = until_signal() => {
            println!("\nstopping");
            signal
        }
    };
    let stopped = up.stop().await;
    outcome.and(stopped)
}

/// Runs the story; without `--once`, prints the next steps and waits.
async fn live(demonstration: &Demonstration, output: Arc<UpOutput>, arguments: &Arguments) -> Result<()> {
    output.ready().await;
    story::run(demonstration, arguments).await?;
    if arguments.once {
        return Ok(());
    }
    println!();
    for line in closing::with_chat_example(&output.farewell()) {
        println!("{line}");
    }
    std::future::pending().await
}

async fn until_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    Ok(())
}
