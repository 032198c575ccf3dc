//! Reader of the header of a GGUF file (versions 2 and 3, little-endian): maps bytes of the file to tensors.
//!
//! The whole header is untrusted. Every count, length, size and offset has a limit, and a claimed number
//! alone never causes an allocation. Tensors must follow each other as the format specifies: aligned, without
//! overlap, with no more than padding between and after them. Values are skipped, not kept: their meaning
//! concerns only an engine.

use super::Flaw;
use crate::layout::{Extent, Rank};
use std::collections::BTreeSet;
use std::io::Read;

/// Largest header in bytes: vocabularies of half a million words and an embedded tokenizer stay far below.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Maximum number of keys; files have some dozens.
const KEYS_MAX: u64 = 65_536;
/// Maximum number of tensors; the largest mixtures of experts have some ten thousand.
const TENSORS_MAX: u64 = 262_144;
/// Longest key in bytes, as the format specifies.
const KEY_BYTES_MAX: u64 = 65_535;
/// Longest name of a tensor in bytes: the format specifies 64, and some converters need more.
const NAME_BYTES_MAX: u64 = 256;
/// Maximum number of dimensions, as the format specifies.
const DIMENSIONS_MAX: u32 = 4;
/// Deepest nesting of arrays; no known key nests at all.
const NESTING_MAX: u32 = 4;
/// Default alignment of the tensors' bytes.
const ALIGNMENT: u64 = 32;
/// Largest alignment in bytes: a huge page.
const ALIGNMENT_MAX: u64 = 2 * 1024 * 1024;
/// Key that overrides the default alignment.
const ALIGNMENT_KEY: &[u8] = b"general.alignment";

/// Types of values, by their numbers in the format.
const UINT32: u32 = 4;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Reads the header of a file of `length` bytes and returns the extents of the file. A extent includes the
/// padding after its tensor, so that together they cover the file.
pub(crate) fn extents(reader: impl Read, length: u64) -> Result<Vec<Extent>, Flaw> {
    let limit = length.min(HEADER_BYTES_MAX);
    let mut header = GgufHeader { reader, at: 0, limit };
    let (tensor_count, key_count) = header.beginning()?;
    let alignment = header.keys(key_count)?;
    let mut tensors = header.tensors(tensor_count, alignment)?;
    let data = header.at.next_multiple_of(alignment);
    if data > length && !tensors.is_empty() {
        return Err(damaged(format!("its data would begin at byte {data}, but the file has {length}")));
    }
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
    let mut extents = vec![Extent { range: 0..data.min(length), rank: Rank::FIRST }];
    let mut expected = 0;
    for tensor in &tensors {
        let Tensor { name, offset, bytes, .. } = tensor;
        if *offset != expected {
            return Err(damaged(format!(
                "tensor `{name}` begins at byte {offset} of the data, expected {expected}"
            )));
        }
        let end = offset.checked_add(*bytes).and_then(|end| data.checked_add(end));
        let Some(end) = end.filter(|end| *end <= length) else {
            return Err(damaged(format!(
                "tensor `{name}` of {bytes} bytes at byte {offset} of the data reaches over the end of the \
                 file"
            )));
        };
        // No overflow: `end` is within the file, and files are shorter than 2^63 bytes.
        expected = (end - data).next_multiple_of(alignment);
        extents.push(Extent { range: data + offset..end, rank: Rank::of_tensor(name) });
    }
    pad(&mut extents, length, alignment)?;
    Ok(extents)
}

/// Extends each extent to the next one, and the last to the end of the file.
fn pad(extents: &mut [Extent], length: u64, alignment: u64) -> Result<(), Flaw> {
    debug_assert!(alignment.is_power_of_two(), "an alignment of {alignment}");
    for index in 1..extents.len() {
        extents[index - 1].range.end = extents[index].range.start;
    }
    let Some(last) = extents.last_mut() else { return Ok(()) };
    let rest = length - last.range.end;
    if rest >= alignment {
        return Err(damaged(format!("{rest} bytes at its end belong to no tensor")));
    }
    last.range.end = length;
    Ok(())
}

struct Tensor {
    name: String,
    /// Bytes from the start of the data.
    offset: u64,
    bytes: u64,
}

/// A header being read; `at` never passes `limit`.
struct GgufHeader<R> {
    reader: R,
    at: u64,
    limit: u64,
}

