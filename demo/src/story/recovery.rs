//! Recovery from what the story breaks: a node without its disk is admitted again, and shards are rebuilt.

use super::service::wait_until_alive;
use super::{Demonstration, MEMBERS, NODES, PrintedProposal};
use anyhow::{Result, bail};
use protocol::JobId;
use protocol::agent::PendingNode;
use protocol::api::{Page, ProposalState};
use protocol::job_api::JobView;
use protocol::model::ModelRecord;
use serde_json::Value;

/// Completes the recovery that an earlier run began and did not finish.
pub(super) async fn finish_earlier_run(demonstration: &Demonstration) -> Result<()> {
    for node in NODES {
        if asks(demonstration, node).await? {
            admit_again(demonstration, node).await?;
            demonstration
                .say(format!("{node} still asked for admission after an earlier run; admitted by 2 votes"));
        }
        wait_until_alive(demonstration, node).await?;
    }
    let cancelled = cancel_jobs(demonstration).await?;
    if cancelled > 0 {
        demonstration
            .say(format!("cancelled {cancelled} jobs that were submitted before and have not ended"));
    }
    let rebuilt = rebuild_shards(demonstration).await?;
    if rebuilt > 0 {
        demonstration
            .say(format!("{rebuilt} shards that an earlier run left missing or altered were rebuilt"));
    }
    Ok(())
}

/// Cancels the jobs that have not ended, which hold the room of those of this run; returns their number.
async fn cancel_jobs(demonstration: &Demonstration) -> Result<usize> {
    let jobs: Page<JobView> = demonstration.quorate.json(&["job", "list"]).await?;
    let left: Vec<JobId> = jobs.items.iter().filter(|job| !job.has_ended()).map(|job| job.id).collect();
    for id in &left {
        demonstration.quorate.text(&["job", "cancel", &id.to_string()]).await?;
    }
    Ok(left.len())
}

/// Returns whether a node asks for admission.
pub(super) async fn asks(demonstration: &Demonstration, node: &str) -> Result<bool> {
    Ok(pending(demonstration, node).await?.is_some())
}

async fn pending(demonstration: &Demonstration, node: &str) -> Result<Option<PendingNode>> {
    let page: Page<PendingNode> = demonstration.quorate.json(&["node", "pending"]).await?;
    Ok(page.items.into_iter().find(|pending| pending.admission.name.as_str() == node))
}

/// Returns the proposal that an earlier run made for the admission of this node, with the same keys.
async fn made_before(demonstration: &Demonstration, node: &str) -> Result<Option<PrintedProposal>> {
    let Some(pending) = pending(demonstration, node).await? else { return Ok(None) };
    let admission = serde_json::to_value(&pending.admission)?;
    let page: Page<Value> = demonstration.quorate.json(&["review"]).await?;
    let same = page.items.into_iter().filter(|item| item["proposal"]["change"]["admit_node"] == admission);
    let printed = same.map(serde_json::from_value).collect::<Result<Vec<PrintedProposal>, _>>()?;
    Ok(printed.into_iter().find(PrintedProposal::is_pending))
}

/// The admission is drafted, two members approve it, and the client of the second shares the models' keys.
pub(super) async fn admit_again(demonstration: &Demonstration, node: &str) -> Result<()> {
    let words = ["node", "admit", node, "--reason", "its disk was replaced"];
    let mut view = match made_before(demonstration, node).await? {
        Some(view) => view,
        None => demonstration.quorate.json(&words).await?,
    };
    for member in &MEMBERS[1..] {
        if view.is_pending() && view.missing.iter().any(|missing| missing == member) {
            view = demonstration.approve(&view, member).await?;
        }
    }
    if view.state != ProposalState::Approved {
        bail!("two votes did not admit {node}: {:?}", view.state);
    }
    wait_until_alive(demonstration, node).await
}

/// Repairs every model and artifact; returns the number of shards that were rewritten.
pub(super) async fn rebuild_shards(demonstration: &Demonstration) -> Result<u64> {
    let (quorate, mut rebuilt) = (&demonstration.quorate, 0);
    for kind in ["model", "artifact"] {
        let stored: Page<ModelRecord> = quorate.json(&[kind, "list"]).await?;
        for record in stored.items {
            let report: Value = quorate.json(&[kind, "repair", record.name.as_str()]).await?;
            rebuilt += report["shards_rewritten"].as_u64().unwrap_or_default();
        }
    }
    Ok(rebuilt)
}
