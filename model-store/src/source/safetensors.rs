//! Reader of the header of a safetensors file: maps bytes of the file to tensors. The tensors must cover the
//! rest of the file exactly once, each with the bytes that its shape and type need.

use super::Flaw;
use crate::layout::{Extent, Rank};
use safetensors::tensor::{Metadata, TensorInfo};
use std::io::Read;

/// Largest header in bytes; the format's own limit.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Reads the header of a file of `length` bytes. Returns it with the offset of the first byte behind it.
pub(crate) fn header(mut reader: impl Read, length: u64) -> Result<(Metadata, u64), Flaw> {
    if length < 8 {
        return Err(damaged(format!("it has {length} bytes, fewer than the length of its header")));
    }
    let mut size = [0; 8];
    reader.read_exact(&mut size).map_err(Flaw::Unreadable)?;
    let header_end = u64::from_le_bytes(size).checked_add(8);
    let Some(header_end) = header_end.filter(|end| *end <= length && *end <= HEADER_BYTES_MAX) else {
        return Err(damaged("its header reaches over the end of the file".into()));
    };
    let mut text = vec![0; header_end as usize - 8];
    reader.read_exact(&mut text).map_err(Flaw::Unreadable)?;
    let header: Metadata =
        serde_json::from_slice(&text).map_err(|error| damaged(format!("its header: {error}")))?;
    Ok((header, header_end))
}

/// Reads the header of a file of `length` bytes and returns the extents of the file.
pub(crate) fn extents(reader: impl Read, length: u64) -> Result<Vec<Extent>, Flaw> {
    let (header, header_end) = header(reader, length)?;
    let mut extents = vec![Extent { range: 0..header_end, rank: Rank::FIRST }];
    let mut tensors: Vec<_> = header.tensors().into_iter().collect();
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = header_end;
    for (name, info) in tensors {
        let position = |offset: usize| header_end.checked_add(offset as u64);
        let (Some(from), Some(to)) = (position(info.data_offsets.0), position(info.data_offsets.1)) else {
            return Err(damaged(format!("tensor `{name}` is beyond the end of any file")));
        };
        if from != end || to < from {
            return Err(damaged(format!("tensor `{name}` begins at byte {from}, expected {end}")));
        }
        if to > length {
            return Err(damaged(format!(
                "tensor `{name}` ends at byte {to}, but the file has {length}: it is truncated"
            )));
        }
        if bits(info) != (to - from).checked_mul(8) {
            return Err(damaged(format!(
                "tensor `{name}` has {} bytes, not the number that its shape needs",
                to - from
            )));
        }
        extents.push(Extent { range: from..to, rank: Rank::of_tensor(&name) });
        end = to;
    }
    if end != length {
        return Err(damaged(format!("{} bytes at its end belong to no tensor", length - end)));
    }
    Ok(extents)
}

fn damaged(reason: String) -> Flaw {
    Flaw::Damaged(reason)
}

/// Returns the bits that a tensor's shape and type need; `None` on overflow.
fn bits(info: &TensorInfo) -> Option<u64> {
    let dimensions = info.shape.iter().map(|length| *length as u64);
    dimensions.chain([info.dtype.bitsize() as u64]).try_fold(1_u64, u64::checked_mul)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a file with this header and this many bytes of tensors.
    fn file(header: &str, bytes: usize) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![7; bytes]].concat()
    }

    fn read(file: &[u8]) -> Result<Vec<Extent>, Flaw> {
        extents(file, file.len() as u64)
    }

    #[test]
    fn extents_cover_the_file_once_in_order() {
        let a = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
        let b = r#""b":{"dtype":"F16","shape":[3],"data_offsets":[8,14]}"#;
        let header = format!("{{{b},{a}}}");
        let file = file(&header, 14);
        let found = read(&file).expect("a sound file");
        let begins = 8 + header.len() as u64;
        let ranges: Vec<_> = found.iter().map(|extent| extent.range.clone()).collect();
        assert_eq!(ranges, [0..begins, begins..begins + 8, begins + 8..begins + 14]);
    }

    #[test]
    fn a_length_that_lies_is_refused_before_memory_is_taken() {
        for length in [u64::MAX, u64::MAX - 7, HEADER_BYTES_MAX, 1 << 40] {
            let lie = [&length.to_le_bytes()[..], b"{}"].concat();
            assert!(matches!(read(&lie), Err(Flaw::Damaged(_))), "{length}");
        }
        assert!(matches!(read(b"short"), Err(Flaw::Damaged(_))));
    }

    #[test]
    fn a_file_that_ends_early_is_unreadable_or_damaged_and_never_read_on() {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let whole = file(header, 8);
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
        }
        // Positive control: the whole file is sound.
        assert_eq!(read(&whole).map(|extents| extents.len()).ok(), Some(2));
    }
}
