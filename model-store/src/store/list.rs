//! Listing and removal of a store's objects, including the leftovers of incomplete writes, which
//! `object_store` does not show.

use super::listed::Listed;
use super::{Access, SILENCE_MAX, Store};
use crate::error::StoreError;
use crate::geometry::{MANIFESTS, MODELS, Name};
use crate::import_directory::ImportDirectory;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use std::fs::DirEntry;
use std::io::{self, ErrorKind};
use std::path::Path;
use tokio::sync::mpsc;

/// Maximum number of names in one listing: a store of 16 TiB in objects of the usual size. Garbage collection
/// keeps state for them in memory, so an endless listing must be rejected.
const LISTED_MAX: u64 = 4 * 1024 * 1024;
/// Number of names buffered from the thread that walks a directory.
const NAMES_AHEAD: usize = 256;

impl Store {
    /// Lists everything below `prefix` (the whole store, if it is empty), in no order. Ends with the first
    /// error; a store that returns no name for longer than a request may take has failed.
    pub(crate) fn list(&self, prefix: &str) -> BoxStream<'static, Result<Listed, StoreError>> {
        let found = match &self.access {
            Access::Directory { root, disk, .. } => walk(root, prefix, disk),
            Access::Node { remote, .. } => remote.list_all(prefix),
            Access::Objects(objects) => {
                let prefix = Some(ObjectPath::from(prefix)).filter(|prefix| !prefix.as_ref().is_empty());
                objects.list(prefix.as_ref()).map(|found| found.map(Listed::from)).boxed()
            }
            Access::Closed(_) => stream::empty().boxed(),
        };
        let store = self.clone();
        let first = self.objects().err();
        stream::try_unfold((found, store, first, 0), |(mut found, store, first, count)| async move {
            if let Some(closed) = first {
                return Err(closed);
            }
            let next = tokio::time::timeout(SILENCE_MAX, found.next()).await.map_err(|_| store.silent())?;
            let next = next.transpose().map_err(|error| store.failed(&ObjectPath::default(), error))?;
            if count == LISTED_MAX && next.is_some() {
                let expected = format!("{LISTED_MAX} names");
                return Err(StoreError::Surplus { url: store.url().into(), expected });
            }
            Ok(next.map(|listed| (listed, (found, store, None, count + 1))))
        })
        .boxed()
    }

    /// Removes the objects of these names. An absent object is not an error.
    ///
    /// # Errors
    /// See [`StoreError`]; some objects may be removed then.
    pub(crate) async fn remove(&self, names: Vec<String>) -> Result<(), StoreError> {
        for name in names {
            debug_assert!(Name::of(&name).is_some(), "{name}");
            let path = ObjectPath::from(name.as_str());
            let removed = match &self.access {
                Access::Directory { root, disk, .. } => {
                    let file = root.join(&name);
                    let removing = disk.run_blocking(move || remove_file(&file));
                    tokio::time::timeout(SILENCE_MAX, removing).await.map(|done| done.unwrap_or(Ok(())))
                }
                Access::Node { remote, .. } => tokio::time::timeout(SILENCE_MAX, remote.remove(&name)).await,
                Access::Objects(_) | Access::Closed(_) => {
                    let objects = self.objects()?;
                    let one = stream::iter([Ok(path.clone())]).boxed();
                    let mut removing = objects.delete_stream(one);
                    let removing = tokio::time::timeout(SILENCE_MAX, removing.next()).await;
                    removing.map(|removed| removed.unwrap_or(Ok(path.clone())).map(drop))
                }
            };
            match removed.map_err(|_| self.silent())? {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.failed(&path, error)),
            }
        }
        Ok(())
    }

    /// Removes the directory of an import, if it is empty. Only directory stores leave empty ones behind.
    pub(crate) async fn remove_empty(&self, prefix: &str) {
        if let Access::Directory { root, disk, .. } = &self.access {
            let directory = ImportDirectory::at(root, prefix);
            // Not empty, gone already, or on a failing disk: the directory stays, without harm.
            let _ = tokio::time::timeout(SILENCE_MAX, disk.run_blocking(move || directory.remove_if_empty()))
                .await;
        }
    }
}

fn failed(error: io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "directory", source: Box::new(error) }
}

fn remove_file(file: &Path) -> object_store::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Walks a directory on a blocking thread, with a permit of its disk.
pub(crate) fn walk(
    root: &Path,
    prefix: &str,
    disk: &crate::disk::Disk,
) -> BoxStream<'static, object_store::Result<Listed>> {
    let (names, found) = mpsc::channel(NAMES_AHEAD);
    let (root, prefix, disk) = (root.to_path_buf(), prefix.to_string(), disk.clone());
    tokio::spawn(async move {
        disk.run_blocking(move || {
            let tops = [MODELS, MANIFESTS].iter().filter(|top| meets(top, &prefix));
            for top in tops {
                if let Err(error) = descend(&root, top, &prefix, &names) {
                    // The caller may have stopped listing; then the error is not needed.
                    let _ = names.blocking_send(Err(failed(error)));
                    return;
                }
            }
        })
        .await
    });
    stream::unfold(found, |mut found| async move { found.recv().await.map(|next| (next, found)) }).boxed()
}

/// Returns whether `name`, or an entry below it, is at or below `prefix`.
fn meets(name: &str, prefix: &str) -> bool {
    let below = |name: &str, prefix: &str| {
        name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    prefix.is_empty() || below(name, prefix) || below(prefix, name)
}

type Names = mpsc::Sender<object_store::Result<Listed>>;

/// Sends every file below the directory `name`. Files that vanish during the walk are ignored.
fn descend(root: &Path, name: &str, prefix: &str, names: &Names) -> io::Result<()> {
    let entries = match std::fs::read_dir(root.join(name)) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        // Names that are not UTF-8 are foreign.
        let Some(name) = entry.file_name().to_str().map(|leaf| format!("{name}/{leaf}")) else { continue };
        let kind = entry.file_type()?;
        if !meets(&name, prefix) {
            continue;
        }
        if kind.is_dir() {
            descend(root, &name, prefix, names)?;
        } else if kind.is_file() {
            let Some(listed) = listed(&entry, name)? else { continue };
            if names.blocking_send(Ok(listed)).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn listed(entry: &DirEntry, name: String) -> io::Result<Option<Listed>> {
    match entry.metadata() {
        Ok(metadata) => Ok(Some(Listed { name, bytes: metadata.len(), modified: metadata.modified()? })),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
