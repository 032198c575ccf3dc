//! A gang while every control replica is dead: its ranks ask each other in each second, and notice nothing.

use super::ours::{JobCluster, JobEnvelope};
use crate::report::{Bar, BenchmarkReport, ComparisonRow};
use anyhow::{Context as _, Result, bail, ensure};
use protocol::job_api::JobLogLine;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Minutes without control, in a whole run and in a quick one.
pub(super) const MINUTES: (usize, usize) = (10, 1);
/// Description of the ranks' process, and the variable with the number of questions.
pub(super) const PART: &str = "ask";
const QUESTIONS: &str = "QUESTIONS";
/// Time from one question to the next.
const PAUSE: Duration = Duration::from_secs(1);
/// Time in seconds in which the gang runs beyond the absence: control kills, returns, and is found again.
const BEYOND_SECONDS: usize = 45;
/// Longest gap between two answers, in seconds.
const BAR_SECONDS: f64 = 2.0;
/// Port of rank 0.
const PORT: u16 = 5301;
/// Lines of rank 1: when it begins, and its result.
pub(super) const BEGINS: &str = "asks rank 0";
pub(super) const RESULT: &str = "longest gap s ";
/// Time for rank 0 to listen, and limit of each wait for a line.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(120);

/// Kills every replica while a gang runs, for so many minutes, and starts them again.
pub(super) async fn measure(
    cluster: &mut JobCluster,
    minutes: usize,
    report: &mut BenchmarkReport,
) -> Result<()> {
    let questions = minutes * 60 + BEYOND_SECONDS;
    approve_gang(cluster, "absence", questions, "autonomy_seconds = 3600\n").await?;
    let id = cluster.submit("absence", BTreeMap::new()).await?;
    let began = Instant::now();
    while !cluster.lines(id).await?.iter().any(|line| line.text == BEGINS) {
        ensure!(began.elapsed() < LIMIT, "the gang does not begin: {:?}", cluster.job(id).await?);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.control.kill_all();
    eprintln!("every replica is dead for {minutes} min");
    tokio::time::sleep(Duration::from_secs(minutes as u64 * 60)).await;
    cluster.control.restart_dead().await?;
    cluster.ended(&[id].into()).await?;
    let job = cluster.job(id).await?;
    ensure!(job.attempts == 1 && job.lost_nodes == 0, "the gang was disturbed: {job:?}");
    let gap = longest_gap(&cluster.lines(id).await?)?;
    let (peer, bar) = (format!("the bar, {BAR_SECONDS} s"), Some(Bar::AtMost(1.0)));
    report.rows.push(ComparisonRow::new("gang_without_control", "s", &peer, &[gap], &[BAR_SECONDS], bar));
    report.notes.push(format!(
        "every replica was dead for {minutes} min of a gang of 2 ranks on 2 nodes: attempt 1 succeeded, and \
         the longest of {questions} gaps between answers of the other rank, once a second, was {gap:.2} s"
    ));
    Ok(())
}

/// Lets the members approve a gang of two ranks on two nodes, of which one asks the other so many questions.
pub(super) async fn approve_gang(
    cluster: &JobCluster,
    name: &str,
    questions: usize,
    more: &str,
) -> Result<()> {
    let program = std::env::current_exe()?.display().to_string();
    cluster.build_artifact(name, &program, &["--env", &format!("{QUESTIONS}={questions}")])?;
    let command = format!("['/usr/local/bin/benchmarks', 'jobs', '--part', '{PART}']");
    let envelope = JobEnvelope {
        name,
        artifact: name,
        command: &command,
        ranks: 2,
        ranks_per_slot: 1,
        slots: 2,
        cpu_millicores: 200,
        memory: "64 MiB",
        more,
    };
    cluster.approve(&envelope).await
}

/// Returns the result of the rank that asks.
fn longest_gap(lines: &[JobLogLine]) -> Result<f64> {
    let found = lines.iter().find_map(|line| line.text.strip_prefix(RESULT));
    Ok(found.with_context(|| format!("no rank printed a gap: {lines:?}"))?.parse()?)
}

/// Runs a rank of the gang: the first one answers, and the other asks.
pub(super) fn rank() -> Result<()> {
    let questions: u64 = std::env::var(QUESTIONS).context("a rank knows its questions")?.parse()?;
    match std::env::var("RANK").context("a rank knows its number")?.as_str() {
        "0" => answer(&TcpListener::bind(("0.0.0.0", PORT))?),
        "1" => ask("rank-0", questions),
        other => bail!("rank {other} has nothing to do"),
    }
}

/// Sends every byte back, until the other side is done.
fn answer(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn ask(host: &str, questions: u64) -> Result<()> {
    let began = Instant::now();
    let mut stream = loop {
        match TcpStream::connect((host, PORT)) {
            Ok(stream) => break stream,
            Err(error) if began.elapsed() > CONNECT_LIMIT => return Err(error).context("reach rank 0"),
            Err(_) => sleep(Duration::from_millis(50)),
        }
    };
    println!("{BEGINS}");
    let (mut last, mut longest, mut byte) = (Instant::now(), Duration::ZERO, [7]);
    for _ in 0..questions {
        sleep(PAUSE);
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    println!("{RESULT}{}", longest.as_secs_f64());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rank_that_asks_says_its_longest_gap() {
        let line = |text: &str| JobLogLine {
            sequence: 1,
            attempt: 1,
            rank: 1,
            number: 1,
            node: "node-1".parse().expect("a name"),
            dropped: 0,
            text: text.into(),
        };
        let lines = [line(BEGINS), line("longest gap s 1.25")];
        assert_eq!(longest_gap(&lines).expect("a gap"), 1.25);
        assert!(longest_gap(&lines[..1]).expect_err("none").to_string().contains("no rank printed a gap"));
    }

    #[test]
    fn a_rank_sends_back_what_it_is_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("an address");
        let answers = std::thread::spawn(move || answer(&listener));
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(&[9]).expect("sent");
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("answered");
        drop(stream);
        answers.join().expect("it ends").expect("without an error");
        assert_eq!(byte, [9]);
    }
}
