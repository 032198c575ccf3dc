//! Shapes of serde's data model, each with its canonical bytes, and the refusal of bytes of another shape.
//!
//! Protocol types use some of these shapes today. A type that uses another one tomorrow finds its encoding
//! here, written down before it was needed.

use protocol::canonical::{CanonicalError, from_bytes, from_own_bytes, to_bytes};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Nothing;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Wrapper(u32);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Couple(u8, String);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    long_name: bool,
    b: Option<u8>,
    aa: i16,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
enum Kind {
    Plain,
    One(u8),
    Two(u8, char),
    Named { z: u8, a: u8 },
}

/// Byte string, as protocol types write their keys and digests.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Raw(Vec<u8>);

impl Serialize for Raw {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RawVisitor;
        impl serde::de::Visitor<'_> for RawVisitor {
            type Value = Raw;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("raw bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Raw, E> {
                Ok(Raw(bytes.to_vec()))
            }
        }
        deserializer.deserialize_byte_buf(RawVisitor)
    }
}

/// Checks that a value has these bytes, and comes back from them and from no prefix of them.
fn is_written_as<T>(value: T, expected: &str)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let bytes = to_bytes(&value);
    assert_eq!(hex::encode(&bytes), expected, "{value:?}");
    assert_eq!(from_bytes::<T>(&bytes, 100).as_ref(), Ok(&value));
    assert_eq!(from_own_bytes::<T>(&bytes, 100).as_ref(), Ok(&value));
    for length in 0..bytes.len() {
        let prefix = from_bytes::<T>(&bytes[..length], 100);
        assert!(matches!(prefix, Err(CanonicalError::Invalid(_))), "{length} bytes of {value:?}: {prefix:?}");
    }
}

/// Reader that returns the error text for hexadecimal bytes.
type ErrorReader = fn(&str) -> String;

/// Returns the error text for these bytes as a `T`.
fn refused<T: Serialize + DeserializeOwned + Debug>(bytes: &str) -> String {
    let bytes = hex::decode(bytes).unwrap();
    from_bytes::<T>(&bytes, 100).expect_err("bytes of another shape").to_string()
}

#[test]
fn numbers_take_the_fewest_bytes() {
    is_written_as(0_u8, "00");
    is_written_as(23_u8, "17");
    is_written_as(24_u8, "1818");
    is_written_as(u8::MAX, "18ff");
    is_written_as(256_u16, "190100");
    is_written_as(u16::MAX, "19ffff");
    is_written_as(65_536_u32, "1a00010000");
    is_written_as(u32::MAX, "1affffffff");
    is_written_as(1_u64 << 32, "1b0000000100000000");
    is_written_as(u64::MAX, "1bffffffffffffffff");
    is_written_as(-1_i8, "20");
    is_written_as(-24_i8, "37");
    is_written_as(-25_i8, "3818");
    is_written_as(i8::MIN, "387f");
    is_written_as(i16::MIN, "397fff");
    is_written_as(i32::MIN, "3a7fffffff");
    is_written_as(i64::MIN, "3b7fffffffffffffff");
    is_written_as(i64::MAX, "1b7fffffffffffffff");
}

#[test]
fn a_number_beyond_its_type_is_refused() {
    assert_eq!(refused::<u8>("190100"), "not a valid encoding: invalid value: integer `256`, expected u8");
    assert_eq!(refused::<u64>("20"), "not a valid encoding: invalid value: integer `-1`, expected u64");
    assert_eq!(refused::<i8>("1880"), "not a valid encoding: invalid value: integer `128`, expected i8");
    let least = "not a valid encoding: invalid value: negative number, expected i64";
    assert_eq!(refused::<i64>("3b8000000000000000"), least, "one below the least of 64 bits");
    assert_eq!(refused::<i64>("3bffffffffffffffff"), least);
}

#[test]
fn simple_values_and_texts() {
    is_written_as(false, "f4");
    is_written_as(true, "f5");
    is_written_as((), "f6");
    is_written_as(Nothing, "f6");
    is_written_as('a', "6161");
    is_written_as('€', "63e282ac");
    is_written_as(String::new(), "60");
    is_written_as("ü".to_string(), "62c3bc");
    is_written_as("x".repeat(24), &format!("7818{}", "78".repeat(24)));
    is_written_as(Raw(vec![]), "40");
    is_written_as(Raw(vec![0, 255]), "4200ff");
    assert_eq!(
        refused::<char>("626162"),
        "not a valid encoding: invalid value: string \"ab\", expected a character"
    );
    assert_eq!(refused::<String>("61ff"), "not a valid encoding: no UTF-8 at byte 0");
}