impl<R: Read> GgufHeader<R> {
    /// Reads the magic bytes and the version; returns the numbers of tensors and keys.
    fn beginning(&mut self) -> Result<(u64, u64), Flaw> {
        if &self.bytes::<4>("the magic bytes")? != b"GGUF" {
            return Err(damaged("it does not begin with a GGUF header".into()));
        }
        match self.number("the version")? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 1..=3) => {
                return Err(unknown("a big-endian GGUF file; convert it to little-endian".into()));
            }
            version => return Err(unknown(format!("GGUF version {version}; versions 2 and 3 are read"))),
        }
        let (tensors, keys) = (self.long("the number of tensors")?, self.long("the number of keys")?);
        if tensors > TENSORS_MAX || keys > KEYS_MAX {
            return Err(damaged(format!("its header names {tensors} tensors and {keys} keys")));
        }
        Ok((tensors, keys))
    }

    /// Skips every key with its value; returns the alignment.
    fn keys(&mut self, count: u64) -> Result<u64, Flaw> {
        let mut alignment = ALIGNMENT;
        let mut seen = BTreeSet::new();
        for number in 0..count {
            let key = self.string(KEY_BYTES_MAX, || format!("the name of key {number}"))?;
            let shown = String::from_utf8_lossy(&key).escape_debug().to_string();
            if key.is_empty() || std::str::from_utf8(&key).is_err() {
                return Err(damaged(format!("key {number} `{shown}` is no name")));
            }
            let kind = self.number("the type of a value")?;
            if key == ALIGNMENT_KEY {
                if kind != UINT32 {
                    return Err(damaged(format!("`{shown}` has a value of type {kind}, expected {UINT32}")));
                }
                alignment = self.number("the alignment")?.into();
                if !alignment.is_power_of_two() || !(8..=ALIGNMENT_MAX).contains(&alignment) {
                    return Err(damaged(format!("`{shown}` is {alignment}, not a power of two from 8")));
                }
            } else {
                self.pass_value(kind, 0, &shown)?;
            }
            if !seen.insert(key) {
                return Err(damaged(format!("key `{shown}` appears twice")));
            }
        }
        Ok(alignment)
    }

    fn pass_value(&mut self, kind: u32, depth: u32, key: &str) -> Result<(), Flaw> {
        match kind {
            BOOL => self.boolean(key),
            STRING => self.pass_string(key),
            ARRAY => self.pass_array(depth, key),
            _ => match width(kind) {
                Some(width) => self.pass(width, || format!("the value of `{key}`")),
                None => Err(unknown(format!("key `{key}` has a value of unknown type {kind}"))),
            },
        }
    }

    fn boolean(&mut self, key: &str) -> Result<(), Flaw> {
        match self.bytes::<1>("a truth value")? {
            [0 | 1] => Ok(()),
            [other] => Err(damaged(format!("key `{key}` has {other} for a truth value"))),
        }
    }

    fn pass_string(&mut self, key: &str) -> Result<(), Flaw> {
        let length = self.long("the length of a text")?;
        self.pass(length, || format!("a text of `{key}`"))
    }

    fn pass_array(&mut self, depth: u32, key: &str) -> Result<(), Flaw> {
        if depth == NESTING_MAX {
            return Err(damaged(format!("key `{key}` nests arrays deeper than {NESTING_MAX}")));
        }
        let kind = self.number("the type of an array")?;
        let count = self.long("the length of an array")?;
        if let (Some(width), true) = (width(kind), kind != BOOL) {
            let bytes = count.saturating_mul(width);
            return self.pass(bytes, || format!("{count} values of `{key}`"));
        }
        // Each value takes at least a byte, so the rest of the header bounds this loop.
        for _ in 0..count {
            self.pass_value(kind, depth + 1, key)?;
        }
        Ok(())
    }

    fn tensors(&mut self, count: u64, alignment: u64) -> Result<Vec<Tensor>, Flaw> {
        let mut tensors = Vec::new();
        let mut seen = BTreeSet::new();
        for number in 0..count {
            let tensor = self.tensor(number)?;
            if !tensor.offset.is_multiple_of(alignment) {
                let Tensor { name, offset, .. } = tensor;
                let text = format!("tensor `{name}` begins at byte {offset} of the data, unaligned");
                return Err(damaged(text));
            }
            if !seen.insert(tensor.name.clone()) {
                return Err(damaged(format!("tensor `{}` appears twice", tensor.name)));
            }
            tensors.push(tensor);
        }
        Ok(tensors)
    }

    fn tensor(&mut self, number: u64) -> Result<Tensor, Flaw> {
        let name = self.string(NAME_BYTES_MAX, || format!("the name of tensor {number}"))?;
        let name = String::from_utf8(name).ok().filter(|name| !name.contains(char::is_control));
        let name = name.ok_or_else(|| damaged(format!("the name of tensor {number} is no text")))?;
        let dimensions = self.number("a number of dimensions")?;
        if dimensions > DIMENSIONS_MAX {
            return Err(damaged(format!("tensor `{name}` has {dimensions} dimensions")));
        }
        let mut shape = [1_u64; DIMENSIONS_MAX as usize];
        for length in &mut shape[..dimensions as usize] {
            *length = self.long("a dimension")?;
        }
        let kind = self.number("the type of a tensor")?;
        let Some((block, block_bytes)) = block(kind) else {
            return Err(unknown(format!("tensor `{name}` is of unknown type {kind}")));
        };
        // A row consists of whole blocks, and so does the tensor.
        if !shape[0].is_multiple_of(block) {
            let text = format!("tensor `{name}` has rows of {}, not of whole blocks of {block}", shape[0]);
            return Err(damaged(text));
        }
        let bytes = shape.iter().try_fold(1_u64, |product, length| product.checked_mul(*length));
        let bytes = bytes.and_then(|elements| (elements / block).checked_mul(block_bytes));
        let bytes = bytes.ok_or_else(|| damaged(format!("tensor `{name}` is larger than all memory")))?;
        Ok(Tensor { name, bytes, offset: self.long("the offset of a tensor")? })
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Flaw> {
        self.take(N as u64, || what.into())?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(Flaw::Unreadable)?;
        Ok(bytes)
    }

    fn number(&mut self, what: &str) -> Result<u32, Flaw> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn long(&mut self, what: &str) -> Result<u64, Flaw> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    /// Reads a text of at most `longest` bytes.
    fn string(&mut self, longest: u64, what: impl Fn() -> String) -> Result<Vec<u8>, Flaw> {
        let length = self.long("the length of a name")?;
        if length > longest {
            return Err(damaged(format!("{} has {length} bytes", what())));
        }
        self.take(length, what)?;
        let mut bytes = vec![0; length as usize];
        self.reader.read_exact(&mut bytes).map_err(Flaw::Unreadable)?;
        Ok(bytes)
    }

    fn pass(&mut self, length: u64, what: impl Fn() -> String) -> Result<(), Flaw> {
        self.take(length, what)?;
        let passed = std::io::copy(&mut self.reader.by_ref().take(length), &mut std::io::sink());
        match passed.map_err(Flaw::Unreadable)? {
            passed if passed == length => Ok(()),
            _ => Err(Flaw::Unreadable(std::io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Advances by bytes that are about to be read, unless they pass the limit.
    fn take(&mut self, length: u64, what: impl Fn() -> String) -> Result<(), Flaw> {
        match self.at.checked_add(length).filter(|end| *end <= self.limit) {
            Some(end) => {
                self.at = end;
                Ok(())
            }
            None => Err(damaged(format!(
                "its header ends at byte {} in the middle of {}: it is truncated or inconsistent",
                self.limit,
                what()
            ))),
        }
    }
}

fn damaged(reason: String) -> Flaw {
    Flaw::Damaged(reason)
}

fn unknown(reason: String) -> Flaw {
    Flaw::Unknown(reason)
}

/// Returns the bytes of a value of this type, if the type has a fixed size.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Returns the elements and bytes of a block of a tensor type, by its number in ggml. Numbers that ggml
/// withdrew (4, 5, 31 to 33, 36 to 38) are unknown.
fn block(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 | 26 => (1, 4),      // f32, i32
        1 | 25 | 30 => (1, 2), // f16, i16, bf16
        24 => (1, 1),          // i8
        27 | 28 => (1, 8),     // i64, f64
        2 | 20 => (32, 18),    // q4_0, iq4_nl
        3 => (32, 20),         // q4_1
        6 => (32, 22),         // q5_0
        7 => (32, 24),         // q5_1
        8 => (32, 34),         // q8_0
        9 => (32, 40),         // q8_1
        39 => (32, 17),        // mxfp4
        40 => (64, 36),        // nvfp4
        42 => (64, 18),        // q2_0
        41 => (128, 18),       // q1_0
        10 => (256, 84),       // q2_k
        11 | 21 => (256, 110), // q3_k, iq3_s
        12 => (256, 144),      // q4_k
        13 => (256, 176),      // q5_k
        14 => (256, 210),      // q6_k
        15 => (256, 292),      // q8_k
        16 | 35 => (256, 66),  // iq2_xxs, tq2_0
        17 => (256, 74),       // iq2_xs
        18 => (256, 98),       // iq3_xxs
        19 => (256, 50),       // iq1_s
        22 => (256, 82),       // iq2_s
        23 => (256, 136),      // iq4_xs
        29 => (256, 56),       // iq1_m
        34 => (256, 54),       // tq1_0
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
