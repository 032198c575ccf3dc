//! Serializer that compares a value with bytes instead of writing it.
//!
//! A type may read several encodings as one value: an absent optional field, an unsorted set. Only the
//! value's own encoding is canonical. Writing it takes memory and sorting; a comparison takes an index of
//! each map that is open, because a type writes its fields in its own order and canonical form has them
//! sorted.

use super::encoder::to_bytes;
use super::item::{FALSE, ItemHead, ItemKind, NULL, TRUE, end_of};
use serde::ser::{self, Serialize};
use std::cmp::Ordering;
use std::fmt;

/// The value has another encoding than the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OtherEncoding;

impl fmt::Display for OtherEncoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another encoding")
    }
}

impl std::error::Error for OtherEncoding {}

impl ser::Error for OtherEncoding {
    fn custom<T: fmt::Display>(_reason: T) -> Self {
        Self
    }
}

type Compared<T = ()> = Result<T, OtherEncoding>;

/// Returns whether the bytes, which [`super::form::check`] accepted, are the canonical encoding of the value.
pub(super) fn is_encoding_of<T: Serialize>(input: &[u8], value: &T) -> bool {
    let mut comparison = EncodingComparison { input, at: 0 };
    value.serialize(&mut comparison).is_ok() && comparison.at == input.len()
}

/// Position in the bytes that are compared.
struct EncodingComparison<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> EncodingComparison<'a> {
    fn head(&self, at: usize) -> Compared<ItemHead> {
        ItemHead::read(self.input, at).map_err(|_| OtherEncoding)
    }

    fn open(&mut self, kind: ItemKind) -> Compared<u64> {
        debug_assert!(self.at <= self.input.len(), "the position is in the bytes");
        let head = self.head(self.at)?;
        if head.kind != kind {
            return Err(OtherEncoding);
        }
        self.at += head.bytes;
        Ok(head.argument)
    }

    fn number(&mut self, kind: ItemKind, argument: u64) -> Compared {
        if self.open(kind)? == argument { Ok(()) } else { Err(OtherEncoding) }
    }

    fn content(&mut self, kind: ItemKind, content: &[u8]) -> Compared {
        debug_assert!(matches!(kind, ItemKind::Bytes | ItemKind::Text), "only strings have content");
        let head = self.head(self.at)?;
        let found = head.kind == kind && head.content(self.input, self.at) == Ok(content);
        self.at += head.bytes + content.len();
        if found { Ok(()) } else { Err(OtherEncoding) }
    }

    /// Enters a map of one entry, which is a variant with its value.
    fn variant(&mut self, name: &str) -> Compared {
        self.number(ItemKind::Map, 1)?;
        self.content(ItemKind::Text, name.as_bytes())
    }

    fn list(&mut self) -> Compared<ListComparison<'_, 'a>> {
        let left = self.open(ItemKind::Array)?;
        Ok(ListComparison { comparison: self, left })
    }

    /// Enters a map and indexes its entries.
    fn map(&mut self) -> Compared<MapComparison<'_, 'a>> {
        let length = self.open(ItemKind::Map)?;
        let mut entries = Vec::with_capacity(usize::try_from(length).map_err(|_| OtherEncoding)?);
        let mut end = self.at;
        for _ in 0..length {
            entries.push(u32::try_from(end).map_err(|_| OtherEncoding)?);
            let value = end_of(self.input, end).map_err(|_| OtherEncoding)?;
            end = end_of(self.input, value).map_err(|_| OtherEncoding)?;
        }
        debug_assert!(end <= self.input.len(), "a validated map ends within the bytes");
        debug_assert!(entries.is_sorted_by(|a, b| a < b), "each entry begins behind the one before");
        Ok(MapComparison { comparison: self, entries, end, next: 0, compared: 0 })
    }
}

/// Implements the methods of numbers, which differ in width alone.
macro_rules! numbers {
    ($($name:ident $kind:ident $wide:ident),*) => {
        $(fn $name(self, number: $kind) -> Compared {
            self.$wide(number.into())
        })*
    };
}