#[test]
fn optional_values_are_null_or_plain() {
    is_written_as(None::<u8>, "f6");
    is_written_as(Some(7_u8), "07");
    is_written_as(vec![Some(1_u8), None], "8201f6");
    is_written_as(Some(vec![None::<bool>]), "81f6");
    assert_eq!(refused::<Option<u8>>("f7"), "contains a undefined value, which canonical form does not have");
    // A value that is null itself is the same bytes as an absent one, and comes back absent.
    assert_eq!(from_bytes::<Option<()>>(&to_bytes(&Some(())), 9), Ok(None));
}

#[test]
fn lists_and_tuples_are_arrays() {
    is_written_as(Vec::<u8>::new(), "80");
    is_written_as(vec![1_u8, 2], "820102");
    is_written_as(VecDeque::from([-1_i64]), "8120");
    is_written_as(BTreeSet::from(["b".to_string(), "a".into()]), "8261616162");
    is_written_as((1_u8, "a".to_string()), "82016161");
    is_written_as([3_u8; 3], "83030303");
    is_written_as(Couple(1, "a".into()), "82016161");
    is_written_as(Wrapper(5), "05");
    is_written_as(vec![vec![Wrapper(1)], vec![]], "82810180");
}

#[test]
fn a_list_of_another_length_is_refused() {
    let too_few = "not a valid encoding: invalid length 1, expected a tuple of size 2";
    assert_eq!(refused::<(u8, u8)>("8101"), too_few);
    assert_eq!(refused::<(u8, u8)>("83010203"), "not a valid encoding: a list has 1 items too many");
    assert_eq!(refused::<Couple>("830161610a"), "not a valid encoding: a list has 1 items too many");
    assert_eq!(
        refused::<[u8; 2]>("80"),
        "not a valid encoding: invalid length 0, expected an array of length 2"
    );
}

#[test]
fn a_set_has_one_order() {
    assert_eq!(refused::<BTreeSet<u8>>("820201"), "not the canonical encoding of its value");
    assert_eq!(refused::<BTreeSet<u8>>("820101"), "not the canonical encoding of its value");
}

#[test]
fn maps_are_sorted_by_the_bytes_of_their_keys() {
    is_written_as(BTreeMap::<u8, u8>::new(), "a0");
    is_written_as(BTreeMap::from([("b".to_string(), 1_u8), ("aa".into(), 2)]), "a261620162616102");
    is_written_as(BTreeMap::from([(-1_i32, 1_u8), (0, 2), (256, 3)]), "a30002190100032001");
    is_written_as(BTreeMap::from([(Wrapper(300), true), (Wrapper(2), false)]), "a202f419012cf5");
    is_written_as(BTreeMap::from([(Raw(vec![2]), 1_u8), (Raw(vec![1, 1]), 2)]), "a241020142010102");
    is_written_as(BTreeMap::from([(Kind::Plain, 1_u8)]), "a165506c61696e01");
    is_written_as(BTreeMap::from([((1_u8, 2_u8), 3_u8)]), "a182010203");
    let nested = BTreeMap::from([(1_u8, BTreeMap::from([(2_u8, vec![3_u8])]))]);
    is_written_as(nested, "a101a1028103");
}

#[test]
fn a_map_in_another_order_is_refused() {
    for bytes in ["a262616102616201", "a2616101616102", "a201000000"] {
        let spelled = refused::<BTreeMap<String, u8>>(bytes);
        assert_eq!(spelled, "not the canonical encoding of its value", "{bytes}");
    }
}

#[test]
fn structs_are_maps_by_field_name() {
    is_written_as(Fields { long_name: true, b: None, aa: -2 }, "a36162f662616121696c6f6e675f6e616d65f5");
    let without_b = "a262616121696c6f6e675f6e616d65f5";
    assert_eq!(refused::<Fields>(without_b), "not the canonical encoding of its value", "none is written");
    let without_aa = "a26162f6696c6f6e675f6e616d65f5";
    assert_eq!(refused::<Fields>(without_aa), "not a valid encoding: missing field `aa`");
    let with_c = "a46162f661630062616121696c6f6e675f6e616d65f5";
    let known = "expected one of `long_name`, `b`, `aa`";
    assert_eq!(refused::<Fields>(with_c), format!("not a valid encoding: unknown field `c`, {known}"));
    assert_eq!(
        refused::<Fields>("83f5f621"),
        "not a valid encoding: invalid type: sequence, expected struct Fields"
    );
    let numbered = "a100f6";
    assert!(refused::<Fields>(numbered).starts_with("not a valid encoding: invalid type: integer `0`"));
}

