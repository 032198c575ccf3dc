//! Step: import, proposal, votes, and the first replicas.

use super::service::{self, is_complete};
use super::{Demonstration, MEMBERS, PrintedProposal, console};
use anyhow::{Context as _, Result, bail};
use protocol::api::{Page, ProposalState, ServiceView};
use protocol::manifest::format_bytes;
use protocol::model::ModelRecord;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

/// Number of replicas that always run; the template's maximum is one more than that.
pub(super) const REPLICAS: u32 = 2;

/// Imports the models that are missing, deploys the services that are not approved, and waits until all
/// answer.
pub(super) async fn serve(demonstration: &Demonstration, models: &[(&str, &Path, u32)]) -> Result<()> {
    let mut expected = Vec::new();
    for (name, directory, replicas) in models {
        let record = import(demonstration, name, directory).await?;
        let services: Page<ServiceView> = demonstration.quorate.json(&["service", "list"]).await?;
        if services.items.iter().any(|service| service.name.as_str() == *name) {
            demonstration
                .say(format!("service {name} was approved in an earlier run; its certificate still holds"));
            // It may have been scaled since; within the envelope no vote is needed to undo that.
            service::scale(demonstration, name, *replicas).await?;
        } else {
            let whole = expected.is_empty() && *replicas == REPLICAS;
            propose_and_sign(demonstration, name, *replicas, whole).await?;
        }
        expected.push((*name, record, Instant::now()));
    }
    for (name, record, since) in expected {
        wait_until_ready(demonstration, name, &record, since).await?;
    }
    Ok(())
}

async fn import(demonstration: &Demonstration, name: &str, directory: &Path) -> Result<ModelRecord> {
    let quorate = &demonstration.quorate;
    let models: Page<ModelRecord> = quorate.json(&["model", "list"]).await?;
    if let Some(record) = models.items.into_iter().find(|record| record.name.as_str() == name) {
        demonstration.say(format!("model {name} is stored already ({} segments)", record.segments));
        return Ok(record);
    }
    let began = Instant::now();
    quorate.text(&["model", "import", &directory.display().to_string(), "--name", name]).await?;
    let took = began.elapsed().as_secs_f64();
    let record: ModelRecord = quorate.json(&["model", "show", name]).await?;
    demonstration.say(format!(
        "model {name}  {}  {} segments  {}+{} over {} stores  {took:.2} s",
        format_bytes(record.bytes),
        record.segments,
        record.erasure.data,
        record.erasure.parity,
        record.stores.len(),
    ));
    Ok(record)
}

/// Proposes a deployment and signs it; prints the whole text that is signed, or its first sentence.
async fn propose_and_sign(
    demonstration: &Demonstration,
    name: &str,
    replicas: u32,
    whole: bool,
) -> Result<()> {
    let quorate = &demonstration.quorate;
    let template = quorate.text(&["new", "service", "--model", name]).await?;
    let manifest = manifest(&template, replicas)?;
    let file = demonstration.directory.join(format!("{name}.toml"));
    std::fs::write(&file, manifest).with_context(|| format!("write `{}`", file.display()))?;
    let path = file.display().to_string();
    let mut view: PrintedProposal = quorate.json(&["deploy", &path, "--reason", "the demonstration"]).await?;
    let review = quorate.text(&["review", &view.id.to_string()]).await?;
    demonstration.say(format!("proposal {}  words: {}", view.id.short(), view.words.join(" ")));
    let lines = if whole { usize::MAX } else { 1 };
    for line in signed_text(&review).lines().take(lines) {
        println!("            {line}");
    }
    if whole {
        // One vote of the story goes through the pages; the others through the command line.
        view = console::approve(demonstration, &view, MEMBERS[0]).await?;
        say_signed(demonstration, 0);
    }
    sign(demonstration, view).await
}

/// Edits the template: as many replicas at least, which leave room for the ranks of jobs on a small machine.
fn manifest(template: &str, replicas: u32) -> Result<String> {
    let text = edited(template, &[("\nmin = 1 ", &format!("\nmin = {replicas} "))])?;
    Ok(text.replacen("cpu_millicores = 400 ", "cpu_millicores = 200 ", 1))
}

