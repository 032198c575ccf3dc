//! Demonstration step: `quorate verify` checks the circle's history offline.

use super::Narrator;
use crate::up::cluster::LocalCluster;
use anyhow::{Context as _, Result, bail};
use protocol::api::History;
use protocol::{CircleId, error_code};
use std::path::Path;
use std::process::Output;
use tokio::process::Command;

/// Writes the history to a file and verifies every signature in it; then verifies an altered history.
pub(crate) async fn verify(cluster: &LocalCluster, narrator: &Narrator) -> Result<()> {
    let mut history = cluster.session().await?.history;
    let (circle, place) = (cluster.context()?.circle, cluster.layout.root());
    let file = place.join("history.json");
    let output = quorate_verify(&history, &file, circle).await?;
    if !output.status.success() {
        bail!("`quorate verify` refuses the history: {}", String::from_utf8_lossy(&output.stderr));
    }
    let ballots: usize = history.bundles.iter().map(|bundle| bundle.certificate.ballots.len()).sum();
    narrator.say(format!(
        "offline: {} decisions, {ballots} ballots, every signature holds\n$ quorate verify {} --circle {circle}",
        history.bundles.len(),
        file.display(),
    ));
    let bundle = history.bundles.first_mut().context("something was decided")?;
    bundle.certificate.proposal.reason.push('!');
    refuse_an_altered(&history, &place.join("history-altered.json"), circle).await
}

async fn refuse_an_altered(history: &History, file: &Path, circle: CircleId) -> Result<()> {
    let output = quorate_verify(history, file, circle).await?;
    std::fs::remove_file(file)?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() || !said.contains(error_code::BALLOT_MISMATCH.as_str()) {
        bail!("a history with an altered reason was not refused as such: {} {said}", output.status);
    }
    Ok(())
}

/// Runs the command without a context, so that it cannot contact a server.
async fn quorate_verify(history: &History, file: &Path, circle: CircleId) -> Result<Output> {
    host::files::write_atomically(file, &serde_json::to_vec_pretty(history)?, 0o644)?;
    let program = std::env::current_exe().context("find this binary")?;
    let mut command = Command::new(program);
    command.arg("verify").arg(file).arg("--circle").arg(circle.to_string()).env_remove("QUORATE_CONTEXT");
    command.output().await.context("run `quorate verify`")
}
