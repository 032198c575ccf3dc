//! Step: `quorate verify` checks the circle's history offline.

use super::Demonstration;
use anyhow::{Context as _, Result, bail};
use protocol::error_code;
use serde_json::Value;
use std::path::Path;
use std::process::Output;

/// Saves the history and verifies every signature in it; then verifies an altered history.
pub(super) async fn verify(demonstration: &Demonstration) -> Result<()> {
    let context: Value = demonstration.quorate.json(&["context", "show"]).await?;
    let circle = context["circle"].as_str().context("the context names the circle")?;
    let history = demonstration.quorate.text(&["circle", "history"]).await?;
    let file = demonstration.directory.join("history.json");
    let output = quorate_verify(demonstration, &history, &file, circle).await?;
    if !output.status.success() {
        bail!("`quorate verify` refuses the history: {}", String::from_utf8_lossy(&output.stderr));
    }
    let verified: Value = serde_json::from_slice(&output.stdout).context("`quorate verify -o json`")?;
    demonstration.say(format!(
        "offline: {} decisions, {} ballots, every signature holds\n$ quorate verify {} --circle {circle}",
        verified["decisions"],
        verified["ballots"],
        file.display(),
    ));
    refuse_an_altered(demonstration, &history, circle).await
}

async fn refuse_an_altered(demonstration: &Demonstration, history: &str, circle: &str) -> Result<()> {
    let mut altered: Value = serde_json::from_str(history)?;
    let reason =
        altered.pointer_mut("/bundles/0/certificate/proposal/reason").context("something was decided")?;
    *reason = format!("{}!", reason.as_str().unwrap_or_default()).into();
    let file = demonstration.directory.join("history-altered.json");
    let output = quorate_verify(demonstration, &altered.to_string(), &file, circle).await?;
    std::fs::remove_file(file)?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() || !said.contains(error_code::BALLOT_MISMATCH.as_str()) {
        bail!("a history with an altered reason was not refused as such: {} {said}", output.status);
    }
    Ok(())
}

/// Runs the command without a context, so that it cannot contact a server.
async fn quorate_verify(
    demonstration: &Demonstration,
    history: &str,
    file: &Path,
    circle: &str,
) -> Result<Output> {
    std::fs::write(file, history).with_context(|| format!("write `{}`", file.display()))?;
    let words = ["verify", &file.display().to_string(), "--circle", circle, "--output", "json"];
    let mut command = demonstration.quorate.command(&words);
    command.env_remove("QUORATE_CONTEXT").output().await.context("run `quorate verify`")
}
