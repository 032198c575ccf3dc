//! Deserializer over validated canonical bytes, with a bound on the memory that it lets a type take.
//!
//! Values of one byte may become values of many: an empty text is 24 bytes in a list. The reader therefore
//! charges a [`MemoryBudget`] with the size of every item of a list or map, and of every text, before the
//! type's own code allocates for it. An estimate is never too low for `Vec`, `VecDeque`, `String` and the
//! B-tree collections, which are all that protocol types consist of.

use super::error::CanonicalError;
use super::item::{FALSE, ItemHead, ItemKind, NULL, TRUE, end_of};
use serde::de::{self, DeserializeOwned, DeserializeSeed, Visitor};
use std::fmt::{self, Write};

/// Memory that any message may take in bytes. Decoding never waits, so at most one message per processor core
/// takes it at a time.
pub const MEMORY_BYTES_MIN: usize = 1 << 20;
/// Largest number of bytes that serde reserves for a list before it reads the first item.
const RESERVED_BYTES_MAX: usize = 1 << 20;
/// Bytes that an allocation takes beside its content.
const ALLOCATION_BYTES: usize = 16;
/// Largest number of bytes of an error text: it may quote what was read.
const TEXT_BYTES_MAX: usize = 256;

/// Number of bytes that a value may still take on the heap.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemoryBudget(usize);

impl MemoryBudget {
    /// Returns the budget of bytes from a peer: with the bytes themselves, and with what serde reserves for
    /// the list that is refused, four times their number at 16 MiB. Short messages, which cannot do harm,
    /// have a floor.
    pub(super) fn of_peer(bytes: usize) -> Self {
        Self((bytes.saturating_mul(3) - bytes / 16).max(MEMORY_BYTES_MIN))
    }

    /// Returns the budget of bytes from this process or its own replica group.
    pub(super) fn unbounded() -> Self {
        Self(usize::MAX)
    }
}

/// Returns the most bytes that a list of this length takes while it grows.
fn list_bytes(length: u64, item: usize) -> usize {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    // A B-tree leaves half of its nodes empty in the worst case.
    let tree = length.saturating_mul(2 * item);
    let reserved = (RESERVED_BYTES_MAX / item.max(1)).max(1);
    let mut capacity = reserved.min(length);
    while capacity < length {
        capacity = capacity.saturating_mul(2);
    }
    debug_assert!(capacity >= length, "a list has space for its items");
    // The last doubling holds the old and the new half at once.
    let old = if capacity > reserved { capacity / 2 } else { 0 };
    tree.max((capacity.saturating_add(old)).saturating_mul(item))
}

/// Returns the most bytes that an entry of a map takes: its share of a B-tree, and its place in the index of
/// the comparison.
fn entry_bytes(key: usize, value: usize) -> usize {
    let bytes = (key + value) * 9 / 4 + ALLOCATION_BYTES + size_of::<u32>();
    debug_assert!(bytes > 2 * (key + value), "half of a B-tree's node may be empty");
    bytes
}

/// Reason why validated bytes are not a value of the type.
#[derive(Debug)]
pub(super) enum DecodeFailure {
    Invalid(String),
    /// The value would take more memory than the budget allows.
    Costly,
}

impl From<DecodeFailure> for CanonicalError {
    fn from(error: DecodeFailure) -> Self {
        match error {
            DecodeFailure::Invalid(reason) => Self::Invalid(reason),
            DecodeFailure::Costly => Self::Costly,
        }
    }
}

impl From<CanonicalError> for DecodeFailure {
    fn from(error: CanonicalError) -> Self {
        de::Error::custom(error)
    }
}

impl fmt::Display for DecodeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(reason) => f.write_str(reason),
            Self::Costly => f.write_str("too costly"),
        }
    }
}

impl std::error::Error for DecodeFailure {}

impl de::Error for DecodeFailure {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        let mut text = ShortText(String::new());
        // The error reports only that the text is cut.
        let _ = write!(text, "{reason}");
        Self::Invalid(text.0)
    }
}

/// Text that is cut at [`TEXT_BYTES_MAX`] bytes.
struct ShortText(String);

impl Write for ShortText {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let space = TEXT_BYTES_MAX.saturating_sub(self.0.len());
        if part.len() <= space {
            self.0.push_str(part);
            return Ok(());
        }
        self.0.extend(part.char_indices().take_while(|(at, c)| at + c.len_utf8() <= space).map(|(_, c)| c));
        debug_assert!(self.0.len() <= TEXT_BYTES_MAX, "the text is cut");
        self.0.push('…');
        Err(fmt::Error)
    }
}

/// Reads a value from bytes that [`super::form::check`] accepted.
pub(super) fn read<T: DeserializeOwned>(input: &[u8], budget: MemoryBudget) -> Result<T, DecodeFailure> {
    let mut reader = CanonicalReader { input, at: 0, budget };
    let value = T::deserialize(&mut reader)?;
    debug_assert_eq!(reader.at, input.len(), "validated bytes are one item, and it was read");
    Ok(value)
}

