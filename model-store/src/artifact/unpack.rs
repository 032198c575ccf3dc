//! Unpacking of an artifact into a directory, and the comparison of a directory with its index.
//!
//! Both work in the order of the index, in which a directory precedes its content. The unpacker writes into a
//! fresh directory and creates every directory itself, so no path leads through a link.

use super::ArtifactError;
use super::error::unreadable;
use super::packed::read_index;
use protocol::artifact::{ArtifactEntry, ArtifactIndex, EntryKind};
use protocol::{ArtifactRoot, Digest};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

/// Modes of directories and executable files, and of other files. The program's user is not the owner.
const EXECUTABLE: u32 = 0o755;
const PLAIN: u32 = 0o644;
/// Size of the buffer through which contents pass, in bytes.
const COPY_BYTES: usize = 256 * 1024;

/// First difference between a directory and an artifact.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` {what}", path.escape_debug())]
pub struct TreeFault {
    /// Path inside the tree.
    pub path: String,
    /// The difference.
    pub what: &'static str,
}

/// Unpacks a packed file into `to`, which must not exist, and returns its index.
///
/// # Errors
/// [`ArtifactError::Invalid`] if the file is not the artifact of this root; [`ArtifactError::Unreadable`]. A
/// part of the tree may be left in `to`.
pub(crate) fn unpack(packed: &File, root: ArtifactRoot, to: &Path) -> Result<ArtifactIndex, ArtifactError> {
    let (index, contents) = read_index(packed)?;
    if index.root() != root {
        let reason = format!("its root is {}, not {}", index.root().short(), root.short());
        return Err(ArtifactError::Invalid { reason });
    }
    make_directory(to)?;
    let (mut at, mut buffer) = (contents, vec![0; COPY_BYTES]);
    for ArtifactEntry { path, kind } in &index.entries {
        let place = to.join(path);
        match kind {
            EntryKind::Directory => make_directory(&place)?,
            EntryKind::Link { target } => symlink(target, &place).map_err(unreadable(&place))?,
            EntryKind::File { executable, length, digest } => {
                let mode = if *executable { EXECUTABLE } else { PLAIN };
                let written = write_file(packed, at, *length, mode, &place, &mut buffer)?;
                if written != *digest {
                    let reason = format!("`{}` has another digest than its index names", path.escape_debug());
                    return Err(ArtifactError::Invalid { reason });
                }
                at += length;
            }
        }
    }
    Ok(index)
}

/// Unpacks a packed file of data into `to`, which must not exist.
///
/// # Errors
/// [`ArtifactError::Invalid`] if the file is not the data of this root, or is a program, whose links may be
/// absolute: nothing is written then; [`ArtifactError::Unreadable`].
pub fn unpack_data(packed: &File, root: ArtifactRoot, to: &Path) -> Result<(), ArtifactError> {
    let (index, _) = read_index(packed)?;
    if index.start.is_some() {
        return Err(ArtifactError::Invalid { reason: "it is a program, and data was expected".into() });
    }
    unpack(packed, root, to).map(drop)
}

fn make_directory(path: &Path) -> Result<(), ArtifactError> {
    DirBuilder::new().mode(EXECUTABLE).create(path).map_err(unreadable(path))?;
    // The mask of this process may have removed bits.
    fs::set_permissions(path, Permissions::from_mode(EXECUTABLE)).map_err(unreadable(path))
}

/// Writes a file from a range of another, and returns the digest of what was written.
fn write_file(
    packed: &File,
    mut at: u64,
    length: u64,
    mode: u32,
    place: &Path,
    buffer: &mut [u8],
) -> Result<Digest, ArtifactError> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(place).map_err(unreadable(place))?;
    let (end, mut digest) = (at + length, blake3::Hasher::new());
    while at < end {
        let most = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let part = &mut buffer[..most];
        packed.read_exact_at(part, at).map_err(unreadable(Path::new("packed artifact")))?;
        digest.update(part);
        file.write_all(part).map_err(unreadable(place))?;
        at += most as u64;
    }
    file.set_permissions(Permissions::from_mode(mode)).map_err(unreadable(place))?;
    Ok(Digest(*digest.finalize().as_bytes()))
}

/// Compares a directory with an index, reading back every byte. Returns the first difference: an entry that
/// is missing, of another kind, mode, length, content or target, or one that the index does not have.
pub(super) fn compare(directory: &Path, index: &ArtifactIndex) -> Result<(), TreeFault> {
    let mut buffer = vec![0; COPY_BYTES];
    for ArtifactEntry { path, kind } in &index.entries {
        let fault = |what| TreeFault { path: path.clone(), what };
        let place = directory.join(path);
        let metadata = fs::symlink_metadata(&place).map_err(|_| fault("is missing"))?;
        let has_mode = |mode: u32| metadata.mode() & 0o7777 == mode;
        match kind {
            EntryKind::Directory if !metadata.is_dir() => return Err(fault("is no directory")),
            EntryKind::Directory if !has_mode(EXECUTABLE) => return Err(fault("has another mode")),
            EntryKind::Directory => {}
            EntryKind::Link { target } => {
                let found = fs::read_link(&place).map_err(|_| fault("is no link"))?;
                if found.as_os_str().as_encoded_bytes() != target.as_bytes() {
                    return Err(fault("leads elsewhere"));
                }
            }
            EntryKind::File { .. } if !metadata.is_file() => return Err(fault("is no file")),
            EntryKind::File { executable, length, digest } => {
                if !has_mode(if *executable { EXECUTABLE } else { PLAIN }) {
                    return Err(fault("has another mode"));
                }
                if metadata.len() != *length {
                    return Err(fault("has another length"));
                }
                let read = digest_of(&place, &mut buffer).map_err(|_| fault("cannot be read"))?;
                if read != *digest {
                    return Err(fault("has other bytes"));
                }
            }
        }
    }
    no_others(directory, "", index)
}

/// Returns the first entry below a directory that the index does not have.
fn no_others(root: &Path, below: &str, index: &ArtifactIndex) -> Result<(), TreeFault> {
    let fault = |path: String, what| TreeFault { path, what };
    let unread = |_| fault(below.into(), "cannot be read");
    for entry in fs::read_dir(root.join(below)).map_err(unread)? {
        let entry = entry.map_err(unread)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        let known = index.entries.binary_search_by(|known| known.path.as_str().cmp(&path));
        let Ok(known) = known else { return Err(fault(path, "is not in the artifact")) };
        // The depth of an index is limited, and with it this recursion.
        if index.entries[known].kind == EntryKind::Directory {
            no_others(root, &path, index)?;
        }
    }
    Ok(())
}

fn digest_of(path: &Path, buffer: &mut [u8]) -> io::Result<Digest> {
    let (mut file, mut digest) = (File::open(path)?, blake3::Hasher::new());
    loop {
        match file.read(buffer)? {
            0 => return Ok(Digest(*digest.finalize().as_bytes())),
            read => {
                digest.update(&buffer[..read]);
            }
        }
    }
}
