//! Command line of `quorate-serve`: the AI circuit's two processes, worker and gateway.

use crate::batcher::BatcherLimits;
use crate::engine::{DeviceChoice, EngineOptions};
use crate::gateway::{self, Listeners};
use crate::{lockdown, worker};
use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use overlay::people::ServerCertificate;
use overlay::{CancellationToken, Identity, listen};
use protocol::manifest::Task;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "\
Examples:
  quorate-serve worker --model-dir ~/models/all-MiniLM-L6-v2
      Serve a local model on a free loopback port, printed as {\"listening\":\"127.0.0.1:PORT\"}
  quorate-serve worker --model-dir tiny --listen 127.0.0.1:8000 --model-name tiny
  curl 127.0.0.1:8000/v1/completions -H 'content-type: application/json' \\
      -d '{\"model\": \"tiny\", \"prompt\": \"one plus one is\"}'
  quorate-serve gateway --public 127.0.0.1:8080 --workers 0.0.0.0:8443 \\
      --control-socket /run/quorate/gateway.sock --identity gateway.key
      Serve OpenAI clients with the workers that connect; the gateway's agent pushes it the route table

Environment:
  QUORATE_LOG   what to log to standard error: error, warn, info (default), debug, or per module";

/// Arguments of a worker on local files, which an agent's worker does not take.
const LOCAL_ARGUMENTS: [&str; 8] =
    ["model_dir", "listen", "task", "model_name", "threads", "context", "cache", "gpu"];

/// The AI circuit of Quorate: serve models, or route requests to the workers that serve them.
#[derive(Parser)]
#[command(name = "quorate-serve", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: ServeCommand,
}

#[derive(Subcommand)]
enum ServeCommand {
    /// Run one model behind OpenAI's API.
    Worker(WorkerArguments),
    /// Route OpenAI clients to the workers that connect to this gateway.
    Gateway(GatewayArguments),
}

