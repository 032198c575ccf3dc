//! Packed file of an artifact: a header, the index in canonical form, and the contents of all files in the
//! order of the index, without gaps.
//!
//! ```text
//! 0       16                24      24 + n
//! | magic | n, little-endian | index | file 0 | file 1 | ...
//! ```

use super::ArtifactError;
use super::error::unreadable;
use protocol::artifact::{
    ARTIFACT_HEADER_BYTES, ARTIFACT_INDEX_BYTES_MAX, ARTIFACT_MAGIC, ArtifactIndex, EntryKind,
};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Size of the buffer through which contents pass, in bytes.
const COPY_BYTES: usize = 256 * 1024;

/// Writes a packed file. `sources` has the first byte of each entry in the spool.
pub(super) fn write_packed(
    path: &Path,
    index: &ArtifactIndex,
    sources: &[u64],
    spool: &File,
    spooled_at: &Path,
) -> Result<(), ArtifactError> {
    debug_assert_eq!(index.entries.len(), sources.len(), "each entry has its source");
    let bytes = protocol::canonical::to_bytes(index);
    if bytes.len() > ARTIFACT_INDEX_BYTES_MAX {
        return Err(ArtifactError::TooLarge { reason: format!("an index of {} bytes", bytes.len()) });
    }
    let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(unreadable(path))?;
    let mut file = BufWriter::with_capacity(COPY_BYTES, file);
    let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(unreadable(path));
    write(&ARTIFACT_MAGIC)?;
    write(&(bytes.len() as u64).to_le_bytes())?;
    write(&bytes)?;
    let mut buffer = vec![0; COPY_BYTES];
    for (entry, source) in index.entries.iter().zip(sources) {
        let EntryKind::File { length, .. } = entry.kind else { continue };
        let (mut at, end) = (*source, source + length);
        while at < end {
            let most = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            spool.read_exact_at(&mut buffer[..most], at).map_err(unreadable(spooled_at))?;
            write(&buffer[..most])?;
            at += most as u64;
        }
    }
    file.flush().map_err(unreadable(path))
}

/// Returns whether a file begins as a packed artifact does.
pub(crate) fn is_packed(file: &File) -> bool {
    let mut magic = [0; ARTIFACT_MAGIC.len()];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == ARTIFACT_MAGIC
}

/// Returns the checked index of a packed file, and the offset of the first content. The contents are as long
/// as the index says; their digests are not compared here.
pub(crate) fn read_index(file: &File) -> Result<(ArtifactIndex, u64), ArtifactError> {
    let invalid = |reason: String| ArtifactError::Invalid { reason };
    let read = |error: io::Error| match error.kind() {
        ErrorKind::UnexpectedEof => invalid("it ends early".into()),
        _ => unreadable(Path::new("packed artifact"))(error),
    };
    let mut header = [0; ARTIFACT_HEADER_BYTES as usize];
    file.read_exact_at(&mut header, 0).map_err(read)?;
    let (magic, length) = header.split_at(ARTIFACT_MAGIC.len());
    if magic != ARTIFACT_MAGIC {
        return Err(invalid("it does not begin as an artifact does".into()));
    }
    let length = u64::from_le_bytes(length.try_into().expect("the header has 8 bytes more"));
    if length > ARTIFACT_INDEX_BYTES_MAX as u64 {
        return Err(invalid(format!("its index has {length} bytes")));
    }
    let file_length = file.metadata().map_err(read)?.len();
    if ARTIFACT_HEADER_BYTES + length > file_length {
        return Err(invalid("it ends early".into()));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, ARTIFACT_HEADER_BYTES).map_err(read)?;
    let index: ArtifactIndex = protocol::canonical::from_bytes(&bytes, ARTIFACT_INDEX_BYTES_MAX)
        .map_err(|error| invalid(format!("its index: {error}")))?;
    index.check().map_err(|error| invalid(format!("its index: {error}")))?;
    let contents = ARTIFACT_HEADER_BYTES + length;
    if contents + index.file_bytes() != file_length {
        let expected = contents + index.file_bytes();
        return Err(invalid(format!("it has {file_length} bytes, and its index names {expected}")));
    }
    Ok((index, contents))
}
