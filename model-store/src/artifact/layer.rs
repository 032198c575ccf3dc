//! One layer of an image: a tar archive, plain or compressed with gzip, applied to a tree.
//!
//! A layer is named by two digests: of its bytes as they are stored, and of the unpacked archive. Both are
//! compared after the layer was read to its end. A layer that does not match spoils only the tree and the
//! spool of this build.

use super::builder::Spool;
use super::error::{Excess, InputFailure};
use super::tar::{TarEntry, TarKind, TarReader};
use super::tree::{EntryContent, FileTree, check_path};
use super::{ArtifactError, ArtifactLimits};
use aws_lc_rs::digest::{Context, SHA256};
use flate2::bufread::MultiGzDecoder;
use std::io::{self, BufRead, BufReader, Read};

/// Size of the buffer between a layer and its decompressor, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;
/// Prefix of the name of a whiteout, and the name that marks an opaque directory (OCI image layers).
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// Digests and length that an image states of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExpectedLayer {
    /// Name of the layer's member in the archive.
    pub(super) member: String,
    /// Digest of the stored bytes, as `sha256:HEX`; `docker save` states none.
    pub(super) digest: Option<String>,
    /// Length of the stored bytes; `docker save` states none.
    pub(super) length: Option<u64>,
    /// Digest of the unpacked archive, as `sha256:HEX`.
    pub(super) diff_id: String,
}

/// Budget of all layers of an image.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerBudget {
    /// Number of entries.
    entries: usize,
    /// Number of bytes, unpacked.
    bytes: u64,
}

impl LayerBudget {
    pub(super) fn new(limits: &ArtifactLimits) -> Self {
        Self { entries: limits.layer_entries, bytes: limits.layer_bytes }
    }
}

/// A reader that counts and digests what passes, and ends with an error beyond its limit.
struct DigestedReader<R> {
    input: R,
    digest: Context,
    bytes: u64,
    limit: u64,
}

impl<R: Read> DigestedReader<R> {
    fn new(input: R, limit: u64) -> Self {
        Self { input, digest: Context::new(&SHA256), bytes: 0, limit }
    }

    /// Reads the rest, and returns the length and the digest of all bytes.
    fn finish(mut self) -> io::Result<(u64, String)> {
        io::copy(&mut self, &mut io::sink())?;
        let digest = self.digest.finish();
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((self.bytes, format!("sha256:{hex}")))
    }
}

impl<R: Read> Read for DigestedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.digest.update(&buffer[..read]);
        self.bytes += read as u64;
        if self.bytes > self.limit { Err(io::Error::other(Excess)) } else { Ok(read) }
    }
}

/// Applies a layer to the tree, and its files to the spool.
pub(super) fn apply(
    input: impl Read,
    expected: &ExpectedLayer,
    tree: &mut FileTree,
    spool: &mut Spool,
    budget: &mut LayerBudget,
) -> Result<(), InputFailure> {
    tree.begin_layer();
    let mut stored = DigestedReader::new(input, u64::MAX);
    let mut unpacked = DigestedReader::new(decompressed(&mut stored)?, budget.bytes);
    apply_entries(&mut TarReader::new(&mut unpacked), tree, spool, &mut budget.entries)?;
    let (bytes, diff_id) = unpacked.finish()?;
    budget.bytes -= bytes;
    let (length, digest) = stored.finish()?;
    let wrong = |what: &str| -> Result<(), InputFailure> {
        Err(io::Error::new(io::ErrorKind::InvalidData, what).into())
    };
    if expected.length.is_some_and(|expected| expected != length) {
        return wrong("its length is another than the image states");
    }
    if expected.digest.as_ref().is_some_and(|expected| *expected != digest) {
        return wrong("its bytes have another digest than the image states");
    }
    if expected.diff_id != diff_id {
        return wrong("its unpacked bytes have another digest than the image states");
    }
    Ok(())
}

/// Returns a reader of the unpacked archive, by the first bytes of the stored one.
fn decompressed<'a>(stored: &'a mut (impl Read + 'a)) -> io::Result<Box<dyn Read + 'a>> {
    let mut stored = BufReader::with_capacity(BUFFER_BYTES, stored);
    let head = stored.fill_buf()?;
    let (is_gzip, is_zstd) = (head.starts_with(&[0x1f, 0x8b]), head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]));
    if is_zstd {
        let reason = "it is compressed with zstd, which this release does not read; save it with gzip";
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    let unpacked: Box<dyn Read + 'a> =
        if is_gzip { Box::new(MultiGzDecoder::new(stored)) } else { Box::new(stored) };
    Ok(unpacked)
}

fn apply_entries<R: Read>(
    archive: &mut TarReader<R>,
    tree: &mut FileTree,
    spool: &mut Spool,
    entries_left: &mut usize,
) -> Result<(), InputFailure> {
    while let Some(entry) = archive.next_entry()? {
        let excess = || ArtifactError::TooLarge { reason: "the layers have too many entries".into() };
        *entries_left = entries_left.checked_sub(1).ok_or_else(excess)?;
        apply_entry(archive, &entry, tree, spool)?;
    }
    Ok(())
}

fn apply_entry<R: Read>(
    archive: &mut TarReader<R>,
    entry: &TarEntry,
    tree: &mut FileTree,
    spool: &mut Spool,
) -> Result<(), InputFailure> {
    let path = plain(&entry.path);
    if path.is_empty() && entry.kind == TarKind::Directory {
        return Ok(());
    }
    check_path(path)?;
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    if name == OPAQUE {
        tree.clear_directory(parent);
        return Ok(());
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        if matches!(hidden, "" | "." | "..") {
            let reason = "a whiteout names no entry";
            return Err(ArtifactError::Path { path: path.into(), reason }.into());
        }
        // Other names that begin twice with the prefix are notes of an old storage driver.
        if !hidden.starts_with(WHITEOUT) {
            tree.whiteout(&format!("{}{hidden}", path.strip_suffix(name).unwrap_or_default()));
        }
        return Ok(());
    }
    match &entry.kind {
        TarKind::Directory => tree.add(path, EntryContent::Directory)?,
        TarKind::Symlink(target) => tree.add(path, EntryContent::Link(target.clone()))?,
        TarKind::HardLink(target) => tree.add_hard_link(path, plain(target))?,
        TarKind::Device(kind) => {
            let (path, kind) = (path.into(), *kind);
            return Err(ArtifactError::Device { path, kind }.into());
        }
        TarKind::File => {
            let file = spool.add(archive, entry.length, entry.executable)?;
            tree.add(path, EntryContent::File(file))?;
        }
    }
    Ok(())
}

/// Returns a path without the `./` that archivers put before it, and without a slash at its end.
fn plain(path: &str) -> &str {
    let mut plain = path;
    while let Some(rest) = plain.strip_prefix("./") {
        plain = rest;
    }
    let plain = plain.trim_end_matches('/');
    if plain == "." { "" } else { plain }
}
