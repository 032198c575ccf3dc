//! `quorate job submit`, `list`, `show`, `wait`, `logs`, `cancel` and `retry`: runs of approved jobs.

use super::Environment;
use super::deploy::read_manifest;
use super::job_data::{self, DataReader};
use super::job_ids::{find, find_all, find_set};
use super::output::table;
use crate::client::ControlClient;
use crate::print;
use crate::terminal;
use anyhow::Result;
use clap::Args;
use protocol::api::Page;
use protocol::display::counted;
use protocol::job_api::{
    JOB_STATES, JobLogLine, JobLogPage, JobSlotView, JobView, RetryJobBody, SubmitJobBody, SubmittedJob,
};
use protocol::manifest::Manifest;
use protocol::usage_text::{format_hours, format_units};
use protocol::{CheckpointName, JobId, ParameterName, ProjectName, Refusal, ServiceName, error_code};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Longest wait of a request for the next line or state, in milliseconds: short enough to notice the end of
/// a job that prints nothing.
pub(super) const POLL_WAIT_MS: u32 = 1_000;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate job submit train --set steps=100
  quorate job submit train.toml --set steps=100 --follow
  quorate job submit sweep --array 20
  quorate job submit evaluate --after 3f9c

An array is as many jobs as --array says; a rank finds the index of its task in JOB_ARRAY_INDEX. With --after
a job waits until a job, or all tasks of an array, have succeeded. Members approved the job; the submission
sets parameters within their bounds, and needs no vote.")]
pub(crate) struct JobSubmitArguments {
    /// Name of the approved job, or the file of its manifest
    job: String,
    /// Value of a parameter; repeatable
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parse_setting)]
    settings: Vec<(ParameterName, String)>,
    /// Priority in the queue, at most that of the manifest
    #[arg(long)]
    priority: Option<u32>,
    /// Time after which no attempt begins
    #[arg(long, value_name = "DURATION")]
    deadline: Option<humantime::Duration>,
    /// Job or array that succeeds first: its id, or the beginning of it; repeatable
    #[arg(long, value_name = "ID")]
    after: Vec<String>,
    /// Run an array of this many tasks
    #[arg(long, value_name = "TASKS")]
    array: Option<u32>,
    /// Print the lines of the ranks until the job has ended
    #[arg(short, long, conflicts_with = "array")]
    follow: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate job logs 3f9c -f --rank 0
  quorate job logs 3f9c --to logs

Control has the latest lines of each rank in memory. With --to the files that nodes stored when their ranks
had ended are fetched, of every attempt that is kept: DIR/attempt-N/slot-N/rank-N.log. They are read through a
node on this machine, with the key that was wrapped to the member.")]
pub(crate) struct JobLogsArguments {
    /// Id of the job, or the beginning of it
    id: String,
    /// Keep printing new lines until the job has ended
    #[arg(short, long)]
    follow: bool,
    /// Print the lines of this rank only
    #[arg(long)]
    rank: Option<u32>,
    /// Fetch and verify the stored logs instead, into this directory, which is created
    #[arg(long, value_name = "DIR", conflicts_with_all = ["follow", "rank"])]
    to: Option<PathBuf>,
    /// State directory of a node on this machine [default: the context's]
    #[arg(long, value_name = "DIR", requires = "to")]
    node: Option<PathBuf>,
    /// Key file of a member [default: the context's]
    #[arg(long, value_name = "FILE", requires = "to")]
    key: Option<PathBuf>,
}

/// Jobs of a command that several can be given to.
#[derive(Debug, Args)]
pub(crate) struct JobSetArguments {
    /// Id of a job or an array, or the beginning of it; an array stands for all of its tasks
    #[arg(value_name = "ID")]
    set: String,
}