#[derive(Args)]
#[command(after_help = EXAMPLES)]
struct WorkerArguments {
    /// Serve the model in this directory, on loopback, without a cluster.
    #[arg(long, value_name = "DIR", required_unless_present = "inherited")]
    model_dir: Option<PathBuf>,
    /// Serve the model that an agent passed in descriptors 3 to 7; only an agent starts a worker this way.
    #[arg(long, conflicts_with_all = LOCAL_ARGUMENTS)]
    inherited: bool,
    /// Address to listen on: ADDRESS:PORT (port 0 takes a free one) or fd:N.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// Task that the model must support.
    #[arg(long, value_enum)]
    task: Option<TaskName>,
    /// Model name in the API [default: the directory's name].
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Number of compute threads [default: all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Maximum tokens of a context [default: the model's own limit].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Size limit of the KV cache on the CPU, like `4 GiB` [default: 256 MiB].
    #[arg(long, value_name = "SIZE", value_parser = cache_bytes)]
    cache: Option<usize>,
    /// Compute on this NVIDIA GPU (a build with the `cuda` feature).
    #[arg(long, value_name = "INDEX")]
    gpu: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
enum TaskName {
    /// Text to vectors.
    Embed,
    /// Text to more text.
    Generate,
    /// A query and documents to scores.
    Rerank,
}

#[derive(Args)]
#[command(after_help = EXAMPLES)]
struct GatewayArguments {
    /// Address to listen on for OpenAI clients: ADDRESS:PORT or fd:N. Plain HTTP on loopback only.
    #[arg(long)]
    public: String,
    /// Address to listen on for workers: ADDRESS:PORT or fd:N.
    #[arg(long)]
    workers: String,
    /// Socket on which the gateway's agent pushes the route table: a path or fd:N.
    #[arg(long, value_name = "PATH")]
    control_socket: String,
    /// File of the gateway's own key; created if missing.
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,
    /// Certificate chain for the public listener, PEM.
    #[arg(long, value_name = "PEM", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM.
    #[arg(long, value_name = "PEM", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Address for /metrics, /livez and /readyz, on loopback: ADDRESS:PORT or fd:N.
    #[arg(long, value_name = "LISTEN")]
    metrics: Option<String>,
}

/// Parses the command line and runs the command; returns the process's exit status.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging();
    end_on_panic();
    let outcome = match cli.command {
        ServeCommand::Worker(arguments) if arguments.inherited => worker::inherited::run(),
        ServeCommand::Worker(arguments) => run_local(arguments),
        ServeCommand::Gateway(arguments) => run_gateway(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quorate-serve: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Parses the size of a cache.
fn cache_bytes(text: &str) -> Result<usize, String> {
    let bytes = protocol::manifest::parse_bytes(text)?;
    usize::try_from(bytes).map_err(|_| format!("{bytes} bytes are more than this machine addresses"))
}

fn start_logging() {
    let filter = EnvFilter::try_from_env("QUORATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

/// Aborts the process on a broken invariant; its supervisor restarts it from a known state.
fn end_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")
}

/// Returns a token that SIGTERM or SIGINT cancels.
fn shutdown_signal() -> anyhow::Result<CancellationToken> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cancelled = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("shutting down");
        cancelled.cancel();
    });
    Ok(shutdown)
}

fn run_local(arguments: WorkerArguments) -> anyhow::Result<()> {
    let defaults = EngineOptions::default();
    let config = worker::local::Config {
        model_dir: arguments.model_dir.context("give --model-dir or --inherited")?,
        model_name: arguments.model_name,
        listen: arguments.listen,
        task: arguments.task.map(|task| match task {
            TaskName::Embed => Task::Embed,
            TaskName::Generate => Task::Generate,
            TaskName::Rerank => Task::Rerank,
        }),
        engine: EngineOptions {
            threads: arguments.threads.map_or(defaults.threads, usize::from),
            cache_bytes_max: arguments.cache.unwrap_or(defaults.cache_bytes_max),
            context_tokens_max: arguments.context.map(|tokens| tokens as usize),
            device: arguments.gpu.map_or(DeviceChoice::Cpu, DeviceChoice::Cuda),
            ..defaults
        },
        batcher: BatcherLimits::default(),
    };
    runtime()?.block_on(async {
        let shutdown = shutdown_signal()?;
        worker::local::run(config, shutdown).await
    })
}

fn run_gateway(arguments: &GatewayArguments) -> anyhow::Result<()> {
    let identity = Identity::load_or_create(&arguments.identity)
        .with_context(|| format!("use the key {}", arguments.identity.display()))?;
    let certificate = match (&arguments.tls_cert, &arguments.tls_key) {
        (Some(chain), Some(key)) => Some(ServerCertificate::from_pem(&read(chain)?, &read(key)?)?),
        _ => None,
    };
    runtime()?.block_on(async {
        let shutdown = shutdown_signal()?;
        let listeners = Listeners {
            public: listen::tcp(&arguments.public).await?,
            workers: listen::tcp(&arguments.workers).await?,
            control: listen::unix(&arguments.control_socket).await?,
            metrics: match &arguments.metrics {
                Some(name) => Some(listen::tcp(name).await?),
                None => None,
            },
        };
        let started = serde_json::json!({
            "public": listeners.public.local_addr()?,
            "workers": listeners.workers.local_addr()?,
            "metrics": listeners.metrics.as_ref().map(tokio::net::TcpListener::local_addr).transpose()?,
            "key": identity.public_key(),
        });
        lockdown::deny_connections()?;
        crate::memory::return_freed_buffers();
        // Only a parent process that requested a free port reads this line.
        let _ = writeln!(std::io::stdout(), "{started}");
        tracing::info!(%started, "gateway serves");
        gateway::serve(listeners, identity, certificate, gateway::HOLD_TIMEOUT, shutdown).await?;
        Ok(())
    })
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_worker_takes_the_size_of_its_cache() {
        let cache = |text: &str| {
            let line = ["quorate-serve", "worker", "--model-dir", "m", "--cache", text];
            match Cli::try_parse_from(line).map(|cli| cli.command) {
                Ok(ServeCommand::Worker(arguments)) => arguments.cache,
                _ => None,
            }
        };
        assert_eq!(cache("4 GiB"), Some(4 << 30));
        assert_eq!(cache("512MiB"), Some(512 << 20));
        assert_eq!(cache("512 MB"), None, "units of 1000 are refused, as in manifests");
        assert_eq!(cache("-1"), None);
        let inherited = ["quorate-serve", "worker", "--inherited", "--cache", "1 GiB"];
        assert!(Cli::try_parse_from(inherited).is_err(), "an agent's worker has the memory of its manifest");
    }
}
