//! Step: a program becomes an artifact, members approve a job of it, and an access token runs it.

use super::Demonstration;
use super::deploy::approve_job;
use anyhow::{Context as _, Result, ensure};
use protocol::api::Page;
use protocol::job_api::{JobLogLine, JobView, SubmittedJob};
use protocol::model::ModelRecord;
use std::time::Instant;

/// Program of the artifact: its lines are the numbers from 1 up to its argument.
const PROGRAM: &str = "/usr/bin/seq";
/// Name of the artifact and of the job.
const NAME: &str = "count";
/// Last number, a parameter of the submission.
const LAST: u32 = 5;
/// Edits of the template: this program, its parameter, and ranks that fit on a small machine.
const EDITS: [(&str, &str); 7] = [
    (r#"["/usr/bin/python3", "train.py", "--steps={steps}"]"#, r#"["/usr/local/bin/seq", "1", "{last}"]"#),
    ("ranks = 1 ", "ranks = 2 "),
    ("# ranks_per_slot = 1 ", "ranks_per_slot = 2 "),
    ("steps = { integer", "last = { integer"),
    ("# any_token = true", "any_token = true"),
    ("cpu_millicores = 2000", "cpu_millicores = 100"),
    (r#"memory = "4 GiB""#, r#"memory = "64 MiB""#),
];
/// Ranks of the gang.
const RANKS: u32 = 2;

/// Stores the program, lets members approve a job of it once, and runs the job without a vote.
pub(super) async fn run_a_job(demonstration: &Demonstration) -> Result<()> {
    if demonstration.quorate.run(&["artifact", "show", NAME]).await?.status.success() {
        demonstration.say(format!("job {NAME} was approved in an earlier run; its certificate still holds"));
    } else {
        approve(demonstration).await?;
    }
    let (quorate, began) = (&demonstration.quorate, Instant::now());
    let setting = format!("last={LAST}");
    let submitted: SubmittedJob = quorate.json(&["job", "submit", NAME, "--set", &setting]).await?;
    let id = submitted.id.to_string();
    quorate.text(&["job", "wait", &id]).await?;
    let job: JobView = quorate.json(&["job", "show", &id]).await?;
    ensure!(job.state == "succeeded" && job.attempts == 1, "the job is {job:?}");
    let lines = lines_of(&quorate.text(&["job", "logs", &id, "--output", "json"]).await?)?;
    check_lines(&lines)?;
    demonstration.say(format!(
        "job {} ran {PROGRAM} 1 {LAST} in {RANKS} ranks, by an access token within what was approved: {} \
         lines, exit code 0, {:.2} s",
        submitted.id.short(),
        lines.len(),
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Imports the program and lets two members approve the job.
async fn approve(demonstration: &Demonstration) -> Result<()> {
    let quorate = &demonstration.quorate;
    quorate.text(&["artifact", "build", "--binary", PROGRAM, "--name", NAME]).await?;
    let stored: Page<ModelRecord> = quorate.json(&["artifact", "list"]).await?;
    let record = stored.items.into_iter().find(|record| record.name.as_str() == NAME);
    let record = record.context("the artifact is listed")?;
    demonstration
        .say(format!("artifact {NAME}: {PROGRAM} and its libraries in {} segments", record.segments));
    approve_job(demonstration, NAME, &EDITS).await
}

/// Returns the lines of ranks, one JSON value each.
fn lines_of(text: &str) -> Result<Vec<JobLogLine>> {
    let lines = serde_json::Deserializer::from_str(text).into_iter::<JobLogLine>();
    lines.map(|line| line.context("read a line of the job")).collect()
}

/// Checks that each rank printed each number once, in order.
fn check_lines(lines: &[JobLogLine]) -> Result<()> {
    let expected: Vec<String> = (1..=LAST).map(|number| number.to_string()).collect();
    for rank in 0..RANKS {
        let texts: Vec<&String> =
            lines.iter().filter(|line| line.rank == rank).map(|line| &line.text).collect();
        ensure!(texts == expected.iter().collect::<Vec<_>>(), "rank {rank} printed {texts:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(rank: u32, text: &str) -> JobLogLine {
        let node = "node-1".parse().expect("a name");
        JobLogLine { sequence: 1, attempt: 1, rank, number: 1, node, dropped: 0, text: text.into() }
    }

    #[test]
    fn every_rank_prints_every_number_in_order() {
        let whole: Vec<JobLogLine> =
            (1..=LAST).flat_map(|n| (0..RANKS).map(move |rank| line(rank, &n.to_string()))).collect();
        check_lines(&whole).expect("all lines");
        assert!(check_lines(&whole[1..]).is_err(), "a line is missing");
        let text: String = whole.iter().map(|line| serde_json::to_string(line).expect("JSON")).collect();
        assert_eq!(lines_of(&text).expect("lines"), whole);
    }
}