/// Returns a template with each of these texts replaced once.
///
/// # Errors
/// If the template lacks one of them: it has changed.
pub(super) fn edited(template: &str, edits: &[(&str, &str)]) -> Result<String> {
    let mut text = template.to_string();
    for (from, to) in edits {
        if !text.contains(from) {
            bail!("the template has no `{}` to edit:\n{template}", from.trim());
        }
        text = text.replacen(from, to, 1);
    }
    Ok(text)
}

/// Proposes a job of the artifact with its name, by an edited template, and lets two members approve it.
pub(super) async fn approve_job(
    demonstration: &Demonstration,
    name: &str,
    edits: &[(&str, &str)],
) -> Result<()> {
    let quorate = &demonstration.quorate;
    let template = quorate.text(&["new", "job", "--artifact", name, "--name", name]).await?;
    let file = demonstration.directory.join(format!("{name}.toml"));
    std::fs::write(&file, edited(&template, edits)?)
        .with_context(|| format!("write `{}`", file.display()))?;
    let path = file.display().to_string();
    let view: PrintedProposal = quorate.json(&["deploy", &path, "--reason", "the demonstration"]).await?;
    demonstration.say(format!("proposal {}  words: {}", view.id.short(), view.words.join(" ")));
    sign(demonstration, view).await
}

fn say_signed(demonstration: &Demonstration, count: usize) {
    demonstration.say(format!("signed by {} (Ed25519 and ML-DSA-65)  {} of 2", MEMBERS[count], count + 1));
}

/// Lets the members that have not voted sign until the proposal is decided.
pub(super) async fn sign(demonstration: &Demonstration, mut view: PrintedProposal) -> Result<()> {
    for (count, member) in MEMBERS.iter().enumerate() {
        if !view.is_pending() {
            break;
        }
        if view.missing.iter().any(|missing| missing == member) {
            view = demonstration.approve(&view, member).await?;
            say_signed(demonstration, count);
        }
    }
    if view.state != ProposalState::Approved {
        bail!("two votes did not carry the proposal: {:?}", view.state);
    }
    Ok(())
}

/// Returns the text that members sign, from the output of `quorate review`.
fn signed_text(review: &str) -> &str {
    review.split("\nChanges\n").next().unwrap_or_default().trim_end()
}

/// Waits until every desired replica of a service answers.
async fn wait_until_ready(
    demonstration: &Demonstration,
    name: &str,
    record: &ModelRecord,
    since: Instant,
) -> Result<()> {
    let answering = |view: &ServiceView| {
        let all =
            view.ready >= view.desired && view.slots.iter().filter(|s| service::answers(s)).all(is_complete);
        let nodes = view.slots.iter().filter_map(|slot| Some(slot.node.as_ref()?.to_string()));
        all.then(|| nodes.collect::<BTreeSet<_>>())
    };
    let nodes = service::wait_until(demonstration, name, "answers", answering).await?;
    demonstration.say(format!(
        "{name} answers on {} after {:.2} s: on each {} in {} segments, every one verified",
        nodes.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
        since.elapsed().as_secs_f64(),
        format_bytes(record.bytes),
        record.segments,
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_edited_to_a_number_of_replicas_with_less_cpu() {
        let template = "[replicas]\nmin = 1   # kept\n[resources]\ncpu_millicores = 400   # each\n";
        let edited = "[replicas]\nmin = 2   # kept\n[resources]\ncpu_millicores = 200   # each\n";
        assert_eq!(manifest(template, 2).expect("an edited template"), edited);
        assert!(manifest("[replicas]\n", 2).expect_err("nothing to edit").to_string().contains("min = 1"));
    }

    #[test]
    fn the_signed_text_is_read_from_a_review() {
        let review =
            "| Start the service minilm.\n|\n| service.name minilm\n\nChanges\n+ minilm\n\nwords: a b c";
        assert_eq!(signed_text(review), "| Start the service minilm.\n|\n| service.name minilm");
    }
}
