//! `quorate artifact`: imports images and builds trees of programs, which are stored like models.
//!
//! The tree is packed on this machine and put into the node's cache, which reads every byte back, before its
//! first byte is uploaded.

use super::Environment;
use super::models::{
    self, Fetched, ForgetArguments, StorageArguments, StorageSession, node_directory, progress_bar,
    propose_forgetting, stores_table,
};
use super::output::table;
use super::sharing::share_after;
use crate::artifact::{
    HostFiles, PythonBuild, REQUIREMENTS_BYTES_MAX, WheelBudget, find_wheels, on_path, parse_requirements,
    refusal, unpack_wheel,
};
use crate::context::Context;
use crate::node::{self, artifact_cache};
use crate::print;
use anyhow::{Context as _, Result, anyhow};
use clap::{Args, Subcommand};
use model_store::{ArtifactBuilder, ArtifactLimits, CachedTree, PackedArtifact};
use protocol::api::Page;
use protocol::artifact::ArtifactStart;
use protocol::display::counted;
use protocol::manifest::format_bytes;
use protocol::model::{ModelRecord, StoredKind};
use protocol::{ArtifactRoot, ModelName, Refusal, error_code};
use std::fs::File;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum ArtifactCommand {
    /// Flatten, pack and store a container image: an archive of `docker save`, or of an OCI image layout
    Import(ArtifactImportArguments),
    /// Pack and store a program, or Python with pinned wheels, from files of this machine
    Build(ArtifactBuildArguments),
    /// List artifacts
    #[command(after_help = "Example:\n  quorate artifact list")]
    List,
    /// Show one artifact and the stores of its shards
    #[command(after_help = "Example:\n  quorate artifact show trainer")]
    Show {
        /// Name of the artifact
        artifact: ModelName,
    },
    /// Verify every shard, and the unpacked tree in the node's cache
    #[command(after_help = "Example:\n  quorate artifact verify trainer")]
    Verify {
        /// Name of the artifact
        artifact: ModelName,
        /// State directory of a node on this machine [default: the context's]
        #[arg(long, value_name = "DIR")]
        node: Option<PathBuf>,
    },
    /// Rewrite wrong and missing shards from the remaining ones
    #[command(after_help = "Example:\n  quorate artifact repair trainer")]
    Repair {
        /// Name of the artifact
        artifact: ModelName,
        /// State directory of a node on this machine [default: the context's]
        #[arg(long, value_name = "DIR")]
        node: Option<PathBuf>,
    },
    /// Propose to forget an artifact: a sensitive change
    Forget(ForgetArguments),
}

