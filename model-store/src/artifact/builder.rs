//! Builder of packed artifacts: a tree in memory, the contents of its files in a spool beside the result.

use super::error::{InputFailure, unreadable};
use super::packed::write_packed;
use super::tree::{EntryContent, FileTree, SpooledFile, check_path};
use super::{ArtifactError, ArtifactLimits, ImageStart, image};
use protocol::artifact::{ArtifactIndex, ArtifactStart};
use protocol::{ArtifactRoot, Digest};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Size of the buffer through which contents pass, in bytes.
const COPY_BYTES: usize = 256 * 1024;

/// File of the contents of a tree, in the order in which they came.
#[derive(Debug)]
pub(super) struct Spool {
    path: PathBuf,
    file: BufWriter<File>,
    /// Bytes written.
    end: u64,
    buffer: Vec<u8>,
}

impl Spool {
    fn create(path: PathBuf) -> Result<Self, ArtifactError> {
        let open = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = open.map_err(unreadable(&path))?;
        let file = BufWriter::with_capacity(COPY_BYTES, file);
        Ok(Self { path, file, end: 0, buffer: vec![0; COPY_BYTES] })
    }

    /// Appends a file of `length` bytes.
    pub(super) fn add(
        &mut self,
        input: &mut impl Read,
        length: u64,
        executable: bool,
    ) -> Result<SpooledFile, InputFailure> {
        let (at, mut left) = (self.end, length);
        let mut digest = blake3::Hasher::new();
        while left > 0 {
            let most = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = match input.read(&mut self.buffer[..most]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            digest.update(&self.buffer[..read]);
            self.file.write_all(&self.buffer[..read]).map_err(unreadable(&self.path))?;
            (left, self.end) = (left - read as u64, self.end + read as u64);
        }
        Ok(SpooledFile { executable, length, digest: Digest(*digest.finalize().as_bytes()), at })
    }

    /// Returns the file, with every byte written, and its path.
    pub(super) fn finish(self) -> Result<(File, PathBuf), ArtifactError> {
        let file = self.file.into_inner().map_err(|error| unreadable(&self.path)(error.into_error()))?;
        Ok((file, self.path))
    }
}

/// A packed artifact on this machine.
#[derive(Debug)]
pub struct PackedArtifact {
    /// The packed file.
    pub path: PathBuf,
    /// Root of the artifact.
    pub root: ArtifactRoot,
    /// Its index.
    pub index: ArtifactIndex,
}

/// Builder of an artifact. Its working directory is the caller's to remove.
#[derive(Debug)]
pub struct ArtifactBuilder {
    tree: FileTree,
    spool: Spool,
    work: PathBuf,
    limits: ArtifactLimits,
}

impl ArtifactBuilder {
    /// Starts an empty artifact; contents are kept in `work`, an empty directory with space for the tree
    /// twice.
    ///
    /// # Errors
    /// [`ArtifactError::Unreadable`].
    pub fn new(work: &Path, limits: ArtifactLimits) -> Result<Self, ArtifactError> {
        let spool = Spool::create(work.join("spool"))?;
        Ok(Self { tree: FileTree::new(limits), spool, work: work.to_path_buf(), limits })
    }

    /// Adds a directory, and those above it.
    ///
    /// # Errors
    /// [`ArtifactError::Path`], [`ArtifactError::TooLarge`].
    pub fn add_directory(&mut self, path: &str) -> Result<(), ArtifactError> {
        self.tree.add(path, EntryContent::Directory)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// [`ArtifactError::Path`], [`ArtifactError::Link`], [`ArtifactError::TooLarge`].
    pub fn add_link(&mut self, path: &str, target: &str) -> Result<(), ArtifactError> {
        self.tree.add(path, EntryContent::Link(target.into()))
    }

    /// Adds a file with everything that `input` returns; `shown` names the input in errors.
    ///
    /// # Errors
    /// [`ArtifactError::Path`], [`ArtifactError::TooLarge`], [`ArtifactError::Unreadable`].
    pub fn add_file(
        &mut self,
        path: &str,
        executable: bool,
        mut input: impl Read,
        length: u64,
        shown: &Path,
    ) -> Result<(), ArtifactError> {
        check_path(path)?;
        let file = self.spool.add(&mut input, length, executable).map_err(|failure| match failure {
            InputFailure::Refused(error) => error,
            InputFailure::Unread(error) => unreadable(shown)(error),
        })?;
        self.tree.add(path, EntryContent::File(file))
    }

    /// Adds the layers of an image, an archive by `docker save` or of an OCI layout, and returns how the
    /// image starts. `architecture` chooses one of several images; by default, this machine's.
    ///
    /// # Errors
    /// See [`ArtifactError`]. A builder whose image was refused holds a part of it, and must be dropped.
    pub fn add_image(
        &mut self,
        image: &Path,
        architecture: Option<&str>,
    ) -> Result<ImageStart, ArtifactError> {
        image::read(image, architecture, &mut self.tree, &mut self.spool, &self.limits)
    }

    /// Packs the tree. The working directory is created in the tree if it is missing there, as container
    /// engines do.
    ///
    /// # Errors
    /// [`ArtifactError::EntryPoint`] without an entry point in the tree, [`ArtifactError::Path`] for a
    /// working directory that is none, [`ArtifactError::TooLarge`], [`ArtifactError::Unreadable`].
    pub fn pack(mut self, start: ArtifactStart) -> Result<PackedArtifact, ArtifactError> {
        let Some(program) = start.command.first() else {
            let reason = "no entry point: the image names none, and none is given";
            return Err(ArtifactError::EntryPoint { reason: reason.into() });
        };
        let directory = start.working_directory.trim_matches('/');
        if !directory.is_empty() {
            self.tree.ensure_directory(directory)?;
        }
        if !self.tree.has_program(&start) {
            let reason = format!("the tree has no executable file for the entry point `{program}`");
            return Err(ArtifactError::EntryPoint { reason });
        }
        self.finish(Some(start))
    }

    /// Returns whether the tree has no entry.
    pub(super) fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// Refuses a file of this length before any byte of it is copied, if the tree has no room for it.
    pub(super) fn check_room(&self, path: &str, length: u64) -> Result<(), ArtifactError> {
        if self.spool.end.saturating_add(length) > self.limits.bytes {
            let reason = format!("more than {} bytes, at `{}`", self.limits.bytes, path.escape_debug());
            return Err(ArtifactError::TooLarge { reason });
        }
        Ok(())
    }

    /// Packs the tree as it is.
    pub(super) fn finish(self, start: Option<ArtifactStart>) -> Result<PackedArtifact, ArtifactError> {
        let (entries, sources): (Vec<_>, Vec<_>) = self.tree.into_entries().unzip();
        let index = ArtifactIndex { version: 1, start, entries };
        index.check().map_err(|error| ArtifactError::Invalid { reason: error.to_string() })?;
        let (spool, spooled_at) = self.spool.finish()?;
        let path = self.work.join("artifact");
        write_packed(&path, &index, &sources, &spool, &spooled_at)?;
        // The caller removes the directory; the spool takes as much space as the artifact.
        let _ = std::fs::remove_file(&spooled_at);
        Ok(PackedArtifact { path, root: index.root(), index })
    }
}
