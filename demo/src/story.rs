//! The story: every step performs the real operation on the running binaries, checks what it sees, and prints
//! it.
//!
//! A failed step ends the demonstration with an error.

mod answer;
mod console;
mod deploy;
mod flip;
mod job;
mod kill;
mod offline;
mod orders;
mod outage;
mod recovery;
mod scan;
mod service;
mod train;
mod wipe;

use crate::Arguments;
use crate::command::Quorate;
use crate::openai::OpenAi;
use anyhow::{Context as _, Result, bail};
use protocol::ProposalId;
use protocol::api::ProposalState;
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Names of the nodes that run services and store models.
const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
/// Names of the circle's members, two of which must sign.
const MEMBERS: [&str; 3] = ["member-a", "member-b", "member-c"];
/// Interval between two looks of a waiting step.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Timeout for the cluster to recover completely at the end.
const HEALTHY_LIMIT: Duration = Duration::from_secs(120);

/// A proposal as `quorate` prints it: the part of its JSON that the story needs.
#[derive(Debug, serde::Deserialize)]
struct PrintedProposal {
    id: ProposalId,
    state: ProposalState,
    /// Six words of the text to sign, computed by the command line.
    words: Vec<String>,
    /// Members that have not voted.
    missing: Vec<String>,
}

impl PrintedProposal {
    /// Returns whether the next approval counts: of an open proposal, or of a draft that it opens.
    fn is_pending(&self) -> bool {
        matches!(self.state, ProposalState::Open | ProposalState::Draft)
    }
}

/// A running cluster, as a person beside it sees it: its directory, its command line, its processes.
#[derive(Debug)]
pub(crate) struct Demonstration {
    pub(crate) directory: PathBuf,
    pub(crate) quorate: Quorate,
    /// Process id of `quorate up`.
    pub(crate) up: i32,
    pub(crate) began: Instant,
}

impl Demonstration {
    /// Prints a text; its first line is prefixed with the time since the start.
    fn say(&self, text: impl AsRef<str>) {
        let mut lines = text.as_ref().lines();
        println!("{:6.2} s  {}", self.began.elapsed().as_secs_f64(), lines.next().unwrap_or_default());
        for line in lines {
            println!("          {line}");
        }
    }

    /// Returns the state directory of a node.
    fn node(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Returns the path of a member's key file.
    fn key_file(&self, member: &str) -> String {
        self.directory.join("members").join(format!("{member}.key")).display().to_string()
    }

    /// Signs a proposal as a member.
    async fn approve(&self, proposal: &PrintedProposal, member: &str) -> Result<PrintedProposal> {
        let (id, key) = (proposal.id.to_string(), self.key_file(member));
        self.quorate.json(&["approve", &id, "--key", &key, "--words", &proposal.words.join(" ")]).await
    }

    /// Returns a client of the cluster's gateway with the key that `quorate up` made.
    async fn openai(&self) -> Result<OpenAi> {
        let context: Value = self.quorate.json(&["context", "show"]).await?;
        let gateway = context["gateway"].as_str().context("the context names a gateway")?;
        let key = std::fs::read_to_string(self.directory.join("api-key")).context("read the API key")?;
        OpenAi::new(gateway, key.trim())
    }
}

/// Runs the whole story.
pub(crate) async fn run(demonstration: &Demonstration, arguments: &Arguments) -> Result<()> {
    recovery::finish_earlier_run(demonstration).await?;
    let replicas = deploy::REPLICAS;
    let models =
        [("minilm", arguments.minilm.as_path(), replicas), ("tiny", arguments.tiny.as_path(), replicas)];
    deploy::serve(demonstration, &models).await?;
    let api = demonstration.openai().await?;
    answer::first_answers(demonstration, &api, arguments.documents.as_deref()).await?;
    job::run_a_job(demonstration).await?;
    train::train_through_a_death(demonstration, &api).await?;
    flip::flip_a_bit(demonstration).await?;
    orders::hand_over_bad_orders(demonstration).await?;
    outage::kill_control(demonstration, &api).await?;
    kill::kill_a_node(demonstration, &api).await?;
    offline::verify(demonstration).await?;
    scan::scan_ports(demonstration)?;
    wipe::wipe_a_node(demonstration, &api).await?;
    end_healthy(demonstration).await
}

/// Waits until the cluster has recovered from everything that the story broke.
async fn end_healthy(demonstration: &Demonstration) -> Result<()> {
    let deadline = Instant::now() + HEALTHY_LIMIT;
    loop {
        let (code, status) = demonstration.quorate.verdict(&["status"]).await?;
        let summary = status["summary"].as_str().unwrap_or_default();
        if code == Some(0) {
            let limits = status["not_enforced"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let limits: String = limits.map(|limits| format!("\nnot enforced: {limits}")).collect();
            demonstration.say(format!("status: {summary}{limits}"));
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("not healthy after {} s: {summary} {}", HEALTHY_LIMIT.as_secs(), status["findings"]);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposal_is_read_from_what_the_command_line_prints() {
        let id = "ab".repeat(32);
        let printed = serde_json::json!({
            "id": id,
            "state": "open",
            "words": ["badge", "pelican", "gecko", "iris", "barn", "velvet"],
            "approved": ["member-a"],
            "missing": ["member-b", "member-c"],
            "refused": [],
        });
        let proposal: PrintedProposal = serde_json::from_value(printed.clone()).expect("a proposal");
        assert_eq!((proposal.id.to_string(), proposal.state), (id, ProposalState::Open));
        assert_eq!(proposal.words.join(" "), "badge pelican gecko iris barn velvet");
        assert_eq!((proposal.is_pending(), proposal.missing.len()), (true, 2));
        for missing in ["id", "state", "words", "missing"] {
            let mut part = printed.clone();
            part.as_object_mut().expect("an object").remove(missing);
            assert!(serde_json::from_value::<PrintedProposal>(part).is_err(), "without `{missing}`");
        }
    }
}