/// Start of the program, where the image or the build does not decide it.
#[derive(Debug, Args)]
pub(crate) struct StartArguments {
    /// Word of the command, the entry point first; repeatable [default: the image's, or the program]
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    entry_point: Vec<String>,
    /// Environment variable; repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Absolute directory in the tree [default: the image's, `/app` with --add, or `/`]
    #[arg(long, value_name = "DIR")]
    working_directory: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  docker save trainer:1 -o trainer.tar && quorate artifact import trainer.tar --name trainer
  quorate artifact import image.tar --name trainer --entry-point /usr/bin/python3 --entry-point train.py

Layers are flattened, and whiteouts honoured. Owners, times, set-id bits and devices have no place in
an artifact: a device is refused. The same tree has the same tree root, from any layers.")]
pub(crate) struct ArtifactImportArguments {
    /// Archive of one image
    #[arg(value_name = "IMAGE.tar")]
    image: PathBuf,
    /// Processor of the image to read, as OCI names it [default: this machine's]
    #[arg(long, value_name = "NAME")]
    architecture: Option<String>,
    #[command(flatten)]
    start: StartArguments,
    #[command(flatten)]
    storage: StorageArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate artifact build --binary target/release/solver --name solver
  quorate artifact build --python requirements.txt --wheels wheels --add train.py --name trainer \\
    --entry-point /usr/bin/python3 --entry-point train.py

Nothing is executed or resolved: every requirement names one version and the SHA-256 of its wheel, which
is in the directory of --wheels, or at a URL that the line names (NAME @ https://...). Shared libraries
that a program or a wheel needs are found by reading their headers, and are added.")]
pub(crate) struct ArtifactBuildArguments {
    /// Pinned requirements, as `pip install --require-hashes` takes them
    #[arg(long, value_name = "FILE", conflicts_with = "binary", required_unless_present = "binary")]
    python: Option<PathBuf>,
    /// Program to pack with its libraries
    #[arg(long, value_name = "PROGRAM")]
    binary: Option<PathBuf>,
    /// Directory of wheels
    #[arg(long, value_name = "DIR", requires = "python")]
    wheels: Option<PathBuf>,
    /// Interpreter to pack with its standard library [default: `python3` on the PATH]
    #[arg(long, value_name = "FILE", requires = "python")]
    interpreter: Option<PathBuf>,
    /// File or directory to add below `/app`; repeatable
    #[arg(long, value_name = "PATH")]
    add: Vec<PathBuf>,
    /// Path of the tree to leave out, with everything below it; repeatable
    #[arg(long, value_name = "PATH")]
    exclude: Vec<String>,
    #[command(flatten)]
    start: StartArguments,
    #[command(flatten)]
    storage: StorageArguments,
}

pub(crate) async fn run(command: ArtifactCommand, environment: &Environment) -> Result<()> {
    let context = environment.context()?;
    match command {
        ArtifactCommand::Import(arguments) => import(arguments, &context, environment).await,
        ArtifactCommand::Build(arguments) => build(arguments, &context, environment).await,
        ArtifactCommand::List => {
            let records = context.client()?.list::<ModelRecord>("/v1/models").await?;
            let page = Page::whole(records.into_iter().filter(is_artifact).collect());
            environment.output().print(&page, |page| artifacts_table(&page.items));
            Ok(())
        }
        ArtifactCommand::Show { artifact } => {
            let record = models::find(&context, &artifact, "artifact").await?;
            let text = |record: &ModelRecord| {
                artifacts_table(std::slice::from_ref(record)) + "\n" + &stores_table(record)
            };
            environment.output().print(&record, text);
            Ok(())
        }
        ArtifactCommand::Verify { artifact, node } => {
            let directory = node_directory(&context, node.clone())?;
            let (access, record) = models::access(&context, &artifact, node, "artifact").await?;
            models::verify(&access, &record, environment).await?;
            verify_cached(&directory, &record).await
        }
        ArtifactCommand::Repair { artifact, node } => {
            let (access, record) = models::access(&context, &artifact, node, "artifact").await?;
            models::repair(&access, &record, environment).await
        }
        ArtifactCommand::Forget(arguments) => {
            propose_forgetting(arguments, "artifact", &context, environment).await
        }
    }
}

async fn import(
    arguments: ArtifactImportArguments,
    context: &Context,
    environment: &Environment,
) -> Result<()> {
    let ArtifactImportArguments { image, architecture, start, storage } = arguments;
    let storage = storage.open(context).await?;
    let work = Fetched::below(&storage.directory)?;
    let at = work.0.clone();
    let packed = blocking(move || {
        let mut builder = builder(&at)?;
        let found = builder.add_image(&image, architecture.as_deref()).map_err(|error| refusal(&error))?;
        found.notes.iter().for_each(|note| print::err(format_args!("note: {note}")));
        let found = ArtifactStart {
            command: found.command,
            environment: found.environment,
            working_directory: found.working_directory,
            architecture: found.architecture,
        };
        Ok(builder.pack(start.apply(found)?).map_err(|error| refusal(&error))?)
    });
    store(packed.await?, storage, environment).await
}

async fn build(
    arguments: ArtifactBuildArguments,
    context: &Context,
    environment: &Environment,
) -> Result<()> {
    let ArtifactBuildArguments { python, binary, wheels, interpreter, add, exclude, start, storage } =
        arguments;
    let storage = storage.open(context).await?;
    let work = Fetched::below(&storage.directory)?;
    let at = work.0.clone();
    let wheels = match &python {
        Some(file) => {
            let bytes = host::files::read(file, REQUIREMENTS_BYTES_MAX);
            let bytes = bytes.with_context(|| format!("read `{}`", file.display()))?;
            let bytes = bytes.ok_or_else(|| anyhow!("there is no file `{}`", file.display()))?;
            let text = String::from_utf8(bytes).with_context(|| format!("read `{}`", file.display()))?;
            find_wheels(&parse_requirements(&text)?, wheels.as_deref(), &at).await?
        }
        None => Vec::new(),
    };
    let packed = blocking(move || {
        let mut builder = builder(&at)?;
        let packages = at.join("packages");
        std::fs::create_dir(&packages)?;
        let mut budget = WheelBudget::default();
        wheels.iter().try_for_each(|wheel| unpack_wheel(wheel, &packages, &mut budget))?;
        let mut files = HostFiles::new(&mut builder, &exclude, &packages)?;
        add.iter().try_for_each(|path| files.add_application(path))?;
        let mut built = match binary {
            Some(program) => files.add_program(&program)?,
            None => {
                let missing = || anyhow!("no `python3` on the PATH; give --interpreter FILE");
                let interpreter = interpreter.or_else(|| on_path("python3")).ok_or_else(missing)?;
                files.add_python(&PythonBuild { interpreter: &interpreter, packages: &packages })?
            }
        };
        if !add.is_empty() {
            built.working_directory = "/app".into();
        }
        Ok(builder.pack(start.apply(built)?).map_err(|error| refusal(&error))?)
    });
    store(packed.await?, storage, environment).await
}

/// Runs work on files outside tokio's own threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("the work on files stopped")?
}

fn builder(work: &Path) -> Result<ArtifactBuilder, Refusal> {
    ArtifactBuilder::new(work, ArtifactLimits::default()).map_err(|error| refusal(&error))
}

impl StartArguments {
    /// Returns the start with what the command line says instead.
    fn apply(self, mut start: ArtifactStart) -> Result<ArtifactStart> {
        if !self.entry_point.is_empty() {
            start.command = self.entry_point;
        }
        for variable in self.env {
            let pair = variable.split_once('=').filter(|(name, _)| !name.is_empty());
            let (name, value) = pair.ok_or_else(|| anyhow!("--env `{variable}` is not NAME=VALUE"))?;
            start.environment.insert(name.into(), value.into());
        }
        if let Some(directory) = self.working_directory {
            start.working_directory = directory;
        }
        Ok(start)
    }
}

/// Unpacks an artifact into the node's cache, stores it, and registers it.
async fn store(packed: PackedArtifact, storage: StorageSession, environment: &Environment) -> Result<()> {
    let StorageSession { member, session, directory, access, request } = storage;
    print::err(packed_text(&packed));
    let (path, root) = (packed.path.clone(), packed.root);
    let kept = blocking(move || keep(&directory, &path, root));
    let imported = access.import(&session, &member, &packed.path, request, progress_bar(0));
    let ((), imported) = tokio::try_join!(kept, imported)?;
    environment.output().print(&imported, node::ImportSummary::text);
    share_after(&session, &member).await;
    Ok(())
}

/// Puts an artifact into the node's cache. A cache without room is no reason to refuse an import.
fn keep(directory: &Path, packed: &Path, root: ArtifactRoot) -> Result<()> {
    let file = File::open(packed).with_context(|| format!("read `{}`", packed.display()))?;
    let kept = artifact_cache(directory)?.insert(root, &file).map_err(|error| refusal(&error));
    match kept {
        Err(refusal)
            if matches!(refusal.code, error_code::ARTIFACT_CACHE_FULL | error_code::ARTIFACT_IN_USE) =>
        {
            print::err(format_args!("note: the tree was not unpacked on this node: {}", refusal.message));
            Ok(())
        }
        kept => Ok(kept?),
    }
}

/// Compares the unpacked tree in the node's cache with its root.
async fn verify_cached(directory: &Path, record: &ModelRecord) -> Result<()> {
    let StoredKind::Artifact { tree } = record.kind else { return Ok(()) };
    let directory = directory.to_path_buf();
    let found = blocking(move || {
        let cache = artifact_cache(&directory)?;
        Ok(cache.lookup(tree).map_err(|error| refusal(&error))?)
    });
    match found.await? {
        CachedTree::Ready(_) => print::err("the unpacked tree in this node's cache is intact"),
        CachedTree::Absent => print::err("this node's cache does not hold the tree"),
        CachedTree::Changed(fault) => {
            let message = format!("the unpacked tree differed and was removed: {fault}");
            return Err(Refusal::new(error_code::ARTIFACT_TREE_CHANGED, message).into());
        }
    }
    Ok(())
}

fn is_artifact(record: &ModelRecord) -> bool {
    matches!(record.kind, StoredKind::Artifact { .. })
}

fn packed_text(packed: &PackedArtifact) -> String {
    let size = format_bytes(packed.index.file_bytes());
    let packed_size = format!("packed {} entries, {size}", packed.index.entries.len());
    let Some(start) = &packed.index.start else { return packed_size };
    let variables = counted(start.environment.len() as u64, "environment variable");
    format!(
        "{packed_size}; starts `{}` in `{}` with {variables}",
        crate::terminal::line(&start.command.join(" ")),
        crate::terminal::line(&start.working_directory),
    )
}

fn artifacts_table(artifacts: &[ModelRecord]) -> String {
    let row = |record: &ModelRecord| {
        let tree = record.kind.tree().map_or_else(String::new, |tree| tree.to_string());
        vec![
            record.name.to_string(),
            record.kind.name().to_string(),
            record.architecture.clone(),
            format_bytes(record.bytes),
            record.segments.to_string(),
            tree,
            record.root.to_string(),
        ]
    };
    let header = ["artifact", "kind", "processor", "size", "segments", "tree", "root"];
    table(&header, artifacts.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Digest;
    use std::collections::BTreeMap;

    #[test]
    fn an_artifact_is_listed_with_its_tree() {
        let tree = ArtifactRoot(Digest::of(b"tree"));
        let mut record = crate::testing::model_record("trainer", "amd64");
        record.kind = StoredKind::Artifact { tree };
        assert!(is_artifact(&record) && !is_artifact(&crate::testing::model_record("minilm", "bert")));
        let text = artifacts_table(&[record]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("ARTIFACT  KIND      PROCESSOR"), "{text}");
        assert!(lines[1].starts_with("trainer   artifact  amd64"), "{text}");
        assert!(lines[1].contains(&tree.to_string()), "{text}");
    }

    /// Packs an artifact of one program in a fresh directory.
    fn packed(work: &Path) -> PackedArtifact {
        let mut builder = builder(work).expect("a builder");
        builder.add_file("run", true, &b"#!"[..], 2, work).expect("added");
        let start = ArtifactStart {
            command: vec!["/run".into()],
            environment: BTreeMap::new(),
            working_directory: "/".into(),
            architecture: "amd64".into(),
        };
        builder.pack(start).expect("packed")
    }

    #[tokio::test]
    async fn a_changed_tree_in_the_nodes_cache_fails_the_verification() {
        let (node, work) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let packed = packed(work.path());
        let mut record = crate::testing::model_record("trainer", "amd64");
        record.kind = StoredKind::Artifact { tree: packed.root };
        verify_cached(node.path(), &record).await.expect("nothing is cached");
        keep(node.path(), &packed.path, packed.root).expect("kept");
        verify_cached(node.path(), &record).await.expect("intact");
        let program = node.path().join("artifacts").join(packed.root.to_string()).join("tree/run");
        std::fs::write(program, "?!").expect("written");
        let changed = verify_cached(node.path(), &record).await.expect_err("changed");
        let refusal = changed.downcast_ref::<Refusal>().expect("a refusal");
        assert_eq!(refusal.code, error_code::ARTIFACT_TREE_CHANGED);
        assert!(refusal.message.contains("`run` has other bytes"), "{refusal}");
        verify_cached(node.path(), &record).await.expect("it was removed");
    }

    #[test]
    fn the_command_line_overrides_the_start_of_an_image() {
        let image = ArtifactStart {
            command: vec!["/bin/sh".into()],
            environment: BTreeMap::from([("A".into(), "1".into()), ("B".into(), "2".into())]),
            working_directory: "/srv".into(),
            architecture: "amd64".into(),
        };
        let given = |entry_point: &[&str], env: &[&str], directory: Option<&str>| StartArguments {
            entry_point: entry_point.iter().map(ToString::to_string).collect(),
            env: env.iter().map(ToString::to_string).collect(),
            working_directory: directory.map(ToString::to_string),
        };
        assert_eq!(given(&[], &[], None).apply(image.clone()).expect("unchanged"), image);
        let other = given(&["/bin/true", "-x"], &["B=3=4"], Some("/")).apply(image.clone()).expect("changed");
        assert_eq!(other.command, ["/bin/true", "-x"]);
        assert_eq!((other.environment["A"].as_str(), other.environment["B"].as_str()), ("1", "3=4"));
        assert_eq!(other.working_directory, "/");
        assert!(given(&[], &["=x"], None).apply(image).is_err());
    }
}
