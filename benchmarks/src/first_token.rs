//! Benchmark of the time from an accepted order to the first token of the small language model, in a whole
//! cluster on this machine.
//!
//! It uses real processes: certificate and order are verified, the model is read from six stores, the sandbox
//! is started, the worker is connected, and the gateway routes. The clock starts with the scheduler's own
//! audit event.

use crate::report::{Bar, ComparisonRow, directory};
use anyhow::{Context as _, Result, bail, ensure};
use futures::StreamExt;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The bar, in milliseconds.
const BAR_MS: f64 = 300.0;
/// Time limit of each wait.
const LIMIT: Duration = Duration::from_secs(60);
/// Pause between attempts to get the token.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(2);

/// Returns the row for the report; the bar takes the place of a peer's figure.
pub(crate) async fn row(rounds: usize) -> Result<ComparisonRow> {
    let cluster = BenchmarkCluster::start("first-token").await?;
    let mut times = Vec::new();
    for round in 0..rounds {
        times.push(cluster.order_to_first_token(round).await?);
    }
    let bars = vec![BAR_MS; times.len()];
    let bar = Some(Bar::AtMost(1.0));
    Ok(ComparisonRow::new("tiny: order to first token", "ms", "the bar itself, 300 ms", &times, &bars, bar))
}

/// A cluster of real processes on this machine, with the small language model.
pub(crate) struct BenchmarkCluster {
    pub(crate) up: Child,
    program: PathBuf,
    pub(crate) directory: PathBuf,
    pub(crate) gateway: String,
    pub(crate) key: String,
    pub(crate) http: reqwest::Client,
}

impl Drop for BenchmarkCluster {
    fn drop(&mut self) {
        // The cluster dies with `up`, regardless of its exit status; leases end its workers.
        let _ = self.up.kill();
        let _ = self.up.wait();
    }
}

impl BenchmarkCluster {
    /// Starts the cluster in a directory of this name.
    pub(crate) async fn start(name: &str) -> Result<Self> {
        let own = std::env::current_exe()?;
        let program = own.with_file_name("quorate");
        ensure!(program.is_file(), "`{}` is missing; `cargo xtask bench` builds it", program.display());
        let directory = directory()?.join(name);
        let up = Command::new(&program)
            .args(["up", "--fresh", "--dir"])
            .arg(&directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start the cluster")?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        let (gateway, key) = (String::new(), String::new());
        let mut cluster = Self { up, program, directory, gateway, key, http };
        cluster.wait_until_healthy().await?;
        let context: Value = serde_json::from_slice(&std::fs::read(cluster.context())?)?;
        cluster.gateway = context["gateway"].as_str().context("the context names a gateway")?.to_string();
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny").display().to_string();
        cluster.quorate(&["model", "import", &tiny, "--name", "tiny"])?;
        cluster.key = cluster.quorate(&["key", "issue", "bench"])?.trim().to_string();
        Ok(cluster)
    }

    fn context(&self) -> PathBuf {
        self.directory.join("context.json")
    }

    pub(crate) async fn wait_until_healthy(&self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let status = self.quorate(&["status", "-o", "json"]);
            let status: Value =
                status.ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
            if status["healthy"] == true && status["nodes_alive"] == status["nodes"] {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the cluster did not come up: {status}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Runs a command of `quorate`; returns what it printed.
    pub(crate) fn quorate(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.program)
            .args(arguments)
            .env("QUORATE_CONTEXT", self.context())
            .output()
            .context("run quorate")?;
        if !output.status.success() {
            bail!("quorate {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Deploys the model under this name; the second vote runs while the caller already sends requests.
    pub(crate) fn deploy(&self, service: &str) -> Result<()> {
        let manifest = self.directory.join(format!("{service}.toml"));
        let text = self.quorate(&["new", "service", "--model", "tiny", "--name", service])?;
        std::fs::write(&manifest, text.replace("cpu_millicores = 200", "cpu_millicores = 600"))?;
        let proposal = self.quorate(&["deploy", &manifest.display().to_string(), "-o", "json"])?;
        self.approve(&proposal, true)
    }

    /// Deploys under a new name, so that only the page cache is warm from an earlier round.
    async fn order_to_first_token(&self, round: usize) -> Result<f64> {
        let service = format!("first-{round}");
        self.deploy(&service)?;
        let token_at = self.first_token(&service).await?;
        let ordered_at = self.ordered_at(&service)?;
        let retire = self.quorate(&["retire", &service, "--grace", "0s", "-o", "json"])?;
        self.approve(&retire, false)?;
        self.wait_until_gone(&service).await?;
        Ok(token_at - ordered_at)
    }

    /// Signs as two members; with `in_background`, the second vote runs while the caller already sends
    /// requests.
    fn approve(&self, proposal: &str, in_background: bool) -> Result<()> {
        let proposal: Value = serde_json::from_str(proposal)?;
        let id = proposal["id"].as_str().context("a proposal has an id")?.to_string();
        let words = proposal["words"].as_array().context("a proposal has words")?;
        let words = words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
        let key = |member: &str| self.directory.join(format!("members/{member}.key")).display().to_string();
        self.quorate(&["approve", &id, "--words", &words, "--key", &key("member-a")])?;
        if !in_background {
            self.quorate(&["approve", &id, "--words", &words, "--key", &key("member-b")])?;
            return Ok(());
        }
        Command::new(&self.program)
            .args(["approve", &id, "--words", &words, "--key", &key("member-b")])
            .env("QUORATE_CONTEXT", self.context())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("run quorate")?;
        Ok(())
    }

    /// Sends requests until the first token arrives; returns the wall clock at that moment, in milliseconds.
    pub(crate) async fn first_token(&self, service: &str) -> Result<f64> {
        let deadline = Instant::now() + LIMIT;
        let body = json!({
            "model": service, "stream": true, "max_tokens": 4,
            "messages": [{ "role": "user", "content": "What is three plus four?" }],
        });
        loop {
            let request = self.http.post(format!("{}/v1/chat/completions", self.gateway));
            let response = request.bearer_auth(&self.key).json(&body).send().await?;
            if response.status().is_success() {
                let mut stream = response.bytes_stream();
                while let Some(bytes) = stream.next().await {
                    if String::from_utf8_lossy(&bytes?).contains("\"content\":\"") {
                        return Ok(wall_clock_ms());
                    }
                }
            }
            ensure!(Instant::now() < deadline, "{service} gave no token");
            tokio::time::sleep(ATTEMPT_PAUSE).await;
        }
    }

    /// Returns the time at which the log admitted the order of the service's slot, from the audit events.
    fn ordered_at(&self, service: &str) -> Result<f64> {
        let page: Value = serde_json::from_str(&self.quorate(&["events", "-o", "json"])?)?;
        let events = page["items"].as_array().context("events are a list")?;
        let placed = events.iter().find(|event| {
            event["action"] == "place" && event["subject"].as_str().is_some_and(|s| s.contains(service))
        });
        placed.and_then(|event| event["at"].as_f64()).context("the order is among the audit events")
    }

    async fn wait_until_gone(&self, service: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while self.quorate(&["service", "show", service]).is_ok() {
            ensure!(Instant::now() < deadline, "{service} did not end");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

fn wall_clock_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64() * 1000.0)
}