#[derive(Debug, Args)]
pub(crate) struct JobIdArguments {
    /// Id of the job, or the beginning of it
    pub(super) id: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate job retry 3f9c
  quorate job retry 3f9c --from step-000400

The next attempt begins with the newest checkpoint. With --from it begins with an earlier one, and those
after it are forgotten.")]
pub(crate) struct JobRetryArguments {
    /// Id of the job, or the beginning of it
    id: String,
    /// Checkpoint to begin with
    #[arg(long, value_name = "CHECKPOINT")]
    from: Option<CheckpointName>,
}

/// Reads `NAME=VALUE`.
pub(super) fn parse_setting(text: &str) -> Result<(ParameterName, String), String> {
    let (name, value) = text.split_once('=').ok_or("is not NAME=VALUE")?;
    Ok((name.parse()?, value.to_string()))
}

pub(super) async fn submit(arguments: JobSubmitArguments, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    let after = find_all(&client, &arguments.after).await?;
    let body = SubmitJobBody {
        job: name_of(&arguments.job)?,
        parameters: arguments.settings.into_iter().collect(),
        priority: arguments.priority,
        deadline_seconds: arguments.deadline.map(|deadline| deadline.as_secs()),
        after,
        array: arguments.array,
    };
    let submitted: SubmittedJob = client.post("/v1/jobs", &body).await?;
    environment.output().print(&submitted, |submitted| submitted.array.unwrap_or(submitted.id).to_string());
    if !arguments.follow {
        return Ok(());
    }
    follow(&client, submitted.id, None, environment).await?;
    ended(&client, submitted.id, environment).await
}

/// Returns the name of a job: that in a manifest if the text is the path of a file.
fn name_of(job: &str) -> Result<ServiceName> {
    if !job.contains(['.', '/']) {
        return job
            .parse()
            .map_err(|reason: String| Refusal::new(error_code::REQUEST_INVALID, reason).into());
    }
    match read_manifest(Path::new(job))? {
        Manifest::Job(manifest) => Ok(manifest.name),
        Manifest::Service(_) | Manifest::Edge(_) => {
            let message = format!("`{job}` is not the manifest of a job");
            Err(Refusal::new(error_code::MANIFEST_INVALID, message).into())
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate job list
  quorate job list --unfinished
  quorate job list --project vision --state failed
  quorate job list --array 3f9c")]
pub(crate) struct JobListArguments {
    /// List the jobs of this approval only
    #[arg(long, value_name = "NAME")]
    job: Option<ServiceName>,
    /// List the jobs in this state only
    #[arg(long, value_parser = JOB_STATES)]
    state: Option<String>,
    /// List the jobs of this project only; `default` for those of none
    #[arg(long)]
    project: Option<ProjectName>,
    /// List the tasks of this array only: its id, or the beginning of it
    #[arg(long, value_name = "ID")]
    array: Option<String>,
    /// List the jobs that have not ended
    #[arg(long)]
    unfinished: bool,
}

/// Returns the query of a list with these parts.
fn list_query(arguments: &JobListArguments, array: Option<JobId>) -> String {
    let JobListArguments { job, state, project, unfinished, .. } = arguments;
    let parts = [
        job.as_ref().map(|job| format!("job={job}")),
        state.as_ref().map(|state| format!("state={state}")),
        project.as_ref().map(|project| format!("project={project}")),
        array.map(|array| format!("array={array}")),
        unfinished.then(|| "has_ended=false".to_string()),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("&")
}

pub(super) async fn list(arguments: JobListArguments, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    let array = find_all(&client, arguments.array.as_slice()).await?.first().copied();
    let page: Page<JobView> = client.get(&format!("/v1/jobs?{}", list_query(&arguments, array))).await?;
    environment.output().print(&page, |page| jobs_table(&page.items));
    Ok(())
}

pub(super) async fn show(arguments: JobIdArguments, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    let id = find(&client, &arguments.id).await?;
    let view = view_of(&client, id).await?;
    environment.output().print(&view, job_text);
    Ok(())
}

/// Waits until jobs have ended; fails unless all of them succeeded.
pub(super) async fn wait(arguments: JobSetArguments, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    let ids = find_set(&client, &arguments.set).await?;
    for id in &ids {
        let mut view = view_of(&client, *id).await?;
        while !view.has_ended() {
            let path = format!("/v1/jobs/{id}?state={}&wait_ms={POLL_WAIT_MS}", view.state);
            view = client.get(&path).await?;
        }
    }
    let mut outcome = Ok(());
    for id in ids {
        outcome = outcome.and(ended(&client, id, environment).await);
    }
    outcome
}

pub(super) async fn logs(arguments: JobLogsArguments, environment: &Environment) -> Result<()> {
    if let Some(to) = arguments.to {
        let reader = DataReader { id: arguments.id, to, node: arguments.node, key: arguments.key };
        return job_data::logs(reader, environment).await;
    }
    let client = environment.context()?.client()?;
    let id = find(&client, &arguments.id).await?;
    if arguments.follow {
        return follow(&client, id, arguments.rank, environment).await;
    }
    let mut reader = JobLogReader::new(id, arguments.rank);
    while reader.print_page(&client, environment).await? > 0 {}
    Ok(())
}

pub(super) async fn cancel(arguments: JobSetArguments, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    for id in find_set(&client, &arguments.set).await? {
        order(&client, id, ("cancel", "cancelled"), &serde_json::Map::new(), environment).await?;
    }
    Ok(())
}

pub(super) async fn retry(arguments: JobRetryArguments, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    let id = find(&client, &arguments.id).await?;
    let body = RetryJobBody { from: arguments.from };
    order(&client, id, ("retry", "placed into the queue again"), &body, environment).await
}

async fn order(
    client: &ControlClient,
    id: JobId,
    (verb, done): (&str, &str),
    body: &impl Serialize,
    environment: &Environment,
) -> Result<()> {
    let answer: serde_json::Value = client.post(&format!("/v1/jobs/{id}/{verb}"), body).await?;
    environment.output().print(&answer, |_| format!("job {} is {done}", id.short()));
    Ok(())
}

pub(super) async fn view_of(client: &ControlClient, id: JobId) -> Result<JobView> {
    Ok(client.get(&format!("/v1/jobs/{id}")).await?)
}

/// Prints the outcome of a job that has ended; fails unless it succeeded.
async fn ended(client: &ControlClient, id: JobId, environment: &Environment) -> Result<()> {
    let view = view_of(client, id).await?;
    environment.output().print(&view, job_text);
    Ok(verdict(&view)?)
}

/// Refuses a job that did not succeed, with the cause of its last end.
fn verdict(view: &JobView) -> Result<(), Refusal> {
    if view.state == "succeeded" {
        return Ok(());
    }
    let cause = view.last_end.as_ref().map_or(&view.state, |end| &end.cause);
    let message = format!("job {} is {}: {}", view.id.short(), view.state, terminal::line(cause));
    Err(Refusal::new(error_code::JOB_UNSUCCESSFUL, message))
}

/// Prints the lines of a job until it has ended.
async fn follow(
    client: &ControlClient,
    id: JobId,
    rank: Option<u32>,
    environment: &Environment,
) -> Result<()> {
    let mut reader = JobLogReader::new(id, rank);
    loop {
        let was_ended = view_of(client, id).await?.has_ended();
        reader.wait_ms = if was_ended { 0 } else { POLL_WAIT_MS };
        let printed = reader.print_page(client, environment).await?;
        if print::is_closed() || (was_ended && printed == 0) {
            return Ok(());
        }
    }
}

/// Read position in the lines of a job.
#[derive(Debug)]
struct JobLogReader {
    id: JobId,
    rank: Option<u32>,
    epoch: Option<u64>,
    after: u64,
    /// Number of the last line that was printed, by attempt and rank.
    printed: BTreeMap<(u32, u32), u64>,
    /// Longest wait for a line, in milliseconds.
    wait_ms: u32,
}

impl JobLogReader {
    fn new(id: JobId, rank: Option<u32>) -> Self {
        Self { id, rank, epoch: None, after: 0, printed: BTreeMap::new(), wait_ms: 0 }
    }

    /// Prints the next page; returns its number of lines. After a change of leader the lines are read again
    /// from the first, and those that were printed before are passed over.
    async fn print_page(&mut self, client: &ControlClient, environment: &Environment) -> Result<usize> {
        loop {
            let page: JobLogPage = client.get(&self.path()).await?;
            let count = page.items.len();
            let Some(lines) = self.take(page) else {
                print::err("note: the leader changed; the nodes send it the lines that they keep");
                continue;
            };
            for line in &lines {
                environment.output().print(line, line_text);
            }
            return Ok(count);
        }
    }

    fn path(&self) -> String {
        let rank = self.rank.map(|rank| format!("&rank={rank}")).unwrap_or_default();
        format!("/v1/jobs/{}/logs?after={}&wait_ms={}{rank}", self.id, self.after, self.wait_ms)
    }

    /// Returns the lines of a page that were not printed before, or none if another leader answered than
    /// before: it numbers its lines from the beginning.
    fn take(&mut self, page: JobLogPage) -> Option<Vec<JobLogLine>> {
        if self.epoch.replace(page.epoch).is_some_and(|before| before != page.epoch) {
            self.after = 0;
            return None;
        }
        self.after = page.items.last().map_or(self.after, |line| line.sequence);
        let is_new = |line: &JobLogLine| {
            let place = (line.attempt, line.rank);
            let is_new = self.printed.get(&place).is_none_or(|last| line.number > *last);
            if is_new {
                self.printed.insert(place, line.number);
            }
            is_new
        };
        Some(page.items.into_iter().filter(is_new).collect())
    }
}

fn line_text(line: &JobLogLine) -> String {
    let dropped = match line.dropped {
        0 => String::new(),
        count => format!("({} dropped)\n", counted(count, "line")),
    };
    format!("{dropped}{}.{} {}", line.attempt, line.rank, terminal::line(&line.text))
}

fn jobs_table(jobs: &[JobView]) -> String {
    let row = |job: &JobView| {
        vec![
            job.id.short(),
            job_name(job),
            job.state.clone(),
            job.priority.to_string(),
            job.attempts.to_string(),
            human_chain::show_time(job.submitted_at),
            reason(job),
        ]
    };
    let header = ["id", "job", "state", "priority", "attempts", "submitted", "why"];
    table(&header, jobs.iter().map(row).collect())
}

/// Returns the name of a job, with its task of an array.
fn job_name(job: &JobView) -> String {
    let task = job.array.map(|task| format!("[{}/{}]", task.index, task.count));
    format!("{}{}", job.job, task.unwrap_or_default())
}

/// Returns the reason for which a job waits, or that of its last end.
fn reason(job: &JobView) -> String {
    let waits = job.waits.as_ref().map(|waits| waits.text.clone());
    let ended = || job.last_end.as_ref().filter(|_| job.has_ended()).map(|end| end.cause.clone());
    waits.or_else(ended).unwrap_or_default()
}

fn job_text(job: &JobView) -> String {
    let row = |slot: &JobSlotView| {
        let last = slot.ranks.first.saturating_add(slot.ranks.count.saturating_sub(1));
        vec![
            slot.slot.to_string(),
            format!("{}-{last}", slot.ranks.first),
            slot.node.clone(),
            slot.fence.to_string(),
            slot.state.clone(),
        ]
    };
    let mut text = format!(
        "{} of {}: {}, attempt {} ({}, {}, {})\n",
        job.id,
        job_name(job),
        job.state,
        job.attempts,
        counted(job.failures.into(), "failure"),
        counted(job.lost_nodes.into(), "lost node"),
        counted(job.preemptions.into(), "preemption")
    );
    for (name, value) in &job.parameters {
        text.push_str(&format!("  {name} = {}\n", terminal::line(value)));
    }
    if let Some(task) = &job.array {
        text.push_str(&format!("  of array {}\n", task.array));
    }
    for id in &job.after {
        text.push_str(&format!("  follows {id}\n"));
    }
    let (cores, spend) = (job.used.cpu_microseconds, job.used.spend_micro_units);
    text.push_str(&format!("used {} core-hours", format_hours(cores)));
    if job.used.gpu_microseconds > 0 {
        text.push_str(&format!(", {} GPU-hours", format_hours(job.used.gpu_microseconds)));
    }
    text.push_str(&format!(", {} of the circle's units\n", format_units(spend)));
    if let Some(waits) = &job.waits {
        text.push_str(&format!("waits ({}): {}\n", waits.reason, terminal::line(&waits.text)));
    }
    if let Some(end) = &job.last_end {
        text.push_str(&format!("attempt {} ended: {}\n", end.attempt, terminal::line(&end.cause)));
        for end in &end.ends {
            text.push_str(&format!("  rank {}: {}\n", end.rank, end.outcome));
        }
    }
    if job.slots.is_empty() {
        return text;
    }
    let header = ["slot", "ranks", "node", "fence", "state"];
    text + &table(&header, job.slots.iter().map(row).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use protocol::job::{SlotRanks, Submitter};
    use protocol::job_api::{JobEndView, JobWaitView};
    use protocol::job_report::{RankEnd, RankOutcome};
    use protocol::usage::UsageAmounts;
    use protocol::{Digest, Fence, Millis, SlotIndex};

    pub(in crate::cli) fn job(byte: u8, state: &str) -> JobView {
        JobView {
            id: JobId(Digest([byte; 32])),
            job: "train".parse().expect("a name"),
            state: state.into(),
            since: Millis(2),
            submitted_at: Millis(1),
            deadline: Millis(9),
            submitter: Submitter::Token("ann".parse().expect("a name")),
            priority: 10,
            parameters: BTreeMap::from([("steps".parse().expect("a name"), "100".to_string())]),
            after: vec![],
            array: None,
            attempts: 1,
            failures: 0,
            lost_nodes: 1,
            preemptions: 0,
            waits: None,
            slots: vec![],
            last_end: None,
            used: UsageAmounts::default(),
        }
    }

    #[test]
    fn a_list_is_narrowed_by_what_is_given_and_an_unknown_state_is_refused() {
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(flatten)]
            list: JobListArguments,
        }
        let query = |words: &str| {
            let line =
                <Line as clap::Parser>::try_parse_from(["list"].into_iter().chain(words.split_whitespace()));
            line.map(|line| {
                list_query(&line.list, Some(JobId(Digest([1; 32]))).filter(|_| words.contains("array")))
            })
        };
        assert_eq!(query("").expect("nothing"), "");
        let words = "--job train --state failed --project vision --array 01 --unfinished";
        let array = "01".repeat(32);
        let all = format!("job=train&state=failed&project=vision&array={array}&has_ended=false");
        assert_eq!(query(words).expect("all"), all);
        let refused = query("--state asleep").expect_err("no state").to_string();
        assert!(JOB_STATES.iter().all(|state| refused.contains(state)), "{refused}");
    }

    #[test]
    fn a_job_shows_its_slots_its_wait_and_its_last_end() {
        let mut shown = job(0x11, "running");
        let ranks = SlotRanks { first: 2, count: 2 };
        let (slot, fence, state) = (SlotIndex(1), Fence::new(1, 4), "running".to_string());
        shown.slots = vec![JobSlotView { slot, fence, node: "node-1".into(), ranks, state, cpu_micros: 0 }];
        let ends = vec![RankEnd { rank: 0, outcome: RankOutcome::OutOfMemory }];
        let cause = "rank 0: out of memory".to_string();
        shown.last_end = Some(JobEndView { attempt: 1, at: Millis(5), cause, ends });
        shown.used.cpu_microseconds = 5_400_000_000;
        shown.used.gpu_microseconds = 7_200_000_000;
        shown.used.spend_micro_units = 60_000;
        let text = job_text(&shown);
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "  steps = 100",
                "used 1.500 core-hours, 2.000 GPU-hours, 0.060000 of the circle's units",
                "attempt 1 ended: rank 0: out of memory",
                "  rank 0: out of memory",
                "SLOT  RANKS  NODE    FENCE  STATE",
                "1     2-3    node-1  1.4    running",
            ]
        );
        shown.waits = Some(JobWaitView { reason: "no_room".into(), text: "nodes are missing".into() });
        assert!(job_text(&shown).contains("waits (no_room): nodes are missing"));
        assert_eq!(reason(&shown), "nodes are missing");
    }

    #[test]
    fn only_a_job_that_succeeded_lets_a_script_go_on() {
        assert_eq!(verdict(&job(0x11, "succeeded")), Ok(()));
        let refused = verdict(&job(0x11, "cancelled")).expect_err("it did not succeed");
        assert_eq!(refused.code, error_code::JOB_UNSUCCESSFUL);
        let mut failed = job(0x11, "failed");
        let cause = "rank 1: exit code 137".to_string();
        failed.last_end = Some(JobEndView { attempt: 2, at: Millis(5), cause, ends: vec![] });
        let refused = verdict(&failed).expect_err("it failed");
        assert!(refused.message.ends_with("is failed: rank 1: exit code 137"), "{refused}");
    }

    #[test]
    fn dropped_lines_are_shown_before_the_line_that_follows_them() {
        let line = |dropped| JobLogLine {
            sequence: 1,
            attempt: 2,
            rank: 3,
            number: 1,
            node: "node-1".parse().expect("a name"),
            dropped,
            text: "step 1".into(),
        };
        assert_eq!(line_text(&line(0)), "2.3 step 1");
        assert_eq!(line_text(&line(2)), "(2 lines dropped)\n2.3 step 1");
    }

    #[test]
    fn a_page_of_another_leader_begins_anew() {
        let mut reader = JobLogReader::new(JobId(Digest([1; 32])), Some(2));
        assert!(reader.take(JobLogPage { epoch: 3, items: vec![] }).is_some());
        reader.after = 7;
        assert!(reader.path().ends_with("/logs?after=7&wait_ms=0&rank=2"));
        assert!(reader.take(JobLogPage { epoch: 4, items: vec![] }).is_none());
        assert_eq!(reader.after, 0);
    }

    #[test]
    fn no_line_is_printed_twice_though_another_leader_has_it_too() {
        let mut reader = JobLogReader::new(JobId(Digest([1; 32])), None);
        let line = |sequence, rank, number| JobLogLine {
            sequence,
            attempt: 1,
            rank,
            number,
            node: "node-1".parse().expect("a name"),
            dropped: 0,
            text: String::new(),
        };
        let mut taken = |epoch, items| {
            let lines = reader.take(JobLogPage { epoch, items })?;
            Some(lines.iter().map(|line| (line.rank, line.number)).collect::<Vec<_>>())
        };
        assert_eq!(
            taken(3, vec![line(1, 0, 1), line(2, 1, 1), line(3, 0, 2)]),
            Some(vec![(0, 1), (1, 1), (0, 2)])
        );
        assert_eq!(
            taken(4, vec![line(1, 0, 1)]),
            None,
            "the page of another leader is read from its first line"
        );
        let again = vec![line(1, 0, 1), line(2, 0, 2), line(3, 1, 1), line(4, 1, 2), line(5, 0, 3)];
        assert_eq!(taken(4, again), Some(vec![(1, 2), (0, 3)]));
    }
}
