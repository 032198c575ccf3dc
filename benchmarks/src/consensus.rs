//! Benchmark of committed commands through three replicas with fsync: our replicas beside etcd's, as real
//! processes on one machine and one disk.
//!
//! The same closed-loop clients write to both sides over plain HTTP/2 on loopback. Each client has its own
//! connection to the leader.

mod etcd;
mod load;
mod ours;

use crate::report::{Bar, BenchmarkReport, ComparisonRow, directory, quantile};
use crate::{Options, ceilings};
use load::{Load, Measured};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Size of a value in bytes.
const VALUE_BYTES: usize = 256;
/// Number of distinct keys; the puts cycle through them.
const KEYS: u64 = 10_000;
/// Rounds of each side; the sides alternate.
const ROUNDS: usize = 5;
/// Size in bytes of the smallest commit's disk work: the write of one entry and one `fdatasync`.
const RECORD_BYTES: usize = 512;

/// Runs one replica of ours.
pub(crate) use ours::part;

/// Runs the benchmark; the sides alternate: ours, theirs, ours, theirs.
pub(crate) fn run(options: &Options) -> anyhow::Result<BenchmarkReport> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(compare(options))
}

async fn compare(options: &Options) -> anyhow::Result<BenchmarkReport> {
    let (clients, length): (&[usize], _) = match options.quick {
        true => (&[1, 32], Duration::from_secs(3)),
        false => (&[1, 8, 32, 128], Duration::from_secs(10)),
    };
    let scratch = directory()?.join("consensus");
    if scratch.exists() {
        std::fs::remove_dir_all(&scratch)?;
    }
    std::fs::create_dir_all(&scratch)?;
    let program = etcd::find()?;
    eprintln!("peer: {} at {}", program.version, program.path.display());
    let theirs = etcd::EtcdCluster::start(&program, &scratch.join("etcd")).await?;
    let ours = ours::ReplicaCluster::start(&scratch.join("ours")).await?;
    let mut found: BTreeMap<(usize, &str), Vec<Measured>> = BTreeMap::new();
    let mut syncs = Vec::new();
    for round in 1..=ROUNDS {
        for count in clients.iter().copied() {
            // Sampled before, between and after the loads, so that the ceiling is measured under the same
            // noise.
            let sync = || ceilings::fdatasync_ms(&scratch, RECORD_BYTES, 100);
            let load = Load { clients: count, length, warm_up: Duration::from_millis(500) };
            syncs.extend(sync()?);
            let one = load.run(|| ours.connect()).await?;
            syncs.extend(sync()?);
            let other = load.run(|| theirs.connect()).await?;
            syncs.extend(sync()?);
            eprintln!(
                "round {round}/{ROUNDS}  {count:3} clients   ours {:7.0}/s p50 {:.3} ms   \
                 etcd {:7.0}/s p50 {:.3} ms",
                one.per_second, one.p50_ms, other.per_second, other.p50_ms
            );
            found.entry((count, "ours")).or_default().push(one);
            found.entry((count, "etcd")).or_default().push(other);
        }
    }
    drop((ours, theirs));
    std::fs::remove_dir_all(&scratch)?;
    Ok(report(clients, &found, &syncs, &program.version))
}

fn report(
    clients: &[usize],
    found: &BTreeMap<(usize, &str), Vec<Measured>>,
    syncs: &[f64],
    peer: &str,
) -> BenchmarkReport {
    let mut report = BenchmarkReport::new("consensus");
    let fastest = quantile(syncs, 0.5);
    report.ceilings.insert("fdatasync_p50_ms".into(), fastest);
    report.ceilings.insert("fdatasync_p99_ms".into(), quantile(syncs, 0.99));
    report.ceilings.insert("commits_per_second_1_client".into(), 1000.0 / fastest);
    for count in clients.iter().copied() {
        let bar = match count {
            1 => Some(Bar::AtLeast(0.95)),
            32 => Some(Bar::AtLeast(1.0)),
            _ => None,
        };
        let side = |side: &str, value: fn(&Measured) -> f64| -> Vec<f64> {
            found[&(count, if side == "ours" { "ours" } else { "etcd" })].iter().map(value).collect()
        };
        let mut add = |what: &str, unit: &str, value: fn(&Measured) -> f64, bar| {
            let metric = format!("{what}_{count}_clients");
            report.rows.push(ComparisonRow::new(
                &metric,
                unit,
                peer,
                &side("ours", value),
                &side("etcd", value),
                bar,
            ));
        };
        add("commits", "1/s", |measured| measured.per_second, bar);
        add("latency_p50", "ms", |measured| measured.p50_ms, None);
        add("latency_p99", "ms", |measured| measured.p99_ms, None);
    }
    report.notes = notes(&report, fastest);
    report
}

fn notes(report: &BenchmarkReport, fsync_p50_ms: f64) -> Vec<String> {
    let alone = report.rows.iter().find(|row| row.metric == "commits_1_clients").map_or(0.0, |row| row.ours);
    vec![
        format!(
            "3 replicas as processes on one disk, {VALUE_BYTES}-byte values, {KEYS} keys, \
             every put durable on a majority before its answer"
        ),
        "clients speak plain HTTP/2 on loopback to the leader of either side, one connection each".into(),
        "between replicas ours is TLS 1.3 with X25519MLKEM768 and pinned keys, etcd's is plain text".into(),
        format!("one client reaches {:.0} % of back-to-back fdatasync", alone * fsync_p50_ms / 10.0),
    ]
}

/// Returns the key of the `n`th put.
fn key(number: u64) -> String {
    format!("key-{:08}", number % KEYS)
}

fn prepare(directory: &Path) -> anyhow::Result<()> {
    Ok(std::fs::create_dir_all(directory)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(per_second: f64) -> Vec<Measured> {
        vec![Measured { per_second, p50_ms: 1.0, p99_ms: 2.0 }]
    }

    #[test]
    fn the_puts_cycle_through_the_keys() {
        assert_eq!(key(7), "key-00000007");
        assert_eq!(key(KEYS + 7), key(7));
    }

    #[test]
    fn each_number_of_clients_has_three_rows_and_one_client_a_bar() {
        let found = BTreeMap::from([((1, "ours"), measured(1000.0)), ((1, "etcd"), measured(500.0))]);
        let report = report(&[1], &found, &[0.5, 0.5, 2.0], "etcd 3");
        let metrics: Vec<&str> = report.rows.iter().map(|row| row.metric.as_str()).collect();
        assert_eq!(metrics, ["commits_1_clients", "latency_p50_1_clients", "latency_p99_1_clients"]);
        assert_eq!((report.rows[0].ratio, report.rows[0].holds), (2.0, true));
        assert!(report.rows[1].bar.is_none(), "a latency has no bar");
        assert_eq!(report.ceilings["commits_per_second_1_client"], 2000.0);
        assert_eq!(
            report.notes.last().map(String::as_str),
            Some("one client reaches 50 % of back-to-back fdatasync")
        );
    }
}