/// Position in validated bytes.
struct CanonicalReader<'de> {
    input: &'de [u8],
    at: usize,
    budget: MemoryBudget,
}

impl<'de> CanonicalReader<'de> {
    fn charge(&mut self, bytes: usize) -> Result<(), DecodeFailure> {
        self.budget.0 = self.budget.0.checked_sub(bytes).ok_or(DecodeFailure::Costly)?;
        Ok(())
    }

    fn peek(&self) -> Result<ItemHead, DecodeFailure> {
        Ok(ItemHead::read(self.input, self.at)?)
    }

    fn is_null(&self) -> Result<bool, DecodeFailure> {
        let head = self.peek()?;
        Ok((head.kind, head.argument) == (ItemKind::Simple, NULL))
    }

    /// Consumes the head of the next item, which must be of this kind.
    fn open(&mut self, kind: ItemKind, expected: &dyn de::Expected) -> Result<u64, DecodeFailure> {
        let head = self.peek()?;
        if head.kind != kind {
            return Err(de::Error::invalid_type(unexpected(head), expected));
        }
        self.at += head.bytes;
        Ok(head.argument)
    }

    /// Consumes a text or byte string.
    fn content(&mut self, head: ItemHead) -> Result<&'de [u8], DecodeFailure> {
        let content = head.content(self.input, self.at)?;
        self.at += head.bytes + content.len();
        debug_assert!(self.at <= self.input.len(), "content is within the bytes");
        Ok(content)
    }

    /// Consumes a text.
    fn text(&mut self, expected: &dyn de::Expected) -> Result<&'de str, DecodeFailure> {
        let head = self.peek()?;
        if head.kind != ItemKind::Text {
            return Err(de::Error::invalid_type(unexpected(head), expected));
        }
        std::str::from_utf8(self.content(head)?).map_err(de::Error::custom)
    }

    fn visit_list<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, DecodeFailure> {
        let length = self.open(ItemKind::Array, &visitor)?;
        let mut items = ListItems { reader: self, left: length, is_charged: false };
        let value = visitor.visit_seq(&mut items)?;
        debug_assert!(items.left <= length, "items are read, not added");
        match items.left {
            0 => Ok(value),
            left => Err(de::Error::custom(format_args!("a list has {left} items too many"))),
        }
    }

    /// Reads a map. A struct keeps its fields in place; any other map is a B-tree.
    fn visit_entries<V: Visitor<'de>>(
        &mut self,
        visitor: V,
        of_struct: bool,
    ) -> Result<V::Value, DecodeFailure> {
        let length = self.open(ItemKind::Map, &visitor)?;
        let mut entries = MapEntries { reader: self, left: length, of_struct, key_bytes: 0 };
        let value = visitor.visit_map(&mut entries)?;
        debug_assert!(entries.left <= length, "entries are read, not added");
        match entries.left {
            0 => Ok(value),
            left => Err(de::Error::custom(format_args!("a map has {left} entries too many"))),
        }
    }
}

fn unexpected(head: ItemHead) -> de::Unexpected<'static> {
    match head.kind {
        ItemKind::Unsigned => de::Unexpected::Unsigned(head.argument),
        ItemKind::Negative => de::Unexpected::Other("negative number"),
        ItemKind::Bytes => de::Unexpected::Other("byte string"),
        ItemKind::Text => de::Unexpected::Other("text"),
        ItemKind::Array => de::Unexpected::Seq,
        ItemKind::Map => de::Unexpected::Map,
        ItemKind::Simple if head.argument == NULL => de::Unexpected::Unit,
        ItemKind::Simple => de::Unexpected::Bool(head.argument == TRUE),
    }
}