impl<'b, 'a> ser::Serializer for &'b mut EncodingComparison<'a> {
    type Ok = ();
    type Error = OtherEncoding;
    type SerializeSeq = ListComparison<'b, 'a>;
    type SerializeTuple = ListComparison<'b, 'a>;
    type SerializeTupleStruct = ListComparison<'b, 'a>;
    type SerializeTupleVariant = ListComparison<'b, 'a>;
    type SerializeMap = MapComparison<'b, 'a>;
    type SerializeStruct = MapComparison<'b, 'a>;
    type SerializeStructVariant = MapComparison<'b, 'a>;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn serialize_bool(self, value: bool) -> Compared {
        self.number(ItemKind::Simple, if value { TRUE } else { FALSE })
    }

    fn serialize_i64(self, number: i64) -> Compared {
        match u64::try_from(number) {
            Ok(number) => self.number(ItemKind::Unsigned, number),
            Err(_) => self.number(ItemKind::Negative, number.unsigned_abs() - 1),
        }
    }

    numbers! {
        serialize_i8 i8 serialize_i64, serialize_i16 i16 serialize_i64, serialize_i32 i32 serialize_i64,
        serialize_u8 u8 serialize_u64, serialize_u16 u16 serialize_u64, serialize_u32 u32 serialize_u64
    }

    fn serialize_u64(self, number: u64) -> Compared {
        self.number(ItemKind::Unsigned, number)
    }

    fn serialize_f32(self, _number: f32) -> Compared {
        Err(OtherEncoding)
    }

    fn serialize_f64(self, _number: f64) -> Compared {
        Err(OtherEncoding)
    }

