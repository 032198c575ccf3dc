//! `quorate job checkpoints`, `outputs` and `logs --to`: what a job left, and its files on this machine.
//!
//! Control lists what it keeps. The command verifies the statement of the node that made it by the history
//! that this machine verified, and every byte by the root that the statement names.

use super::Environment;
use super::job_ids::find;
use super::job_runs::JobIdArguments;
use super::models::{Fetched, counted_bar, node_directory};
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
use protocol::display::counted;
use protocol::job::SlotRanks;
use protocol::job_data::{JobDataKind, JobDataSource, JobDataView, MemberJobData};
use protocol::manifest::format_bytes;
use protocol::model::WrapRequest;
use protocol::{JobId, Refusal, error_code};
use std::path::{Path, PathBuf};

/// Arguments of a command that fetches data of a job.
#[derive(Debug, Args)]
pub(crate) struct DataReader {
    /// Id of the job, or the beginning of it
    pub(super) id: String,
    /// Directory to create
    #[arg(long, value_name = "DIR")]
    pub(super) to: PathBuf,
    /// State directory of a node on this machine [default: the context's]
    #[arg(long, value_name = "DIR")]
    pub(super) node: Option<PathBuf>,
    /// Key file of a member [default: the context's]
    #[arg(long, value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  quorate job outputs 3f9c --to results

The shards are read through a node on this machine, with the key that was wrapped to the member. Every byte
is compared with the root that the node of rank 0 signed.")]
pub(crate) struct JobOutputsArguments {
    #[command(flatten)]
    reader: DataReader,
}

/// Data of one job, with the means to read it.
struct OpenData {
    session: Session,
    member: MemberKey,
    access: ModelAccess,
    /// Directory of the node, below which packed data is placed.
    directory: PathBuf,
    id: JobId,
    data: MemberJobData,
}

impl OpenData {
    async fn of(reader: DataReader, environment: &Environment) -> Result<Self> {
        let context = environment.context()?;
        let member = member_key(&context, reader.key)?;
        let session = Session::open(&context).await?;
        let id = find(&session.client, &reader.id).await?;
        if reader.to.exists() {
            let to = reader.to.display();
            let message = format!("`{to}` exists; what a job left is unpacked into a new directory");
            return Err(Refusal::new(error_code::REQUEST_INVALID, message).into());
        }
        let request = WrapRequest { circle: session.circle.id(), member: member.member.clone() };
        let request = sign_wrap_request(&member.signer, request)?;
        let data = session.client.query(&format!("/v1/jobs/{id}/data/mine"), &request).await?;
        let directory = node_directory(&context, reader.node)?;
        let access = ModelAccess::open(&directory, &session.circle)?;
        Ok(Self { session, member, access, directory, id, data })
    }

    /// Returns the data of these kinds that admitted nodes stated for exactly this job.
    fn verified(&self, is_wanted: impl Fn(&JobDataKind) -> bool) -> Result<Vec<&JobDataSource>, Refusal> {
        verified(&self.session.circle, &self.data, self.id, is_wanted)
    }

    async fn fetch(&self, source: &JobDataSource, to: &Path) -> Result<()> {
        let key = open_key(source, &self.member)?;
        let work = Fetched::below(&self.directory)?;
        self.access.fetch_job_data(&source.signed.data, &key, &work.0, to).await
    }
}

pub(super) async fn list(arguments: JobIdArguments, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    let id = find(&client, &arguments.id).await?;
    let page: Page<JobDataView> = client.get(&format!("/v1/jobs/{id}/data")).await?;
    environment.output().print(&page, |page| data_table(&page.items));
    Ok(())
}

pub(super) async fn outputs(arguments: JobOutputsArguments, environment: &Environment) -> Result<()> {
    let to = arguments.reader.to.clone();
    let open = OpenData::of(arguments.reader, environment).await?;
    let id = open.id;
    let found = open.verified(|kind| *kind == JobDataKind::Outputs)?;
    let source = *found.first().ok_or_else(|| {
        let message = format!("job {} has left no outputs, or has not succeeded yet", id.short());
        Refusal::new(error_code::JOB_DATA_MISSING, message)
    })?;
    open.fetch(source, &to).await?;
    environment.output().print(&source.signed, |signed| {
        let size = format_bytes(signed.data.stored.bytes);
        format!("outputs of job {} ({size}) are in `{}`", id.short(), to.display())
    });
    Ok(())
}

/// Fetches the logs of every slot and attempt that are kept.
pub(super) async fn logs(reader: DataReader, environment: &Environment) -> Result<()> {
    let to = reader.to.clone();
    let open = OpenData::of(reader, environment).await?;
    let id = open.id;
    let found = open.verified(|kind| *kind == JobDataKind::Logs)?;
    if found.is_empty() {
        let message = format!(
            "job {} has no stored logs: its ranks run, or printed nothing, or too few nodes store data",
            id.short()
        );
        return Err(Refusal::new(error_code::JOB_DATA_MISSING, message).into());
    }
    let progress = counted_bar(found.len() as u64, "slots");
    for source in &found {
        let data = &source.signed.data;
        let attempt = to.join(format!("attempt-{}", data.attempt));
        std::fs::create_dir_all(&attempt)?;
        open.fetch(source, &attempt.join(format!("slot-{}", data.slot))).await?;
        progress.inc(1);
    }
    progress.finish_and_clear();
    let signed: Vec<_> = found.iter().map(|source| &source.signed).collect();
    environment.output().print(&signed, |signed| {
        let slots = counted(signed.len() as u64, "slot");
        format!("logs of job {} ({slots}) are in `{}`", id.short(), to.display())
    });
    Ok(())
}

/// Returns the data of these kinds, if admitted nodes stated it for exactly this job.
fn verified<'a>(
    circle: &CircleState,
    data: &'a MemberJobData,
    id: JobId,
    is_wanted: impl Fn(&JobDataKind) -> bool,
) -> Result<Vec<&'a JobDataSource>, Refusal> {
    let wanted = |source: &&JobDataSource| is_wanted(&source.signed.data.kind);
    let found: Vec<&JobDataSource> = data.items.iter().filter(wanted).collect();
    for source in &found {
        check_job_data(circle, &source.signed)?;
        if source.signed.data.id != id {
            let message = "control answers with the data of another job";
            return Err(Refusal::new(error_code::JOB_DATA_INVALID, message));
        }
    }
    Ok(found)
}

