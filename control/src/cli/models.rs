//! `quorate model`: imports models into dispersed storage, verifies, repairs and removes them.
//!
//! Imports and repairs go through an admitted node: they use its identity, from its state directory. No other
//! party may write shards.

use super::Environment;
use super::output::table;
use super::proposals::{ProposerArguments, reason_or};
use super::quantize::{self, QuantizeTo, QuantizedDirectory};
use super::sharing::{member_key, share_after};
use crate::context::Context;
use crate::member_key::MemberKey;
use crate::node::{self, ModelAccess};
use crate::print;
use crate::session::Session;
use anyhow::Result;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use protocol::api::Page;
use protocol::display::counted;
use protocol::governance::Change;
use protocol::manifest::{ModelChoice, format_bytes};
use protocol::model::{ErasureCode, ModelRecord, StoredKind};
use protocol::{ArtifactRoot, ModelName, ModelRoot, Refusal, error_code};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Encrypt, erasure-code and store a model directory or file; wrap its key to members and workers
    Import(ImportArguments),
    /// List models
    #[command(after_help = "Example:\n  quorate model list")]
    List,
    /// Show one model and the stores of its shards
    #[command(after_help = "Example:\n  quorate model show minilm")]
    Show {
        /// Name of the model
        model: ModelName,
    },
    /// Verify every shard of every segment, or quantise the source again and compare
    #[command(after_help = "\
Examples:
  quorate model verify minilm
  quorate model verify qwen --recompute ~/models/Qwen3-0.6B")]
    Verify {
        /// Name of the model
        model: ModelName,
        /// Directory from which the model was quantised: all of it is computed and compared again
        #[arg(long, value_name = "DIR")]
        recompute: Option<PathBuf>,
        /// State directory of a node on this machine [default: the context's]
        #[arg(long, value_name = "DIR")]
        node: Option<PathBuf>,
    },
    /// Rewrite wrong and missing shards from the remaining ones
    #[command(after_help = "Example:\n  quorate model repair minilm")]
    Repair {
        /// Name of the model
        model: ModelName,
        /// State directory of a node on this machine [default: the context's]
        #[arg(long, value_name = "DIR")]
        node: Option<PathBuf>,
    },
    /// Propose to forget a model that no service names: a sensitive change
    Forget(ForgetArguments),
    /// Collect garbage: remove forgotten models and unfinished imports from stores
    Sweep(SweepArguments),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate model sweep --dry-run
  quorate model sweep --older-than 6h
  quorate model sweep --store s3://bucket/models

