//! Directory of one import in a served store: its shard objects, its writer, and its seal.
//!
//! Writer and seal are symbolic links whose targets are the key and the root in hexadecimal digits, and lead
//! nowhere. A link is created whole or not at all, and by one of two rivals. A third link marks data of a
//! job, which may go without a decision of the circle. Listings show files alone.

use crate::geometry::{is_leftover_name, is_object_name, model_prefix};
use protocol::model::ModelNonce;
use protocol::{ModelRoot, PublicKey};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

/// Name of the link to the key of the import's writer.
const WRITER: &str = "writer";
/// Name of the link to the root of the import's manifest.
const ROOT: &str = "root";
/// Name of a link that is to replace [`ROOT`].
const ROOT_NEXT: &str = "root-next";

/// Name of the link that marks an import as data of a job. Its target is the root, as that of [`ROOT`] is.
const JOB_DATA: &str = "job-data";

/// Seal of an import as its directory records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordedSeal {
    /// Root of the import's manifest.
    pub(crate) root: ModelRoot,
    /// Time of the seal.
    pub(crate) sealed_at: SystemTime,
    /// Whether the manifest is of data of a job.
    pub(crate) is_job_data: bool,
}

/// Directory of one import. Every method blocks on the disk.
#[derive(Debug, Clone)]
pub(crate) struct ImportDirectory {
    path: PathBuf,
    /// Name of the directory in its store.
    prefix: String,
}

impl ImportDirectory {
    pub(crate) fn new(store: &Path, nonce: ModelNonce) -> Self {
        Self::at(store, model_prefix(nonce).as_ref())
    }

    /// Returns the directory of this name in a store.
    pub(crate) fn at(store: &Path, prefix: &str) -> Self {
        Self { path: store.join(prefix), prefix: prefix.into() }
    }

    /// Returns the peer that wrote the import's first object, if it is recorded.
    pub(crate) fn writer(&self) -> io::Result<Option<PublicKey>> {
        read(&self.path.join(WRITER))
    }

    /// Returns the seal of the import; none before its manifest is stored.
    pub(crate) fn seal(&self) -> io::Result<Option<RecordedSeal>> {
        let link = self.path.join(ROOT);
        let Some(root) = read(&link)? else { return Ok(None) };
        let sealed_at = fs::symlink_metadata(&link)?.modified()?;
        // A mark for another root is that of a manifest whose place this one took.
        let is_job_data = read(&self.path.join(JOB_DATA))? == Some(root);
        Ok(Some(RecordedSeal { root, sealed_at, is_job_data }))
    }

    /// Seals the import with the manifest of this root. The mark of data of a job precedes the seal, so that
    /// no seal lacks it.
    pub(crate) fn seal_with(&self, root: ModelRoot, is_job_data: bool) -> io::Result<()> {
        if is_job_data {
            self.mark_job_data(root)?;
        }
        self.bind(root)
    }