fn open_key(source: &JobDataSource, member: &MemberKey) -> Result<ModelKey> {
    let closed =
        |what: &str| Refusal::new(error_code::MODEL_KEY_WRONG, format!("the key of the data: {what}"));
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
            JobDataKind::Logs => ("logs", ranks_text(item.ranks)),
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

/// Returns the ranks of a slot as text.
fn ranks_text(ranks: SlotRanks) -> String {
    let last = ranks.first.saturating_add(ranks.count.saturating_sub(1));
    if ranks.count == 1 { format!("rank {last}") } else { format!("ranks {} to {last}", ranks.first) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::job_data::{JOB_DATA_VERSION, JobData, SignedJobData};
    use protocol::model::{ErasureCode, ModelRecord, StoredKind};
    use protocol::{ArtifactRoot, Digest, Fence, Millis, ModelRoot, NodeId, PublicKey, Signature, SlotIndex};

    fn view(kind: JobDataKind) -> JobDataView {
        JobDataView {
            kind,
            attempt: 2,
            ranks: SlotRanks { first: 0, count: 1 },
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
    fn logs_are_listed_with_their_ranks() {
        let pair = JobDataView { ranks: SlotRanks { first: 2, count: 2 }, ..view(JobDataKind::Logs) };
        let text = data_table(&[view(JobDataKind::Logs), pair]);
        assert!(text.contains("rank 0 ") && text.contains("ranks 2 to 3"), "{text}");
    }

    /// Attacks of a hostile control, which answers with data of a node that no certificate admits.
    #[test]
    fn only_data_that_an_admitted_node_stated_is_read() {
        let (id, circle) = (JobId(Digest([1; 32])), crate::testing::SampleCircle::founded().state);
        let nothing = MemberJobData { items: Vec::new() };
        assert_eq!(verified(&circle, &nothing, id, |_| true).expect("nothing is kept").len(), 0);
        let stranger = MemberJobData { items: vec![stated(&circle, id)] };
        let refused = verified(&circle, &stranger, id, |_| true).expect_err("a node that is not admitted");
        assert_eq!(refused.code, error_code::NODE_NOT_ADMITTED);
        assert_eq!(verified(&circle, &stranger, id, |kind| *kind == JobDataKind::Outputs), Ok(vec![]));
    }

    fn stated(circle: &CircleState, id: JobId) -> JobDataSource {
        let stored = ModelRecord {
            name: "data".parse().expect("a name"),
            kind: StoredKind::JobData { tree: ArtifactRoot(Digest([7; 32])) },
            root: ModelRoot(Digest([8; 32])),
            bytes: 1,
            segments: 1,
            erasure: ErasureCode { data: 1, parity: 0 },
            stores: Vec::new(),
            architecture: "data".into(),
        };
        let data = JobData {
            version: JOB_DATA_VERSION,
            circle: circle.id(),
            node: NodeId(PublicKey([9; 32])),
            job: "train".parse().expect("a name"),
            id,
            attempt: 1,
            slot: SlotIndex(0),
            fence: Fence::new(1, 1),
            ranks: SlotRanks { first: 0, count: 1 },
            kind: JobDataKind::Logs,
            stored,
            key_commitment: Digest([2; 32]),
            wraps: Digest([3; 32]),
        };
        JobDataSource { signed: SignedJobData { data, signature: Signature([0; 64]) }, wrap: None }
    }
}
