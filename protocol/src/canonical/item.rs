//! Heads of CBOR items in their canonical spelling, and the walk over the items of validated bytes.

use super::error::CanonicalError;

/// Kind of an item: the major types of RFC 8949 that canonical form has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ItemKind {
    Unsigned,
    /// The number `-1 - argument`.
    Negative,
    Bytes,
    Text,
    Array,
    Map,
    /// [`FALSE`], [`TRUE`] or [`NULL`].
    Simple,
}

/// Argument of the simple value `false`.
pub(super) const FALSE: u64 = 20;
/// Argument of the simple value `true`.
pub(super) const TRUE: u64 = 21;
/// Argument of the simple value `null`.
pub(super) const NULL: u64 = 22;

/// Head of an item: its kind and its argument, which is a number, or a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ItemHead {
    pub(super) kind: ItemKind,
    pub(super) argument: u64,
    /// Number of bytes of the head.
    pub(super) bytes: usize,
}

impl ItemHead {
    /// Reads the head of the item that begins at `at`, and rejects every spelling but the shortest.
    pub(super) fn read(input: &[u8], at: usize) -> Result<Self, CanonicalError> {
        let rest = input.get(at..).unwrap_or_default();
        let Some((first, rest)) = rest.split_first() else { return Err(truncated(at)) };
        let (major, short) = (first >> 5, first & 31);
        let kind = match major {
            0 => ItemKind::Unsigned,
            1 => ItemKind::Negative,
            2 => ItemKind::Bytes,
            3 => ItemKind::Text,
            4 => ItemKind::Array,
            5 => ItemKind::Map,
            6 => return Err(CanonicalError::Forbidden("tag")),
            _ => return simple(short, at),
        };
        let width = match short {
            0..=23 => return Ok(Self { kind, argument: u64::from(short), bytes: 1 }),
            24..=27 => 1_usize << (short - 24),
            // An indefinite length; numbers have none.
            31 if major >= 2 => return Err(CanonicalError::NotCanonical),
            _ => return Err(CanonicalError::Invalid(format!("byte {at} begins no item"))),
        };
        let argument = rest.get(..width).ok_or_else(|| truncated(at))?;
        let argument = argument.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let least = if width == 1 { 24 } else { 1 << (4 * width) };
        debug_assert!(width == 8 || argument >> (8 * width) == 0, "an argument has its width");
        if argument < least {
            return Err(CanonicalError::NotCanonical);
        }
        Ok(Self { kind, argument, bytes: 1 + width })
    }

    /// Returns the bytes of a text or byte string whose head is at `at`.
    pub(super) fn content<'a>(&self, input: &'a [u8], at: usize) -> Result<&'a [u8], CanonicalError> {
        debug_assert!(matches!(self.kind, ItemKind::Bytes | ItemKind::Text), "only strings have content");
        let length = usize::try_from(self.argument).map_err(|_| truncated(at))?;
        let content = input.get(at + self.bytes..).and_then(|rest| rest.get(..length));
        content.ok_or_else(|| truncated(at))
    }

    /// Returns the number of items directly inside this one.
    pub(super) fn children(&self) -> u64 {
        match self.kind {
            ItemKind::Array => self.argument,
            ItemKind::Map => self.argument.saturating_mul(2),
            _ => 0,
        }
    }
}

fn simple(argument: u8, at: usize) -> Result<ItemHead, CanonicalError> {
    match argument {
        20..=22 => Ok(ItemHead { kind: ItemKind::Simple, argument: u64::from(argument), bytes: 1 }),
        25..=27 => Err(CanonicalError::Forbidden("float")),
        23 => Err(CanonicalError::Forbidden("undefined value")),
        0..=19 | 24 => Err(CanonicalError::Forbidden("simple value")),
        _ => Err(CanonicalError::Invalid(format!("byte {at} begins no item"))),
    }
}

pub(super) fn truncated(at: usize) -> CanonicalError {
    CanonicalError::Invalid(format!("the item at byte {at} is not complete"))
}

/// Returns the end of the item that begins at `at`. The bytes must have passed [`super::form::check`], which
/// bounds the walk.
pub(super) fn end_of(input: &[u8], mut at: usize) -> Result<usize, CanonicalError> {
    debug_assert!(at < input.len(), "an item begins in the bytes");
    let mut left = 1_u64;
    while left > 0 {
        let head = ItemHead::read(input, at)?;
        let content = match head.kind {
            ItemKind::Bytes | ItemKind::Text => head.content(input, at)?.len(),
            _ => 0,
        };
        at += head.bytes + content;
        left = (left - 1).saturating_add(head.children());
    }
    Ok(at)
}