    /// Records that the manifest of this root is of data of a job.
    fn mark_job_data(&self, root: ModelRoot) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        let mark = self.path.join(JOB_DATA);
        if read(&mark)? == Some(root) {
            return Ok(());
        }
        match fs::remove_file(&mark) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => symlink(root.to_string(), &mark)?,
        }
        self.sync()
    }

    /// Records the writer of the import, unless there is one, and returns the recorded one.
    pub(crate) fn claim(&self, peer: PublicKey) -> io::Result<PublicKey> {
        fs::create_dir_all(&self.path)?;
        match symlink(peer.to_string(), self.path.join(WRITER)) {
            Ok(()) => self.sync().map(|()| peer),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                self.writer()?.ok_or_else(|| ErrorKind::NotFound.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Records the root of the import's manifest. The same root keeps the time of its first seal.
    fn bind(&self, root: ModelRoot) -> io::Result<()> {
        if self.seal()?.is_some_and(|seal| seal.root == root) {
            return Ok(());
        }
        fs::create_dir_all(&self.path)?;
        let next = self.path.join(ROOT_NEXT);
        match fs::remove_file(&next) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => symlink(root.to_string(), &next)?,
        }
        fs::rename(next, self.path.join(ROOT))?;
        self.sync()
    }

    /// Returns whether there is no object of the import.
    pub(crate) fn is_empty(&self) -> io::Result<bool> {
        for entry in self.entries()? {
            if is_object_name(&entry?.0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the time of the last write to an object of the import; none if there is none.
    pub(crate) fn youngest(&self) -> io::Result<Option<SystemTime>> {
        let mut youngest = None;
        for entry in self.entries()? {
            let (name, path) = entry?;
            if !is_object_name(&name) && !is_leftover_name(&name) {
                continue;
            }
            match fs::symlink_metadata(&path).and_then(|metadata| metadata.modified()) {
                Ok(modified) => youngest = youngest.max(Some(modified)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(youngest)
    }

    /// Removes the directory with its links, unless anything else is in it. A failure leaves it there.
    pub(crate) fn remove_if_empty(&self) {
        let Ok(mut entries) = self.entries() else { return };
        let links = [WRITER, ROOT, ROOT_NEXT, JOB_DATA].map(|link| self.path.join(link));
        // The first other entry ends the walk: a removal must not read a directory of thousands of objects.
        if entries.all(|entry| entry.is_ok_and(|(_, path)| links.contains(&path))) {
            for link in links {
                let _ = fs::remove_file(link);
            }
            let _ = fs::remove_dir(&self.path);
        }
    }

    /// Returns every entry by its name in the store, with its path.
    fn entries(&self) -> io::Result<impl Iterator<Item = io::Result<(String, PathBuf)>>> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
            entries => Some(entries?),
        };
        let named = move |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            Ok((format!("{}/{}", self.prefix, entry.file_name().to_string_lossy()), entry.path()))
        };
        Ok(entries.into_iter().flatten().map(named))
    }

    fn sync(&self) -> io::Result<()> {
        fs::File::open(&self.path)?.sync_all()
    }
}

/// Returns the value that a link holds; none if there is no link.
fn read<T: FromStr<Err = String>>(link: &Path) -> io::Result<Option<T>> {
    let target = match fs::read_link(link) {
        Ok(target) => target,
        // A file in the place of a link is foreign, as is one in the place of a directory.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::InvalidInput | ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let text = target.to_str().unwrap_or_default();
    text.parse().map(Some).map_err(|reason| io::Error::new(ErrorKind::InvalidData, reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Digest;

    const NONCE: ModelNonce = ModelNonce([7; 16]);

    #[test]
    fn the_first_writer_is_recorded_and_a_rival_is_told_of_it() {
        let store = tempfile::tempdir().expect("a directory");
        let directory = ImportDirectory::new(store.path(), NONCE);
        assert_eq!(directory.writer().expect("read"), None);
        let (first, second) = (PublicKey([1; 32]), PublicKey([2; 32]));
        assert_eq!(directory.claim(first).expect("claimed"), first);
        assert_eq!(directory.claim(second).expect("told"), first);
        assert_eq!(directory.writer().expect("read"), Some(first));
        assert!(directory.is_empty().expect("read") && directory.youngest().expect("read").is_none());
    }

    #[test]
    fn a_seal_keeps_its_time_and_another_takes_its_place_whole() {
        let store = tempfile::tempdir().expect("a directory");
        let directory = ImportDirectory::new(store.path(), NONCE);
        let root = |byte| ModelRoot(Digest([byte; 32]));
        assert_eq!(directory.seal().expect("read"), None);
        directory.bind(root(1)).expect("sealed");
        let first = directory.seal().expect("read").expect("sealed");
        directory.bind(root(1)).expect("sealed");
        assert_eq!(directory.seal().expect("read"), Some(first));
        directory.bind(root(2)).expect("sealed");
        assert_eq!(directory.seal().expect("read").map(|seal| seal.root), Some(root(2)));
    }

    /// The attack is a mark that outlives its manifest: a model that took its place would be removable.
    #[test]
    fn a_mark_of_job_data_is_of_one_root() {
        let store = tempfile::tempdir().expect("a directory");
        let directory = ImportDirectory::new(store.path(), NONCE);
        let root = |byte| ModelRoot(Digest([byte; 32]));
        let marked = || directory.seal().expect("read").map(|seal| (seal.root, seal.is_job_data));
        directory.mark_job_data(root(1)).expect("marked");
        assert_eq!(marked(), None, "a mark seals nothing");
        directory.bind(root(1)).expect("sealed");
        directory.mark_job_data(root(1)).expect("again");
        assert_eq!(marked(), Some((root(1), true)));
        directory.bind(root(2)).expect("sealed");
        assert_eq!(marked(), Some((root(2), false)));
        directory.mark_job_data(root(2)).expect("marked");
        assert_eq!(marked(), Some((root(2), true)));
        directory.remove_if_empty();
        assert!(!directory.path.exists());
    }

    #[test]
    fn a_directory_goes_with_its_links_and_never_with_anything_else() {
        let store = tempfile::tempdir().expect("a directory");
        let directory = ImportDirectory::new(store.path(), NONCE);
        directory.claim(PublicKey([1; 32])).expect("claimed");
        directory.bind(ModelRoot(Digest([1; 32]))).expect("sealed");
        let object = store.path().join(crate::geometry::object_path(NONCE, 0, 0).as_ref());
        for foreign in [object.clone(), object.with_file_name("README")] {
            std::fs::write(&foreign, b"x").expect("write");
            directory.remove_if_empty();
            assert!(directory.seal().expect("read").is_some(), "{}", foreign.display());
            std::fs::remove_file(foreign).expect("remove");
        }
        directory.remove_if_empty();
        assert!(!directory.path.exists());
        directory.remove_if_empty();
    }

    #[test]
    fn what_is_no_link_is_no_record() {
        let store = tempfile::tempdir().expect("a directory");
        let directory = ImportDirectory::new(store.path(), NONCE);
        std::fs::create_dir_all(&directory.path).expect("create");
        std::fs::write(directory.path.join(WRITER), b"x").expect("write");
        symlink("no digits", directory.path.join(ROOT)).expect("link");
        assert_eq!(directory.writer().expect("foreign"), None);
        assert_eq!(directory.seal().expect_err("damaged").kind(), ErrorKind::InvalidData);
    }
}
