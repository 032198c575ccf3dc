//! `quorate dataset`: imports directories of files that jobs read, which are stored like models.
//!
//! The directory is packed on this machine as it is: no link out of it, no device, no time and no owner.

use super::Environment;
use super::models::{
    self, Fetched, ForgetArguments, StorageArguments, StorageSession, progress_bar, propose_forgetting,
    stores_table,
};
use super::output::table;
use super::sharing::share_after;
use crate::artifact::refusal;
use crate::context::Context;
use crate::node;
use crate::print;
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use model_store::{ArtifactBuilder, ArtifactLimits, PackedArtifact};
use protocol::api::Page;
use protocol::manifest::format_bytes;
use protocol::model::{ModelRecord, StoredKind};
use protocol::{ModelName, Refusal, error_code};
use std::fs::File;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum DatasetCommand {
    /// Pack, encrypt and store a directory of files; wrap its key to members and workers
    Import(DatasetImportArguments),
    /// List datasets
    #[command(after_help = "Example:\n  quorate dataset list")]
    List,
    /// Show one dataset and the stores of its shards
    #[command(after_help = "Example:\n  quorate dataset show corpus")]
    Show {
        /// Name of the dataset
        dataset: ModelName,
    },
    /// Verify every shard
    #[command(after_help = "Example:\n  quorate dataset verify corpus")]
    Verify {
        /// Name of the dataset
        dataset: ModelName,
        /// State directory of a node on this machine [default: the context's]
        #[arg(long, value_name = "DIR")]
        node: Option<PathBuf>,
    },
    /// Rewrite wrong and missing shards from the remaining ones
    #[command(after_help = "Example:\n  quorate dataset repair corpus")]
    Repair {
        /// Name of the dataset
        dataset: ModelName,
        /// State directory of a node on this machine [default: the context's]
        #[arg(long, value_name = "DIR")]
        node: Option<PathBuf>,
    },
    /// Propose to forget a dataset: a sensitive change
    Forget(ForgetArguments),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  quorate dataset import shards --name corpus

The same files have the same tree root, whoever imports them. Symbolic links stay within the directory; one
that leads out of it is refused, as is a device.")]
pub(crate) struct DatasetImportArguments {
    /// Directory of files
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    #[command(flatten)]
    storage: StorageArguments,
}

pub(crate) async fn run(command: DatasetCommand, environment: &Environment) -> Result<()> {
    let context = environment.context()?;
    match command {
        DatasetCommand::Import(arguments) => import(arguments, &context, environment).await,
        DatasetCommand::List => {
            let records = context.client()?.list::<ModelRecord>("/v1/models").await?;
            let page = Page::whole(records.into_iter().filter(is_dataset).collect());
            environment.output().print(&page, |page| datasets_table(&page.items));
            Ok(())
        }
        DatasetCommand::Show { dataset } => {
            let record = models::find(&context, &dataset, "dataset").await?;
            let text = |record: &ModelRecord| {
                datasets_table(std::slice::from_ref(record)) + "\n" + &stores_table(record)
            };
            environment.output().print(&record, text);
            Ok(())
        }
        DatasetCommand::Verify { dataset, node } => {
            let (access, record) = models::access(&context, &dataset, node, "dataset").await?;
            models::verify(&access, &record, environment).await
        }
        DatasetCommand::Repair { dataset, node } => {
            let (access, record) = models::access(&context, &dataset, node, "dataset").await?;
            models::repair(&access, &record, environment).await
        }
        DatasetCommand::Forget(arguments) => {
            propose_forgetting(arguments, "dataset", &context, environment).await
        }
    }
}

async fn import(
    arguments: DatasetImportArguments,
    context: &Context,
    environment: &Environment,
) -> Result<()> {
    let DatasetImportArguments { directory: from, storage } = arguments;
    let StorageSession { member, session, directory, access, request } = storage.open(context).await?;
    let work = Fetched::below(&directory)?;
    let at = work.0.clone();
    let packed =
        tokio::task::spawn_blocking(move || pack(&from, &at)).await.context("the packing stopped")??;
    let size = format_bytes(packed.index.file_bytes());
    print::err(format_args!("packed {} entries, {size}", packed.index.entries.len()));
    let imported = access.import(&session, &member, &packed.path, request, progress_bar(0)).await?;
    environment.output().print(&imported, node::ImportSummary::text);
    share_after(&session, &member).await;
    Ok(())
}

/// Packs a directory in an empty working directory.
fn pack(from: &Path, work: &Path) -> Result<PackedArtifact> {
    let opened = File::open(from).with_context(|| format!("open `{}`", from.display()))?;
    let builder = ArtifactBuilder::new(work, ArtifactLimits::default());
    let mut builder = builder.map_err(|error| refusal(&error))?;
    builder.add_data(&opened, from).map_err(|error| refusal(&error))?;
    let packed = builder.pack_data().map_err(|error| refusal(&error))?;
    packed.ok_or_else(|| {
        let message = format!("`{}` is empty", from.display());
        Refusal::new(error_code::ARTIFACT_INVALID, message).into()
    })
}

fn is_dataset(record: &ModelRecord) -> bool {
    matches!(record.kind, StoredKind::Dataset { .. })
}

fn datasets_table(datasets: &[ModelRecord]) -> String {
    let row = |record: &ModelRecord| {
        vec![
            record.name.to_string(),
            format_bytes(record.bytes),
            record.segments.to_string(),
            record.kind.tree().map_or_else(String::new, |tree| tree.to_string()),
            record.root.to_string(),
        ]
    };
    let header = ["dataset", "size", "segments", "tree", "root"];
    table(&header, datasets.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{ArtifactRoot, Digest};

    #[test]
    fn a_dataset_is_listed_with_its_tree() {
        let tree = ArtifactRoot(Digest::of(b"tree"));
        let mut record = crate::testing::model_record("corpus", "data");
        assert!(!is_dataset(&record));
        record.kind = StoredKind::Dataset { tree };
        assert!(is_dataset(&record));
        let text = datasets_table(&[record]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("DATASET  SIZE"), "{text}");
        assert!(lines[1].starts_with("corpus") && lines[1].contains(&tree.to_string()), "{text}");
    }

    #[test]
    fn a_directory_is_packed_as_it_is_and_an_empty_one_is_refused() {
        let place = tempfile::tempdir().expect("a directory");
        let (from, work) = (place.path().join("from"), place.path().join("work"));
        std::fs::create_dir_all(from.join("train")).expect("created");
        std::fs::create_dir(&work).expect("created");
        std::fs::write(from.join("train/part-0"), "a line\n").expect("written");
        let packed = pack(&from, &work).expect("packed");
        assert_eq!((packed.index.entries.len(), packed.index.start), (2, None));
        let (empty, second) = (place.path().join("empty"), place.path().join("second"));
        std::fs::create_dir(&empty).expect("created");
        std::fs::create_dir(&second).expect("created");
        let refused = pack(&empty, &second).expect_err("nothing to store");
        let refused = refused.downcast_ref::<Refusal>().expect("a refusal");
        assert_eq!(refused.code, error_code::ARTIFACT_INVALID);
    }
}
