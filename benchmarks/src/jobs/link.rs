//! The link of a gang: bytes a second from one rank to another, by plain TCP.

use super::ours::{JobCluster, JobEnvelope};
use super::slurm::install;
use crate::process::free_ports;
use crate::report::{Bar, BenchmarkReport, ComparisonRow};
use anyhow::{Context as _, Result, bail, ensure};
use protocol::job_api::JobLogLine;
use serde::Deserialize;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Time for which a rank sends.
const SEND: Duration = Duration::from_secs(5);
/// Bytes of a write.
const CHUNK: usize = 128 * 1024;
/// Description of the ranks' process.
pub(super) const PART: &str = "link";
/// Port of the rank that receives.
const PORT: u16 = 5201;
/// Time for the other rank to listen.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Beginning of the line that says the result in bytes a second.
const RESULT: &str = "received bytes/s ";
/// Least share of the peer.
const BAR: f64 = 0.25;

/// Measures the link on one node and on two, beside `iperf3` on loopback, alternated.
pub(super) async fn measure(cluster: &JobCluster, rounds: usize, report: &mut BenchmarkReport) -> Result<()> {
    install("iperf3", &["iperf3"])?;
    let program = std::env::current_exe()?.display().to_string();
    cluster.build_artifact("link", &program, &[])?;
    for (name, ranks_per_slot) in [("link-one-node", 2), ("link-two-nodes", 1)] {
        let command = format!("['/usr/local/bin/benchmarks', 'jobs', '--part', '{PART}']");
        let envelope = JobEnvelope {
            name,
            artifact: "link",
            command: &command,
            ranks: 2,
            ranks_per_slot,
            slots: 2,
            cpu_millicores: 900,
            memory: "64 MiB",
            more: "",
        };
        cluster.approve(&envelope).await?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            ours.push(result(&cluster.run(name).await?)? / 1e9);
            theirs.push(iperf3()? / 1e9);
        }
        let metric = name.replace('-', "_");
        let bar = Some(Bar::AtLeast(BAR));
        report.rows.push(ComparisonRow::new(&metric, "GB/s", "iperf3 on loopback", &ours, &theirs, bar));
    }
    Ok(())
}

/// Returns the rate that a rank printed.
fn result(lines: &[JobLogLine]) -> Result<f64> {
    let found = lines.iter().find_map(|line| line.text.strip_prefix(RESULT));
    Ok(found.with_context(|| format!("no rank printed a rate: {lines:?}"))?.trim().parse()?)
}

/// Runs a rank of the gang: the first one receives, and the other sends.
pub(super) fn rank() -> Result<()> {
    match std::env::var("RANK").context("a rank knows its number")?.as_str() {
        "0" => receive(TcpListener::bind(("0.0.0.0", PORT))?),
        "1" => send("rank-0"),
        other => bail!("rank {other} has nothing to do"),
    }
}

fn receive(listener: TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    let (began, mut chunk, mut bytes) = (Instant::now(), vec![0; CHUNK], 0_u64);
    loop {
        match stream.read(&mut chunk)? {
            0 => break,
            count => bytes += count as u64,
        }
    }
    println!("{RESULT}{}", bytes as f64 / began.elapsed().as_secs_f64());
    Ok(())
}

fn send(host: &str) -> Result<()> {
    let began = Instant::now();
    let mut stream = loop {
        match TcpStream::connect((host, PORT)) {
            Ok(stream) => break stream,
            Err(error) if began.elapsed() > CONNECT_LIMIT => return Err(error).context("reach rank 0"),
            Err(_) => sleep(Duration::from_millis(50)),
        }
    };
    let (began, chunk) = (Instant::now(), vec![7; CHUNK]);
    while began.elapsed() < SEND {
        stream.write_all(&chunk)?;
    }
    Ok(())
}

/// Result of `iperf3 --json`.
#[derive(Deserialize)]
struct IperfReport {
    end: IperfEnd,
}

#[derive(Deserialize)]
struct IperfEnd {
    sum_received: IperfSum,
}

#[derive(Deserialize)]
struct IperfSum {
    bits_per_second: f64,
}

/// Returns the bytes a second of one stream on loopback.
fn iperf3() -> Result<f64> {
    let port = free_ports(1)?[0].to_string();
    let mut server = Command::new("iperf3").args(["-s", "-1", "-p", &port]).stdout(Stdio::null()).spawn()?;
    let began = Instant::now();
    let report = loop {
        let seconds = SEND.as_secs().to_string();
        let words = ["-c", "127.0.0.1", "-p", &port, "-t", &seconds, "--json"];
        let output = Command::new("iperf3").args(words).output()?;
        match serde_json::from_slice::<IperfReport>(&output.stdout) {
            Ok(report) => break report,
            Err(error) if began.elapsed() > CONNECT_LIMIT => return Err(error).context("run iperf3"),
            Err(_) => sleep(Duration::from_millis(100)),
        }
    };
    ensure!(server.wait()?.success(), "the server of iperf3 failed");
    Ok(report.end.sum_received.bits_per_second / 8.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_found_in_the_lines_of_the_rank_that_received() {
        let line = |rank: u32, text: &str| JobLogLine {
            sequence: 1,
            attempt: 1,
            rank,
            number: 1,
            node: "node-1".parse().expect("a name"),
            dropped: 0,
            text: text.into(),
        };
        let lines = [line(1, "sends"), line(0, "received bytes/s 1250000000.5")];
        assert_eq!(result(&lines).expect("a rate"), 1_250_000_000.5);
        assert!(result(&lines[..1]).expect_err("no rate").to_string().contains("no rank printed a rate"));
    }

    #[test]
    fn the_rate_of_the_peer_is_read_from_its_report() {
        let text = r#"{"start": {}, "end": {"sum_received": {"bits_per_second": 8e9, "seconds": 5}}}"#;
        let report: IperfReport = serde_json::from_str(text).expect("a report");
        assert_eq!(report.end.sum_received.bits_per_second, 8e9);
    }
}