    fn serialize_char(self, value: char) -> Compared {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, text: &str) -> Compared {
        self.content(ItemKind::Text, text.as_bytes())
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Compared {
        self.content(ItemKind::Bytes, bytes)
    }

    fn serialize_none(self) -> Compared {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Compared {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Compared {
        self.number(ItemKind::Simple, NULL)
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Compared {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _name: &'static str, _index: u32, variant: &'static str) -> Compared {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _name: &'static str, value: &T) -> Compared {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Compared {
        self.variant(variant)?;
        value.serialize(self)
    }

    fn serialize_seq(self, _length: Option<usize>) -> Compared<Self::SerializeSeq> {
        self.list()
    }

    fn serialize_tuple(self, _length: usize) -> Compared<Self::SerializeTuple> {
        self.list()
    }

    fn serialize_tuple_struct(
        self,
        _name: &'static str,
        _length: usize,
    ) -> Compared<Self::SerializeTupleStruct> {
        self.list()
    }

    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        _length: usize,
    ) -> Compared<Self::SerializeTupleVariant> {
        self.variant(variant)?;
        self.list()
    }

    fn serialize_map(self, _length: Option<usize>) -> Compared<Self::SerializeMap> {
        self.map()
    }

    fn serialize_struct(self, _name: &'static str, _length: usize) -> Compared<Self::SerializeStruct> {
        self.map()
    }

    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        _length: usize,
    ) -> Compared<Self::SerializeStructVariant> {
        self.variant(variant)?;
        self.map()
    }
}

/// List that is being compared.
struct ListComparison<'b, 'a> {
    comparison: &'b mut EncodingComparison<'a>,
    /// Number of items that the bytes still have.
    left: u64,
}

impl ListComparison<'_, '_> {
    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Compared {
        self.left = self.left.checked_sub(1).ok_or(OtherEncoding)?;
        value.serialize(&mut *self.comparison)
    }

    fn finish(self) -> Compared {
        debug_assert!(self.comparison.at <= self.comparison.input.len(), "a list ends within the bytes");
        if self.left == 0 { Ok(()) } else { Err(OtherEncoding) }
    }
}

/// Implements the traits of lists, which differ in names alone.
macro_rules! list_traits {
    ($($name:ident $method:ident),*) => {
        $(impl ser::$name for ListComparison<'_, '_> {
            type Ok = ();
            type Error = OtherEncoding;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Compared {
                self.item(value)
            }

            fn end(self) -> Compared {
                self.finish()
            }
        })*
    };
}

list_traits! {
    SerializeSeq serialize_element,
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field
}

/// Map that is being compared. A type writes each key once: its encoding would otherwise panic.
struct MapComparison<'b, 'a> {
    comparison: &'b mut EncodingComparison<'a>,
    /// Start of each entry, in the order of the bytes.
    entries: Vec<u32>,
    /// End of the map.
    end: usize,
    /// Index of the entry behind the last one compared: most maps are written in the order of the bytes.
    next: usize,
    compared: usize,
}

/// Returns the key of the entry at this place: its head, and its bytes.
fn key_at(input: &[u8], entry: u32) -> Compared<(ItemHead, &[u8])> {
    let begin = entry as usize;
    let head = ItemHead::read(input, begin).map_err(|_| OtherEncoding)?;
    let end = end_of(input, begin).map_err(|_| OtherEncoding)?;
    debug_assert!(begin + head.bytes <= end, "an item has its head, and perhaps content");
    Ok((head, input.get(begin..end).ok_or(OtherEncoding)?))
}

impl MapComparison<'_, '_> {
    /// Moves behind the key that compares as equal.
    fn find(&mut self, mut order: impl FnMut(ItemHead, &[u8]) -> Ordering) -> Compared {
        let input = self.comparison.input;
        let found = self.entries.binary_search_by(|entry| match key_at(input, *entry) {
            Ok((head, key)) => order(head, key),
            Err(OtherEncoding) => Ordering::Less,
        });
        let index = found.map_err(|_| OtherEncoding)?;
        let entry = *self.entries.get(index).ok_or(OtherEncoding)?;
        self.comparison.at = entry as usize + key_at(input, entry)?.1.len();
        debug_assert!(self.comparison.at < self.end, "a value follows each key");
        self.next = index + 1;
        Ok(())
    }

    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Compared {
        let name = name.as_bytes();
        // Keys are sorted by their bytes: by kind, then by length, then by content.
        self.find(|head, key| {
            let found = (head.kind, head.argument, key.get(head.bytes..).unwrap_or_default());
            found.cmp(&(ItemKind::Text, name.len() as u64, name))
        })?;
        self.compared += 1;
        value.serialize(&mut *self.comparison)
    }

    fn finish(self) -> Compared {
        debug_assert!(self.next <= self.entries.len(), "the index counts entries");
        if self.compared != self.entries.len() {
            return Err(OtherEncoding);
        }
        self.comparison.at = self.end;
        Ok(())
    }
}

impl ser::SerializeMap for MapComparison<'_, '_> {
    type Ok = ();
    type Error = OtherEncoding;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Compared {
        let next = self.entries.get(self.next).copied();
        if let Some(next) = next {
            self.comparison.at = next as usize;
            if key.serialize(&mut *self.comparison).is_ok() {
                self.next += 1;
                return Ok(());
            }
        }
        let wanted = to_bytes(key);
        self.find(|_, found| found.cmp(&wanted))
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Compared {
        self.compared += 1;
        debug_assert!(self.comparison.at < self.end, "a value follows its key");
        value.serialize(&mut *self.comparison)
    }

    fn end(self) -> Compared {
        self.finish()
    }
}

/// Implements the traits of structs, which differ in names alone.
macro_rules! struct_traits {
    ($($name:ident),*) => {
        $(impl ser::$name for MapComparison<'_, '_> {
            type Ok = ();
            type Error = OtherEncoding;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Compared {
                self.field(name, value)
            }

            fn end(self) -> Compared {
                self.finish()
            }
        })*
    };
}

struct_traits!(SerializeStruct, SerializeStructVariant);