impl<'de> de::Deserializer<'de> for &mut CanonicalReader<'de> {
    type Error = DecodeFailure;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeFailure> {
        let head = self.peek()?;
        match head.kind {
            ItemKind::Bytes => return self.deserialize_bytes(visitor),
            ItemKind::Text => return self.deserialize_str(visitor),
            ItemKind::Array => return self.visit_list(visitor),
            ItemKind::Map => return self.visit_entries(visitor, false),
            ItemKind::Unsigned | ItemKind::Negative | ItemKind::Simple => self.at += head.bytes,
        }
        match (head.kind, head.argument) {
            (ItemKind::Unsigned, number) => visitor.visit_u64(number),
            (ItemKind::Negative, number) => match i64::try_from(-1 - i128::from(number)) {
                Ok(number) => visitor.visit_i64(number),
                Err(_) => Err(de::Error::invalid_value(unexpected(head), &visitor)),
            },
            (_, NULL) => visitor.visit_unit(),
            (_, value) => visitor.visit_bool(value != FALSE),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeFailure> {
        let text = self.text(&visitor)?;
        self.charge(text.len() + ALLOCATION_BYTES)?;
        visitor.visit_borrowed_str(text)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeFailure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeFailure> {
        let head = self.peek()?;
        if head.kind != ItemKind::Bytes {
            return Err(de::Error::invalid_type(unexpected(head), &visitor));
        }
        let content = self.content(head)?;
        // A value of as many bytes keeps them in place; a vector is three words, and keeps them elsewhere.
        let of_vector = size_of::<V::Value>() <= size_of::<Vec<u8>>();
        if of_vector || size_of::<V::Value>() < content.len() {
            self.charge(content.len() + ALLOCATION_BYTES)?;
        }
        visitor.visit_borrowed_bytes(content)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeFailure> {
        if !self.is_null()? {
            return visitor.visit_some(self);
        }
        debug_assert_eq!(self.peek()?.bytes, 1, "null is one byte");
        self.at += 1;
        visitor.visit_none()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeFailure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeFailure> {
        self.visit_entries(visitor, true)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeFailure> {
        let has_value = self.peek()?.kind == ItemKind::Map;
        if has_value && self.open(ItemKind::Map, &visitor)? != 1 {
            return Err(de::Error::invalid_length(1, &visitor));
        }
        visitor.visit_enum(EnumVariant { reader: self, has_value })
    }

    /// Reads the name of a field or variant, which no value keeps.
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeFailure> {
        let text = self.text(&visitor)?;
        visitor.visit_borrowed_str(text)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeFailure> {
        let end = end_of(self.input, self.at)?;
        debug_assert!(end > self.at && end <= self.input.len(), "an item takes bytes that are there");
        self.at = end;
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char unit unit_struct
        byte_buf seq tuple tuple_struct map
    }
}

/// Items of a list that is being read.
struct ListItems<'a, 'de> {
    reader: &'a mut CanonicalReader<'de>,
    left: u64,
    is_charged: bool,
}

impl<'de> de::SeqAccess<'de> for &mut ListItems<'_, 'de> {
    type Error = DecodeFailure;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, DecodeFailure> {
        if self.left == 0 {
            return Ok(None);
        }
        if !self.is_charged {
            self.reader.charge(list_bytes(self.left, size_of::<S::Value>()))?;
            self.is_charged = true;
        }
        self.left -= 1;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    /// Returns the exact number: the check of the form bounded it by the number of bytes.
    fn size_hint(&self) -> Option<usize> {
        usize::try_from(self.left).ok()
    }
}

/// Entries of a map that is being read.
struct MapEntries<'a, 'de> {
    reader: &'a mut CanonicalReader<'de>,
    left: u64,
    of_struct: bool,
    /// Size of the last key in memory.
    key_bytes: usize,
}

impl<'de> de::MapAccess<'de> for &mut MapEntries<'_, 'de> {
    type Error = DecodeFailure;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, DecodeFailure> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.key_bytes = size_of::<S::Value>();
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, DecodeFailure> {
        let in_place = size_of::<u32>();
        let bytes =
            if self.of_struct { in_place } else { entry_bytes(self.key_bytes, size_of::<S::Value>()) };
        self.reader.charge(bytes)?;
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        usize::try_from(self.left).ok()
    }
}

/// Variant of an enum: a name, or a map from its name to its value.
struct EnumVariant<'a, 'de> {
    reader: &'a mut CanonicalReader<'de>,
    has_value: bool,
}

impl EnumVariant<'_, '_> {
    fn expect_value(&self, expected: &dyn de::Expected) -> Result<(), DecodeFailure> {
        debug_assert!(self.reader.at > 0, "the variant's name was read");
        if self.has_value {
            return Ok(());
        }
        Err(de::Error::invalid_type(de::Unexpected::UnitVariant, expected))
    }
}

impl<'de> de::EnumAccess<'de> for EnumVariant<'_, 'de> {
    type Error = DecodeFailure;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), DecodeFailure> {
        Ok((seed.deserialize(&mut *self.reader)?, self))
    }
}

impl<'de> de::VariantAccess<'de> for EnumVariant<'_, 'de> {
    type Error = DecodeFailure;

    fn unit_variant(self) -> Result<(), DecodeFailure> {
        if self.has_value {
            return Err(de::Error::custom("a variant without a value has one"));
        }
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, DecodeFailure> {
        self.expect_value(&"a variant with a value")?;
        seed.deserialize(&mut *self.reader)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _length: usize, visitor: V) -> Result<V::Value, DecodeFailure> {
        self.expect_value(&visitor)?;
        self.reader.visit_list(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeFailure> {
        self.expect_value(&visitor)?;
        self.reader.visit_entries(visitor, true)
    }
}
