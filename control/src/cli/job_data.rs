//! `quorate job checkpoints` and `outputs`: what a job left, and its files on this machine.
//!
//! Control lists what it keeps. The command verifies the statement of the node that made it by the history
//! that this machine verified, and every byte by the root that the statement names.

use super::Environment;
use super::job_ids::find;
use super::job_runs::JobIdArguments;
use super::models::{Fetched, node_directory};
use super::output::table;
use super::sharing::member_key;
use crate::member_key::MemberKey;
use crate::node::ModelAccess;
use crate::session::Session;
use anyhow::Result;
use clap::Args;
use human_chain::{CircleState, check_job_data, sign_wrap_request};
use model_store::ModelKey;
use protocol::api::Page;
use protocol::job_data::{JobDataKind, JobDataSource, JobDataView, MemberJobData};
use protocol::manifest::format_bytes;
use protocol::model::WrapRequest;
use protocol::{JobId, Refusal, error_code};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  quorate job outputs 3f9c --to results

The shards are read through a node on this machine, with the key that was wrapped to the member. Every byte
is compared with the root that the node of rank 0 signed.")]
pub(crate) struct JobOutputsArguments {
    /// Id of the job, or the beginning of it
    id: String,
    /// Directory to create
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// State directory of a node on this machine [default: the context's]
    #[arg(long, value_name = "DIR")]
    node: Option<PathBuf>,
    /// Key file of a member [default: the context's]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

pub(super) async fn list(arguments: JobIdArguments, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    let id = find(&client, &arguments.id).await?;
    let page: Page<JobDataView> = client.get(&format!("/v1/jobs/{id}/data")).await?;
    environment.output().print(&page, |page| data_table(&page.items));
    Ok(())
}

pub(super) async fn outputs(arguments: JobOutputsArguments, environment: &Environment) -> Result<()> {
    let context = environment.context()?;
    let member = member_key(&context, arguments.key)?;
    let session = Session::open(&context).await?;
    let id = find(&session.client, &arguments.id).await?;
    if arguments.to.exists() {
        let message =
            format!("`{}` exists; outputs are unpacked into a new directory", arguments.to.display());
        return Err(Refusal::new(error_code::REQUEST_INVALID, message).into());
    }
    let request = WrapRequest { circle: session.circle.id(), member: member.member.clone() };
    let request = sign_wrap_request(&member.signer, request)?;
    let data: MemberJobData = session.client.query(&format!("/v1/jobs/{id}/data/mine"), &request).await?;
    let source = verified_outputs(&session.circle, &data, id)?;
    let key = open_key(source, &member)?;
    let directory = node_directory(&context, arguments.node)?;
    let access = ModelAccess::open(&directory, &session.circle)?;
    let work = Fetched::below(&directory)?;
    access.fetch_job_data(&source.signed.data, &key, &work.0, &arguments.to).await?;
    environment.output().print(&source.signed, |signed| {
        let size = format_bytes(signed.data.stored.bytes);
        format!("outputs of job {} ({size}) are in `{}`", id.short(), arguments.to.display())
    });
    Ok(())
}

/// Returns the outputs of a job, if an admitted node stated them for exactly this job.
fn verified_outputs<'a>(
    circle: &CircleState,
    data: &'a MemberJobData,
    id: JobId,
) -> Result<&'a JobDataSource, Refusal> {
    let outputs = |source: &&JobDataSource| source.signed.data.kind == JobDataKind::Outputs;
    let source = data.items.iter().find(outputs).ok_or_else(|| {
        let message = format!("job {} has left no outputs, or has not succeeded yet", id.short());
        Refusal::new(error_code::JOB_DATA_MISSING, message)
    })?;
    check_job_data(circle, &source.signed)?;
    if source.signed.data.id != id {
        let message = "control answers with the outputs of another job";
        return Err(Refusal::new(error_code::JOB_DATA_INVALID, message));
    }
    Ok(source)
}

fn open_key(source: &JobDataSource, member: &MemberKey) -> Result<ModelKey> {
    let closed = |what: &str| Refusal::new(error_code::MODEL_KEY_WRONG, format!("the outputs' key: {what}"));
    let wrap = source.wrap.as_ref().ok_or_else(|| {
        closed("it was not wrapped to this member, who may have joined or changed keys since")
    })?;
    if wrap.root != source.signed.data.stored.root {
        return Err(closed("the wrap is of another key").into());
    }
    let opened = member.signer.open_wrap(wrap)?;
    opened.ok_or_else(|| closed("the wrap does not open with this member's secret").into())
}

fn data_table(items: &[JobDataView]) -> String {
    let row = |item: &JobDataView| {
        let (kind, name) = match &item.kind {
            JobDataKind::Checkpoint(name) => ("checkpoint", name.to_string()),
            JobDataKind::Outputs => ("outputs", String::new()),
        };
        vec![
            kind.to_string(),
            name,
            item.attempt.to_string(),
            item.node.clone(),
            format_bytes(item.bytes),
            human_chain::show_time(item.registered_at),
            item.tree.map_or_else(String::new, |tree| tree.to_string()),
        ]
    };
    let header = ["kind", "name", "attempt", "node", "size", "registered", "tree"];
    table(&header, items.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{ArtifactRoot, Digest, Fence, Millis, ModelRoot};

    fn view(kind: JobDataKind) -> JobDataView {
        JobDataView {
            kind,
            attempt: 2,
            fence: Fence::new(1, 4),
            node: "node-1".into(),
            bytes: 3 << 20,
            tree: Some(ArtifactRoot(Digest([7; 32]))),
            root: ModelRoot(Digest([8; 32])),
            registered_at: Millis(5),
        }
    }

    #[test]
    fn checkpoints_are_listed_with_their_name_and_their_tree() {
        let checkpoint = JobDataKind::Checkpoint("step-1".parse().expect("a name"));
        let text = data_table(&[view(checkpoint), view(JobDataKind::Outputs)]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("KIND        NAME    ATTEMPT  NODE    SIZE"), "{text}");
        assert!(lines[1].starts_with("checkpoint  step-1  2        node-1  3 MiB"), "{text}");
        assert!(lines[2].starts_with("outputs") && lines[2].contains(&"07".repeat(32)), "{text}");
    }

    #[test]
    fn a_job_without_outputs_says_so() {
        let id = JobId(Digest([1; 32]));
        let circle = crate::testing::SampleCircle::founded().state;
        let nothing = MemberJobData { items: Vec::new() };
        let refused = verified_outputs(&circle, &nothing, id).expect_err("nothing is kept");
        assert_eq!(refused.code, error_code::JOB_DATA_MISSING);
    }
}