#[test]
fn variants_are_a_name_or_a_map_from_the_name() {
    is_written_as(Kind::Plain, "65506c61696e");
    is_written_as(Kind::One(1), "a1634f6e6501");
    is_written_as(Kind::Two(2, 'c'), "a16354776f82026163");
    is_written_as(Kind::Named { z: 1, a: 2 }, "a1654e616d6564a2616102617a01");
    is_written_as(vec![Kind::Plain, Kind::One(0)], "8265506c61696ea1634f6e6500");
}

#[test]
fn a_variant_in_another_form_is_refused() {
    for (name, bytes, expected) in [
        ("a value for none", "a165506c61696ef6", "not a valid encoding: a variant without a value has one"),
        (
            "no value",
            "634f6e65",
            "not a valid encoding: invalid type: unit variant, expected a variant with a value",
        ),
        (
            "no values",
            "6354776f",
            "not a valid encoding: invalid type: unit variant, expected tuple variant Kind::Two",
        ),
        (
            "one value too few",
            "a16354776f8102",
            "not a valid encoding: invalid length 1, expected tuple variant Kind::Two with 2 elements",
        ),
        ("one value too many", "a16354776f83026163f6", "not a valid encoding: a list has 1 items too many"),
        (
            "two variants",
            "a2634f6e65016354776f820261 63",
            "not a valid encoding: invalid length 1, expected enum Kind",
        ),
        ("no variant", "a0", "not a valid encoding: invalid length 1, expected enum Kind"),
        ("a number", "00", "not a valid encoding: invalid type: integer `0`, expected"),
        ("an unknown name", "6141", "not a valid encoding: unknown variant `A`, expected one of"),
        ("an unknown field", "a1654e616d6564a3616102616203617a01", "not a valid encoding: unknown field `b`"),
        ("unsorted fields", "a1654e616d6564a2617a01616102", "not the canonical encoding of its value"),
    ] {
        let said = refused::<Kind>(&bytes.replace(' ', ""));
        assert!(said.starts_with(expected), "{name}: `{said}` begins with `{expected}`");
    }
}

/// Every kind of item where another one belongs: the text names both.
#[test]
fn an_item_of_another_kind_is_named() {
    let items = [
        ("00", "integer `0`"),
        ("4100", "byte string"),
        ("6161", "text"),
        ("80", "sequence"),
        ("a0", "map"),
        ("f6", "unit value"),
        ("f5", "boolean `true`"),
    ];
    let wanted: [(&str, ErrorReader, &str); 6] = [
        ("00", refused::<u8>, "u8"),
        ("6161", refused::<String>, "a string"),
        ("80", refused::<Vec<u8>>, "a sequence"),
        ("a0", refused::<BTreeMap<u8, u8>>, "a map"),
        ("f6", refused::<()>, "unit"),
        ("f5", refused::<bool>, "a boolean"),
    ];
    for (own, read, expected) in wanted {
        for (bytes, name) in items.iter().filter(|(bytes, _)| *bytes != own) {
            let said = read(bytes);
            let is_type = said.starts_with("not a valid encoding: invalid type: ");
            assert!(is_type && said.contains(expected), "{name} for {expected}: {said}");
        }
    }
}

#[test]
fn an_error_quotes_a_bounded_part_of_what_was_read() {
    let mut bytes = vec![0x79, 0x03, 0xe8];
    bytes.resize(1003, b'x');
    let said = from_bytes::<Kind>(&bytes, 2000).expect_err("no such variant").to_string();
    assert!(said.len() < 300 && said.ends_with('…'), "{} bytes: {said}", said.len());
    assert!(said.starts_with("not a valid encoding: unknown variant `xxx"), "{said}");
}

#[test]
fn a_list_of_values_without_size_is_bounded_by_its_bytes() {
    let bytes = to_bytes(&vec![(); 70]);
    assert_eq!(bytes.len(), 72);
    assert_eq!(from_bytes::<Vec<()>>(&bytes, 100), Ok(vec![(); 70]));
    assert_eq!(
        refused::<Vec<()>>("9bffffffffffffffff"),
        "not a valid encoding: the item at byte 0 is not complete"
    );
}