A complete model is kept until the circle has decided to forget it, whether it is registered or not.
Objects of unfinished imports go when all of them are older than --older-than. Never sweep a store that
another cluster uses too: its unfinished imports look like this cluster's.")]
pub(crate) struct SweepArguments {
    /// Report the garbage without removing it
    #[arg(long)]
    dry_run: bool,
    /// Keep unfinished imports younger than this; at least an hour
    #[arg(long, value_name = "TIME", default_value = "24h")]
    older_than: humantime::Duration,
    /// URL of a store that only this cluster uses; repeatable [default: every store of every admitted node]
    #[arg(long, value_name = "URL")]
    store: Vec<String>,
    /// State directory of a node on this machine [default: the context's]
    #[arg(long, value_name = "DIR")]
    node: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate model forget old-minilm
  quorate model forget old-minilm --grace 0s --reason 'replaced by minilm-2'
  quorate artifact forget old-trainer
  quorate dataset forget old-corpus

The members vote, as on any sensitive change. Once approved, no service or job can name the item again,
and its name is never given to another. After the grace period its key is deleted, which removes the item
permanently; `quorate model sweep` removes its objects from the stores.")]
pub(crate) struct ForgetArguments {
    /// Name of the stored item
    #[arg(value_name = "NAME")]
    model: ModelName,
    /// Root of a complete model that is not registered; `quorate model sweep` lists them
    #[arg(long)]
    root: Option<ModelRoot>,
    /// Time from the last approval to the deletion
    #[arg(long, default_value = "7days", value_name = "DURATION")]
    grace: humantime::Duration,
    /// Reason shown to the voters
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    proposer: ProposerArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate model import ~/models/all-MiniLM-L6-v2 --name minilm
  quorate model import ~/models/Qwen3-0.6B --name qwen --quantize int8
  quorate model import hf:owner/name --name tiny --data 4 --parity 2")]
pub(crate) struct ImportArguments {
    /// Hugging Face model directory, single file, or `hf:owner/name`
    source: String,
    /// Store a model that no built-in engine serves, for a foreign engine
    #[arg(long)]
    foreign: bool,
    /// Write the matrices with fewer bits first; the model has a root of its own
    #[arg(long, value_name = "WEIGHTS", conflicts_with = "foreign")]
    quantize: Option<QuantizeTo>,
    #[command(flatten)]
    storage: StorageArguments,
}

/// Arguments of every command that stores an item.
#[derive(Debug, Args)]
pub(super) struct StorageArguments {
    /// Name of the stored item
    #[arg(long)]
    name: ModelName,
    /// Number of shards that suffice to rebuild a segment
    #[arg(long, default_value_t = 4)]
    data: u8,
    /// Number of shards that may be lost
    #[arg(long, default_value_t = 2)]
    parity: u8,
    /// URL of a store; may be given several times [default: every store of every admitted node]
    #[arg(long, value_name = "URL")]
    store: Vec<String>,
    /// Maximum shards of a segment in one failure domain [default: the number of parity shards]
    #[arg(long)]
    shards_per_domain: Option<u8>,
    /// State directory of a node on this machine [default: the context's]
    #[arg(long, value_name = "DIR")]
    node: Option<PathBuf>,
    /// Key file of the member that shares the model's key [default: the context's]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// Key, history, node and stores of a command that stores an item.
pub(super) struct StorageSession {
    pub(super) member: MemberKey,
    pub(super) session: Session,
    /// State directory of the node.
    pub(super) directory: PathBuf,
    pub(super) access: ModelAccess,
    pub(super) request: node::ImportRequest,
}

impl StorageArguments {
    /// Opens the member's key, the circle's history and the node, and finds the stores.
    pub(super) async fn open(self, context: &Context) -> Result<StorageSession> {
        let member = member_key(context, self.key)?;
        let session = Session::open(context).await?;
        let directory = node_directory(context, self.node)?;
        let access = ModelAccess::open(&directory, &session.circle)?;
        let stores = if self.store.is_empty() {
            access.stores_of_all_nodes(&session.circle).await?
        } else {
            self.store.iter().map(|url| node::store_reference(url)).collect()
        };
        let request = node::ImportRequest {
            name: self.name,
            erasure: ErasureCode { data: self.data, parity: self.parity },
            stores,
            shards_per_domain_max: self.shards_per_domain.unwrap_or(self.parity),
            is_foreign_allowed: false,
        };
        Ok(StorageSession { member, session, directory, access, request })
    }
}

pub(crate) async fn run(command: ModelCommand, environment: &Environment) -> Result<()> {
    let context = environment.context()?;
    match command {
        ModelCommand::Import(arguments) => import(arguments, &context, environment).await,
        ModelCommand::List => {
            let records = context.client()?.list::<ModelRecord>("/v1/models").await?;
            let is_model = |record: &ModelRecord| record.kind == StoredKind::Model;
            let page = Page::whole(records.into_iter().filter(is_model).collect());
            environment.output().print(&page, |page| models_table(&page.items));
            Ok(())
        }
        ModelCommand::Show { model } => {
            let record = find(&context, &model, "model").await?;
            environment.output().print(&record, show);
            Ok(())
        }
        ModelCommand::Verify { model, recompute, node } => {
            let directory = node_directory(&context, node.clone())?;
            let (access, record) = access(&context, &model, node, "model").await?;
            match recompute {
                Some(source) => {
                    quantize::recompute((&access, &record), (source, &directory), environment).await
                }
                None => verify(&access, &record, environment).await,
            }
        }
        ModelCommand::Repair { model, node } => {
            let (access, record) = access(&context, &model, node, "model").await?;
            repair(&access, &record, environment).await
        }
        ModelCommand::Forget(arguments) => {
            propose_forgetting(arguments, "model", &context, environment).await
        }
        ModelCommand::Sweep(arguments) => sweep(arguments, &context, environment).await,
    }
}

/// Verifies every shard of a stored item.
pub(super) async fn verify(
    access: &ModelAccess,
    record: &ModelRecord,
    environment: &Environment,
) -> Result<()> {
    let report = access.verify(record, progress_bar(record.segments)).await?;
    environment.output().print(&report, node::HealthSummary::text);
    let Some(code) = report.code() else { return Ok(()) };
    let faults = counted(report.faults, "fault");
    let message = format!("{faults}; next: quorate {} repair {}", record.kind.name(), record.name);
    Err(Refusal::new(code, message).into())
}

/// Rewrites the wrong and missing shards of a stored item.
pub(super) async fn repair(
    access: &ModelAccess,
    record: &ModelRecord,
    environment: &Environment,
) -> Result<()> {
    let report = access.repair(record, progress_bar(record.segments)).await?;
    environment.output().print(&report, node::RepairSummary::text);
    let Some(code) = report.code() else { return Ok(()) };
    let name = &record.name;
    let message = match report.found.segments_lost {
        0 => format!("{name} is not fully repaired; repair it again once every store answers"),
        lost => {
            format!("{} of {name} cannot be rebuilt unless a lost store returns", counted(lost, "segment"))
        }
    };
    Err(Refusal::new(code, message).into())
}

/// Proposes to forget a stored item of this kind.
pub(super) async fn propose_forgetting(
    arguments: ForgetArguments,
    kind: &str,
    context: &Context,
    environment: &Environment,
) -> Result<()> {
    let ForgetArguments { model: name, root, grace, reason, proposer } = arguments;
    let session = Session::open(context).await?;
    let root = match root {
        Some(root) => root,
        None => find(context, &name, kind).await?.root,
    };
    let reason = reason_or(reason, || format!("forget {kind} {name}"));
    let grace_seconds = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX);
    let change = Change::ForgetModel { model: ModelChoice { name, root }, grace_seconds };
    proposer.propose(environment, &session, change, reason).await?;
    Ok(())
}

async fn sweep(arguments: SweepArguments, context: &Context, environment: &Environment) -> Result<()> {
    let session = Session::open(context).await?;
    let directory = node_directory(context, arguments.node)?;
    let access = ModelAccess::open(&directory, &session.circle)?;
    let stores = if arguments.store.is_empty() {
        access.stores_of_all_nodes(&session.circle).await?
    } else {
        arguments.store.iter().map(|url| node::store_reference(url)).collect()
    };
    let (older_than, remove) = (arguments.older_than.into(), !arguments.dry_run);
    let report = access.sweep(&session, &stores, older_than, remove, progress_bar(0)).await?;
    environment.output().print(&report, node::SweepSummary::text);
    if remove {
        remove_unregistered_trees(&session, &directory).await?;
    }
    if report.failures.is_empty() {
        return Ok(());
    }
    let message =
        format!("{} of {} could not be swept", report.failures.len(), counted(stores.len() as u64, "store"));
    Err(Refusal::new(error_code::SWEEP_INCOMPLETE, message).into())
}

/// Removes from this node's cache the trees of artifacts that are not registered, such as forgotten ones.
async fn remove_unregistered_trees(session: &Session, directory: &Path) -> Result<()> {
    let records: Vec<ModelRecord> = session.client.list("/v1/models").await?;
    let registered: BTreeSet<ArtifactRoot> = records.iter().filter_map(|record| record.kind.tree()).collect();
    let cache = node::artifact_cache(directory)?;
    let removed = cache.retain(&registered).map_err(|error| Refusal::of(error.code(), &error))?;
    if !removed.is_empty() {
        let trees = counted(removed.len() as u64, "unpacked tree");
        print::err(format_args!("removed {trees} from this node's cache of artifacts"));
    }
    Ok(())
}

/// Finds the stored item of this name and kind in the register.
pub(super) async fn find(context: &Context, name: &ModelName, kind: &str) -> Result<ModelRecord> {
    let records: Vec<ModelRecord> = context.client()?.list("/v1/models").await?;
    of_kind(records.into_iter().find(|record| record.name == *name), name, kind).map_err(Into::into)
}

fn of_kind(found: Option<ModelRecord>, name: &ModelName, kind: &str) -> Result<ModelRecord, Refusal> {
    let Some(record) = found else {
        let message = format!("no {kind} `{name}`; `quorate {kind} list` shows all");
        return Err(Refusal::new(error_code::MODEL_NOT_FOUND, message));
    };
    if record.kind.name() != kind {
        let message = format!("`{name}` is of kind {}, not {kind}", record.kind.name());
        return Err(Refusal::new(error_code::MODEL_KIND_WRONG, message));
    }
    Ok(record)
}

/// Opens the node of a command, and finds the stored item of this name and kind.
pub(super) async fn access(
    context: &Context,
    name: &ModelName,
    node: Option<PathBuf>,
    kind: &str,
) -> Result<(ModelAccess, ModelRecord)> {
    let session = Session::open(context).await?;
    let directory = node_directory(context, node)?;
    Ok((ModelAccess::open(&directory, &session.circle)?, find(context, name, kind).await?))
}

pub(super) fn node_directory(context: &Context, node: Option<PathBuf>) -> Result<PathBuf> {
    node.or_else(|| context.node_directory.clone()).ok_or_else(|| {
        let message =
            "no node to act through: give --node DIR, the state directory of a node on this machine";
        Refusal::new(error_code::NODE_DIRECTORY_MISSING, message).into()
    })
}

async fn import(arguments: ImportArguments, context: &Context, environment: &Environment) -> Result<()> {
    let StorageSession { member, session, directory, access, request } =
        arguments.storage.open(context).await?;
    let request = node::ImportRequest { is_foreign_allowed: arguments.foreign, ..request };
    let bar = progress_bar(0);
    // The node's directory has space for models; the download is removed when this value is dropped.
    let fetched = match arguments.source.strip_prefix("hf:") {
        Some(name) => {
            let folder = Fetched::below(&directory)?;
            crate::hub::fetch(name, &folder.0, &bytes_bar()).await?;
            Some(folder)
        }
        None => None,
    };
    let source = fetched.as_ref().map_or_else(|| PathBuf::from(&arguments.source), |folder| folder.0.clone());
    let quantized = match arguments.quantize {
        Some(to) => {
            ModelAccess::check_name(&session, &request.name).await?;
            Some(QuantizedDirectory::make(&source, &directory, to).await?)
        }
        None => None,
    };
    let source = quantized.as_ref().map_or(source.as_path(), QuantizedDirectory::path);
    let mut imported = access.import(&session, &member, source, request, bar).await?;
    imported.notes.extend(quantized.as_ref().map(QuantizedDirectory::note));
    environment.output().print(&imported, node::ImportSummary::text);
    share_after(&session, &member).await;
    Ok(())
}

/// A temporary directory for downloaded files; dropping the value removes it.
pub(super) struct Fetched(pub(super) PathBuf);

impl Fetched {
    pub(super) fn below(directory: &Path) -> Result<Self> {
        let folder = directory.join("fetched").join(hex::encode(host::random::random_bytes::<8>()));
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        // A leftover directory does no harm, so a failed removal is ignored.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) fn bytes_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}")
        .expect("the template is a constant");
    ProgressBar::new(0).with_style(style)
}

pub(super) fn progress_bar(length: u64) -> ProgressBar {
    counted_bar(length, "segments")
}

/// Returns a bar for work that is counted in units of this name.
pub(super) fn counted_bar(length: u64, units: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!("{{bar:30}} {{pos}}/{{len}} {units} {{msg}}"))
        .expect("the template is a constant");
    ProgressBar::new(length).with_style(style)
}

fn models_table(models: &[ModelRecord]) -> String {
    let row = |record: &ModelRecord| {
        vec![
            record.name.to_string(),
            record.kind.name().to_string(),
            record.architecture.clone(),
            format_bytes(record.bytes),
            record.segments.to_string(),
            format!("{}+{}", record.erasure.data, record.erasure.parity),
            record.root.to_string(),
        ]
    };
    let header = ["name", "kind", "architecture", "size", "segments", "code", "root"];
    table(&header, models.iter().map(row).collect())
}

fn show(record: &ModelRecord) -> String {
    models_table(std::slice::from_ref(record)) + "\n" + &stores_table(record)
}

/// Renders the store of each shard.
pub(super) fn stores_table(record: &ModelRecord) -> String {
    let rows = record
        .stores
        .iter()
        .enumerate()
        .map(|(index, store)| vec![index.to_string(), store.url.clone(), store.failure_domain.clone()])
        .collect();
    table(&["shard", "store", "failure domain"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::model::StoreReference;

    #[test]
    fn a_model_is_shown_with_the_store_of_each_shard() {
        let mut record = crate::testing::model_record("minilm", "bert");
        record.bytes = 3 << 20;
        record.stores = ["node-1", "node-2"]
            .map(|node| StoreReference {
                url: format!("node://{node}/disk-0"),
                failure_domain: node.to_string(),
            })
            .to_vec();
        let text = show(&record);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("NAME    KIND   ARCHITECTURE  SIZE"), "{text}");
        assert!(lines[1].starts_with("minilm  model  bert") && lines[1].contains("4+2"), "{text}");
        assert_eq!(lines[3], "SHARD  STORE                 FAILURE DOMAIN");
        assert_eq!(lines[4], "0      node://node-1/disk-0  node-1");
        assert_eq!(lines[5], "1      node://node-2/disk-0  node-2");
    }

    #[test]
    fn a_name_of_another_kind_is_refused() {
        let name: ModelName = "minilm".parse().expect("a name");
        let record = crate::testing::model_record("minilm", "bert");
        assert_eq!(of_kind(Some(record.clone()), &name, "model"), Ok(record.clone()));
        let wrong = of_kind(Some(record), &name, "artifact").expect_err("a model");
        assert_eq!(wrong.code, error_code::MODEL_KIND_WRONG);
        let missing = of_kind(None, &name, "artifact").expect_err("nothing");
        assert_eq!(missing.code, error_code::MODEL_NOT_FOUND);
        assert!(missing.message.contains("`quorate artifact list`"), "{}", missing.message);
    }

    #[test]
    fn a_download_leaves_nothing_behind() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let fetched = Fetched::below(directory.path()).expect("created");
        let folder = fetched.0.clone();
        std::fs::write(folder.join("config.json"), "{}").expect("written");
        assert!(folder.starts_with(directory.path()));
        drop(fetched);
        assert!(!folder.exists());
    }
}
