//! Benchmark of a cluster without its control plane: requests through the gateway while every control replica
//! is dead, beside the same time with all of them.
//!
//! It uses real processes. `quorate up` is paused during the outage, because it would start the replicas
//! again, as any supervisor. Afterwards the replicas return, and every slot must be where it was, under the
//! same order.

use crate::Options;
use crate::first_token::BenchmarkCluster;
use crate::report::{Bar, BenchmarkReport, ComparisonRow};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Minutes without control, and with it.
const MINUTES: usize = 10;
/// Clients that send one request after another.
const CLIENTS: usize = 4;
/// Time limit of one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// Name of the service.
const SERVICE: &str = "autonomous";
/// Directories of the control replicas.
const REPLICAS: [&str; 3] = ["control-1", "control-2", "control-3"];

/// Answers of one minute.
#[derive(Debug, Default)]
struct Minute {
    /// Latency of each answer in milliseconds, sorted.
    latencies: Vec<f64>,
    failed: usize,
}

impl Minute {
    /// Returns the latency that this share of the answers does not exceed; infinite without an answer.
    fn quantile(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * share).round() as usize;
        self.latencies.get(at).copied().unwrap_or(f64::INFINITY)
    }

    fn answered_percent(&self) -> f64 {
        let asked = self.latencies.len() + self.failed;
        100.0 * self.latencies.len() as f64 / asked.max(1) as f64
    }
}

/// Runs the benchmark.
pub(crate) fn run(options: &Options) -> Result<BenchmarkReport> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(if options.quick { 1 } else { MINUTES }))
}

async fn measure(minutes: usize) -> Result<BenchmarkReport> {
    let cluster = BenchmarkCluster::start("autonomy").await?;
    cluster.deploy(SERVICE)?;
    cluster.first_token(SERVICE).await?;
    cluster.wait_until_healthy().await?;
    let before = slots(&cluster)?;
    let with = load(&cluster, minutes).await;
    let up = Pid::from_raw(i32::try_from(cluster.up.id()).context("a process id")?);
    kill(up, Signal::SIGSTOP).context("pause `quorate up`")?;
    let killed = kill_control(up, &cluster.directory);
    let without = load(&cluster, minutes).await;
    kill(up, Signal::SIGCONT).context("continue `quorate up`")?;
    ensure!(killed? == REPLICAS.len(), "every control replica was killed");
    let began = Instant::now();
    cluster.wait_until_healthy().await?;
    let returned = began.elapsed().as_secs_f64();
    ensure!(slots(&cluster)? == before, "no slot moved or was ordered anew");
    Ok(report(&without, &with, returned))
}

fn report(without: &[Minute], with: &[Minute], returned_seconds: f64) -> BenchmarkReport {
    let each = |minutes: &[Minute], pick: fn(&Minute) -> f64| minutes.iter().map(pick).collect::<Vec<f64>>();
    let row = |metric: &str, unit: &str, pick: fn(&Minute) -> f64, bar| {
        let (ours, theirs) = (each(without, pick), each(with, pick));
        ComparisonRow::new(metric, unit, "the same with control", &ours, &theirs, bar)
    };
    let mut report = BenchmarkReport::new("autonomy");
    report.rows = vec![
        row("answered", "%", Minute::answered_percent, Some(Bar::AtLeast(1.0))),
        row("latency_p50", "ms", |minute| minute.quantile(0.5), None),
        row("latency_p99", "ms", |minute| minute.quantile(0.99), None),
    ];
    let sum = |minutes: &[Minute]| {
        let answered: usize = minutes.iter().map(|minute| minute.latencies.len()).sum();
        let failed: usize = minutes.iter().map(|minute| minute.failed).sum();
        format!("{} requests, {failed} failed", answered + failed)
    };
    report.notes = vec![
        format!("{} min without control: {}; with control: {}", without.len(), sum(without), sum(with)),
        format!("control led again {returned_seconds:.1} s after its supervisor went on; no slot moved"),
        format!("{CLIENTS} clients, one request after another, 8 tokens of the small language model each"),
    ];
    report
}

/// Sends requests for this many minutes; returns the answers of each.
async fn load(cluster: &BenchmarkCluster, minutes: usize) -> Vec<Minute> {
    let mut all = Vec::new();
    for minute in 0..minutes {
        let until = Instant::now() + Duration::from_secs(60);
        let clients = (0..CLIENTS).map(|_| ask_until(cluster, until));
        let mut sum = Minute::default();
        for part in futures::future::join_all(clients).await {
            sum.latencies.extend(part.latencies);
            sum.failed += part.failed;
        }
        sum.latencies.sort_by(f64::total_cmp);
        eprintln!("minute {}/{minutes}: {} answered, {} failed", minute + 1, sum.latencies.len(), sum.failed);
        all.push(sum);
    }
    all
}

async fn ask_until(cluster: &BenchmarkCluster, until: Instant) -> Minute {
    let body = json!({
        "model": SERVICE, "max_tokens": 8,
        "messages": [{ "role": "user", "content": "What is three plus four?" }],
    });
    let mut minute = Minute::default();
    while Instant::now() < until {
        let began = Instant::now();
        let request = cluster.http.post(format!("{}/v1/chat/completions", cluster.gateway));
        let request = request.bearer_auth(&cluster.key).timeout(REQUEST_LIMIT).json(&body);
        let answer = async { request.send().await?.error_for_status()?.bytes().await };
        match answer.await {
            Ok(_) => minute.latencies.push(began.elapsed().as_secs_f64() * 1000.0),
            Err(error) => {
                eprintln!("failed: {error:#}");
                minute.failed += 1;
            }
        }
    }
    minute
}

/// Returns slot, node and fence of each replica.
fn slots(cluster: &BenchmarkCluster) -> Result<Vec<Value>> {
    let view: Value = serde_json::from_str(&cluster.quorate(&["service", "show", SERVICE, "-o", "json"])?)?;
    let slots = view["slots"].as_array().context("a service has slots")?;
    Ok(slots.iter().map(|slot| json!([slot["slot"], slot["node"], slot["fence"]])).collect())
}

/// Kills the children of `up` that work in a control replica's directory; returns their number.
fn kill_control(up: Pid, directory: &Path) -> Result<usize> {
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let works_in = |replica: &&str| {
            let directory = directory.join(replica).display().to_string();
            line.split(|byte| *byte == 0).any(|word| word == directory.as_bytes())
        };
        if parent == Some(up.as_raw()) && REPLICAS.iter().any(works_in) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("kill process {pid}"))?;
            killed += 1;
        }
    }
    Ok(killed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_summed_up() {
        let minute = Minute { latencies: (1..=100).map(f64::from).collect(), failed: 0 };
        assert_eq!(
            (minute.quantile(0.0), minute.quantile(0.99), minute.answered_percent()),
            (1.0, 99.0, 100.0)
        );
        let half = Minute { latencies: vec![1.0], failed: 1 };
        assert_eq!((half.answered_percent(), Minute::default().quantile(0.5)), (50.0, f64::INFINITY));
    }

    #[test]
    fn a_failed_request_falls_short() {
        let whole = || vec![Minute { latencies: vec![2.0, 4.0], failed: 0 }];
        let falls_short = |without: &[Minute]| !report(without, &whole(), 1.0).shortfalls().is_empty();
        assert!(!falls_short(&whole()));
        assert!(falls_short(&[Minute { latencies: vec![2.0], failed: 1 }]));
    }
}
